//! Connection strings, in both of libpq's forms.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proto_tests::fuzz_conninfo(bytes));
