//! Tables of contents of archives that `pg_dump` wrote.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proto_tests::fuzz_archive(bytes));
