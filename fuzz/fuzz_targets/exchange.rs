//! Runs `edgeward_fuzz::exchange` on what libFuzzer thinks up.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| edgeward_fuzz::exchange::run(data));
