//! Frames and messages, in every layout.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proto_tests::fuzz_frames(bytes));
