//! What a server says, from the first byte on.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proto_tests::fuzz_server(bytes));
