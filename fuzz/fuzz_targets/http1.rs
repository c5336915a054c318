//! Runs `edgeward_fuzz::http1` on what libFuzzer thinks up.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| edgeward_fuzz::http1::run(data));
