//! Runs `edgeward_fuzz::client_certificate` on what libFuzzer thinks up.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| edgeward_fuzz::client_certificate::run(data));
