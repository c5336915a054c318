//! Runs `edgeward_fuzz::sigv4` on what libFuzzer thinks up.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| edgeward_fuzz::sigv4::run(data));
