//! Spools whose files were changed.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proto_tests::fuzz_spool(bytes));
