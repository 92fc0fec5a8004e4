//! Sessions: the messages of one connection, put together.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proto_tests::fuzz_session(bytes));

libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    proto_tests::session::mutate(data, size, max_size, seed, libfuzzer_sys::fuzzer_mutate)
});
