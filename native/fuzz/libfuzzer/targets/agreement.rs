#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| polydist_fuzz::agreement(data));
