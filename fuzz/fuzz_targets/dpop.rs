//! Runs `edgeward_fuzz::dpop` on what libFuzzer thinks up.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| edgeward_fuzz::dpop::run(data));
