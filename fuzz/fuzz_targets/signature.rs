//! Runs `edgeward_fuzz::signature` on what libFuzzer thinks up.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| edgeward_fuzz::signature::run(data));
