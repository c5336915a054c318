//! What the fuzzer asks of random bytes, asked of its seeds: each of them was once worth keeping.

#![allow(unreachable_pub, reason = "a test target is nobody's library")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that meets the unexpected stops there"
)]

#[path = "../fuzz/src/lib.rs"]
mod targets;

fn run(target: &str, run: fn(&[u8])) {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let seed = std::fs::read(&path).unwrap();
        // Said only when a seed fails.
        eprintln!("{}", path.display());
        run(&seed);
        count += 1;
    }
    assert!(count >= 4, "{target} has {count} seeds");
}

#[test]
fn only_the_right_password_opens() {
    run("basic", targets::basic::run);
}

#[test]
fn any_configuration_is_read_or_refused_with_reasons() {
    run("config", targets::config::run);
}

#[test]
fn a_certificate_names_nobody_that_can_be_mistaken() {
    run("client_certificate", targets::client_certificate::run);
}

#[test]
fn no_credential_is_left_or_logged() {
    run("credential", targets::credential::run);
}

#[test]
fn only_a_proof_of_the_holder_is_accepted() {
    run("dpop", targets::dpop::run);
}

#[test]
fn requests_and_answers_end_at_one_place() {
    run("http1", targets::http1::run);
}

#[test]
fn only_true_is_active() {
    run("introspection", targets::introspection::run);
}

#[test]
fn an_upstream_gets_one_token_of_the_kind_that_was_asked_for_or_none() {
    run("exchange", targets::exchange::run);
}

#[test]
fn only_an_answer_that_says_so_in_every_word_lets_in() {
    run("external", targets::external::run);
}

#[test]
fn a_key_set_verifies_what_its_keys_signed() {
    run("jwks", targets::jwks::run);
}

#[test]
fn only_a_signed_token_is_accepted() {
    run("jwt", targets::jwt::run);
}

#[test]
fn a_request_has_one_reading() {
    run("request", targets::request::run);
}

#[test]
fn the_most_specific_route_is_taken() {
    run("router", targets::router::run);
}

#[test]
fn only_a_signed_message_is_accepted() {
    run("signature", targets::signature::run);
}

#[test]
fn only_what_was_signed_is_accepted() {
    run("sigv4", targets::sigv4::run);
}
