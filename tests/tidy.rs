//! Keeps the house tidy: rules that a comment would have to beg for.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test that meets the unexpected stops there, and lives in real time"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms by floor, from the ground up. A room uses rooms of lower floors only, and none of its own floor: so `config` and `live` are strangers.
const FLOORS: &[&[&str]] = &[
    &["request", "secret", "text"],
    &["net", "jose", "metrics"],
    &["config", "live"],
    &["authenticators", "authorizers", "issuer", "upstream"],
    &["route"],
    &["admit"],
    &["snapshot"],
    &["proxy", "reload"],
    &["admin"],
    &["server"],
    &["cli"],
];

/// Longer, before its tests begin, and a file holds two things.
const LONGEST_FILE: usize = 800;

/// Where the tests at the foot of a file begin.
const TESTS: &str = "#[cfg(test)]\nmod ";

struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    /// The room: the folder or file below `src`.
    fn room(&self) -> &str {
        let first = self.path.strip_prefix(root().join("src")).unwrap().components().next().unwrap().as_os_str().to_str().unwrap();
        first.strip_suffix(".rs").unwrap_or(first)
    }

    /// The lines that are compiled into the library: no comments, and nothing from the tests at the foot on.
    fn code(&self) -> String {
        let code = self.text.split(TESTS).next().unwrap();
        code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else { return found };
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|actual| actual == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<Source> {
    let sources: Vec<_> =
        files(&root().join("src"), "rs").into_iter().map(|path| Source { text: fs::read_to_string(&path).unwrap(), path }).collect();
    assert!(sources.len() > 20, "the sources were not found");
    sources
}

/// The rooms that a text names by `crate::room` or `crate::{room, other::thing}`.
fn rooms_named(code: &str) -> BTreeSet<String> {
    let mut rooms = BTreeSet::new();
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    for (at, _) in code.match_indices("crate::") {
        // `$crate::` and `othercrate::` are others.
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            rooms.insert(word(rest));
            continue;
        };
        let mut depth = 0;
        let mut begins = true;
        for (i, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => begins = true,
                c if begins && !c.is_whitespace() => {
                    rooms.insert(word(&group[i..]));
                    begins = false;
                }
                _ => {}
            }
        }
    }
    rooms
}

fn floor(room: &str) -> usize {
    FLOORS.iter().position(|floor| floor.contains(&room)).unwrap_or_else(|| panic!("{room} is on no floor; say where it belongs"))
}

#[test]
fn each_room_uses_lower_floors_only() {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| !["lib", "main"].contains(&source.room())) {
        let code = source.code();
        for used in rooms_named(&code) {
            if used != source.room() && floor(&used) >= floor(source.room()) {
                wrong.push(format!("{}: {} uses {used}", source.path.display(), source.room()));
            }
        }
        assert!(!code.contains("super::super::super"), "{}: a path that climbs hides which room it leads to", source.path.display());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_rooms_of_a_use_line_are_found() {
    let code = "use crate::{config::{self, Place}, live};\nlet x = crate::net::http::get();\n$crate::no; mycrate::no; pub(crate) fn f() {}\nuse crate::request::Now;";
    assert_eq!(rooms_named(code).into_iter().collect::<Vec<_>>(), ["config", "live", "net", "request"]);
}

#[test]
fn only_the_proxy_and_the_wiring_name_pingora() {
    for source in sources().iter().filter(|source| !["proxy", "server"].contains(&source.room())) {
        // As a path; as a word it may stand in a string, such as the default filter of the log.
        for (at, _) in source.code().match_indices("pingora") {
            let code = source.code();
            let path: String = code[at..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            assert!(!code[at + path.len()..].starts_with("::"), "{} names {path}", source.path.display());
        }
    }
}

#[test]
fn each_source_file_opens_with_what_it_is() {
    let tests = files(&root().join("tests"), "rs").into_iter().chain(files(&root().join("benches"), "rs"));
    let tests = tests.map(|path| Source { text: fs::read_to_string(&path).unwrap(), path });
    for source in sources().into_iter().chain(tests) {
        let first = source.text.lines().next().unwrap_or_default();
        assert!(first.starts_with("//! ") && first.len() > 8, "{} does not open with a sentence", source.path.display());
    }
}

#[test]
fn no_file_is_so_long_that_it_holds_two_things() {
    for source in sources() {
        let lines = source.text.split(TESTS).next().unwrap().lines().count();
        assert!(lines <= LONGEST_FILE, "{} has {lines} lines", source.path.display());
    }
}

#[test]
fn no_name_is_a_drawer_for_anything() {
    for source in sources() {
        let stem = source.path.file_stem().unwrap().to_str().unwrap();
        assert!(!["util", "utils", "common", "types", "helpers", "misc"].contains(&stem), "{}", source.path.display());
    }
}

#[test]
fn each_example_is_explained() {
    let examples = files(&root().join("conf/examples"), "yaml");
    let page = fs::read_to_string(root().join("docs/configuration.md")).unwrap_or_default();
    for example in examples {
        let name = example.file_name().unwrap().to_str().unwrap();
        assert!(page.contains(name), "docs/configuration.md does not mention conf/examples/{name}");
    }
}

#[test]
fn each_way_to_prove_who_calls_is_shown_tested_fuzzed_and_explained() {
    let source = fs::read_to_string(root().join("src/request/identity.rs")).unwrap();
    let labels = source.lines().filter_map(|line| line.trim().strip_prefix("Self::")?.split_once(" => \"")?.1.strip_suffix("\","));
    let words: Vec<&str> = labels.collect();
    assert!(words.len() >= 8, "{words:?}");
    for word in words {
        // These share a file with others, or are called otherwise where people look for them.
        let (test, target, page) = match word {
            "jwt" => ("authenticators", "jwt", "configuration"),
            "api_key" => ("authenticators", "credential", "api-keys"),
            "client_certificate" => (word, word, "mtls"),
            _ => (word, word, word),
        };
        for path in [
            format!("src/authenticators/{word}.rs"),
            format!("conf/examples/{word}.yaml"),
            format!("tests/it/{test}.rs"),
            format!("fuzz/src/{target}.rs"),
            format!("docs/{page}.md"),
        ] {
            assert!(root().join(&path).is_file(), "{word} has no {path}: see docs/adding-an-authenticator.md");
        }
    }
}

#[test]
fn no_test_is_ignored_but_those_that_need_the_suites_of_others() {
    for path in files(&root().join("src"), "rs").into_iter().chain(files(&root().join("tests"), "rs")) {
        let text = fs::read_to_string(&path).unwrap();
        let marked = text.lines().any(|line| line.trim_start().starts_with(concat!("#[", "ignore")));
        assert!(!marked || path.ends_with("tests/vectors.rs"), "{} ignores a test", path.display());
    }
}
