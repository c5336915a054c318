//! Golden files of the configuration: what is accepted, and what is said of everything that is not.
//!
//! `tests/config/invalid/NAME.yaml` must be refused with exactly the problems in `NAME.problems`. `EDGEWARD_BLESS=1` writes them anew.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test that meets the unexpected stops there, and lives in real time"
)]

use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};

use edgeward::config::{self, Loaded, Problem, Source, System};
use proptest::prelude::*;
use serde_json::Value;

/// In the environment of every test; must not be seen in any problem.
const SECRET: &str = "hunter2-hunter2-hunter2-hunter2-hunter2-hunter2-hunter2-hunter2-hunter2";

/// The files of the repository with an environment of our own.
struct Repository;

impl Source for Repository {
    fn read(&self, path: &Path) -> Result<Vec<u8>> {
        System.read(path)
    }

    fn env(&self, name: &str) -> Option<String> {
        match name {
            "SECRET" | "EDGEWARD_ADMIN_TOKEN" => Some(SECRET.to_owned()),
            "SHORT" => Some("hunter2".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }
}

/// Files in memory.
struct Memory(BTreeMap<PathBuf, Vec<u8>>);

impl Source for Memory {
    fn read(&self, path: &Path) -> Result<Vec<u8>> {
        self.0.get(path).cloned().ok_or_else(|| Error::from(ErrorKind::NotFound))
    }

    fn env(&self, name: &str) -> Option<String> {
        Repository.env(name)
    }
}

fn load(bytes: &[u8]) -> Loaded {
    let files =
        ["chain.pem", "key.pem", "ca.pem", "crl.pem", "jwks.json"].map(|name| (Path::new("../files").join(name), b"content".to_vec()));
    let mut files = BTreeMap::from(files);
    files.insert("../files/keys.yaml".into(), std::fs::read("tests/config/files/keys.yaml").unwrap());
    for name in ["../files/sigv4.yaml", "../files/signature-keys.yaml", "../files/p256.pem", "../files/users.htpasswd"] {
        files.insert(name.into(), std::fs::read(Path::new("tests/config/valid").join(name)).unwrap());
    }
    files.insert("../files/networks.txt".into(), b"192.0.2.0/24\n".to_vec());
    files.insert("edgeward.yaml".into(), bytes.to_vec());
    config::load(Path::new("edgeward.yaml"), &Memory(files))
}

fn yaml_files(folder: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    files
}

fn shown(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("{problem}\n")).collect()
}

fn bless() -> bool {
    std::env::var_os("EDGEWARD_BLESS").is_some()
}

#[test]
fn valid_files_are_accepted() {
    let files = yaml_files("tests/config/valid");
    assert!(files.len() >= 3, "{files:?}");
    for file in files {
        if let Err(problems) = config::load(&file, &Repository).config {
            panic!("{} is refused:\n{}", file.display(), shown(&problems));
        }
    }
}

#[test]
fn invalid_files_are_refused_with_exactly_these_problems() {
    let files = yaml_files("tests/config/invalid");
    assert!(files.len() >= 60, "{}", files.len());
    let mut different = String::new();
    for file in files {
        let problems = config::load(&file, &Repository).config.expect_err(&file.display().to_string());
        let found = shown(&problems);
        assert!(!found.contains("hunter2"), "a secret in {found}");
        let golden = file.with_extension("problems");
        if bless() {
            std::fs::write(&golden, &found).unwrap();
        }
        let expected = std::fs::read_to_string(&golden).unwrap_or_default();
        if found != expected {
            different += &format!("{}\n  expected:\n{expected}  found:\n{found}\n", file.display());
        }
    }
    assert!(different.is_empty(), "{different}");
}

#[test]
fn the_demo_and_every_example_are_accepted() {
    let examples = yaml_files("conf/examples");
    assert!(examples.len() >= 8, "{examples:?}");
    for file in examples {
        if let Err(problems) = config::load(&file, &Repository).config {
            panic!("{} is refused:\n{}", file.display(), shown(&problems));
        }
    }
    // Its key set is made by `make run`.
    let demo = std::fs::read("conf/edgeward.yaml").unwrap();
    let files = BTreeMap::from([("conf/edgeward.yaml".into(), demo)]);
    if let Err(problems) = config::load(Path::new("conf/edgeward.yaml"), &Memory(files)).config {
        panic!("the demo is refused:\n{}", shown(&problems));
    }
}

#[test]
fn every_file_that_is_named_is_watched_also_one_that_cannot_be_read() {
    let loaded = config::load(Path::new("tests/config/invalid/missing-files.yaml"), &Repository);
    let named: Vec<_> = loaded.files.iter().map(|path| path.to_str().unwrap()).collect();
    let expected = ["missing-files.yaml", "none/chain.pem", "none/key.pem", "none/jwks.json", "none/keys.yaml", "none/networks.txt"];
    assert_eq!(named, expected.map(|name| format!("tests/config/invalid/{name}")));
}

#[test]
fn the_reference_says_what_the_schema_says() {
    let schema = config::schema();
    let mut reference = "\n".to_owned();
    let mut seen = vec!["Config".to_owned()];
    let mut next = 0;
    while let Some(name) = seen.get(next).cloned() {
        next += 1;
        reference += &section(&name, &schema["$defs"][&name], &mut seen);
    }
    let path = "docs/configuration.md";
    let text = std::fs::read_to_string(path).unwrap();
    let (before, rest) = text.split_once("<!-- schema -->\n").unwrap();
    let (found, after) = rest.split_once("<!-- /schema -->").unwrap();
    if bless() {
        std::fs::write(path, format!("{before}<!-- schema -->\n{reference}<!-- /schema -->{after}")).unwrap();
        return;
    }
    assert_eq!(found, reference, "run with EDGEWARD_BLESS=1");
}

/// One mapping of the schema as a table.
fn section(name: &str, schema: &Value, seen: &mut Vec<String>) -> String {
    let required: Vec<&str> = schema["required"].as_array().map(|keys| keys.iter().filter_map(Value::as_str).collect()).unwrap_or_default();
    let about = schema["description"].as_str().unwrap();
    let mut text = format!("### {name}\n\n{about}\n\n| key | value | default | meaning |\n|---|---|---|---|\n");
    for (key, value) in schema["properties"].as_object().unwrap() {
        let default = match value.get("default") {
            Some(default) => format!("`{}`", flow(default)),
            None if required.contains(&key.as_str()) => String::new(),
            None => "optional".to_owned(),
        };
        let about = value["description"].as_str().unwrap();
        text += &format!("| `{key}` | {} | {default} | {about} |\n", kind(value, seen));
    }
    if let Some(choices) = schema["oneOf"].as_array() {
        let keys: Vec<_> = choices.iter().map(|choice| format!("`{}`", choice["required"][0].as_str().unwrap())).collect();
        text += &format!("\nExactly one of {}.\n", keys.join(", "));
    }
    text + "\n"
}

/// What may be written, in words.
fn kind(schema: &Value, seen: &mut Vec<String>) -> String {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.trim_start_matches("#/$defs/").to_owned();
        if !seen.contains(&name) {
            seen.push(name.clone());
        }
        return format!("[{name}](#{})", name.to_lowercase());
    }
    if let Some(forms) = schema["anyOf"].as_array() {
        return forms.iter().map(|form| kind(form, seen)).collect::<Vec<_>>().join(" or ");
    }
    if let Some(words) = schema["enum"].as_array() {
        return words.iter().map(|word| format!("`{}`", flow(word))).collect::<Vec<_>>().join(", ");
    }
    if let Some(word) = schema.get("const") {
        return format!("`{}`", flow(word));
    }
    if let Some(title) = schema["title"].as_str() {
        return title.to_owned();
    }
    match schema["type"].as_str().unwrap() {
        "array" => format!("list of {}", kind(&schema["items"], seen)),
        "object" => format!("mapping from {} to {}", kind(&schema["propertyNames"], seen), kind(&schema["additionalProperties"], seen)),
        "boolean" => "`true`, `false`".to_owned(),
        number => format!("{number}, {} to {}", schema["minimum"], schema["maximum"]),
    }
}

/// A value as YAML would have it on one line.
fn flow(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(flow).collect::<Vec<_>>().join(", ")),
        Value::Object(entries) => {
            format!("{{{}}}", entries.iter().map(|(key, value)| format!("{key}: {}", flow(value))).collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

#[test]
fn every_key_of_the_schema_is_in_the_full_example_and_every_mapping_is_closed() {
    let full = std::fs::read_to_string("tests/config/valid/full.yaml").unwrap();
    let schema = config::schema();
    for (name, definition) in schema["$defs"].as_object().unwrap() {
        assert_eq!(definition["additionalProperties"], false, "{name}");
        for key in definition["properties"].as_object().unwrap().keys() {
            assert!(full.contains(&format!("{key}:")), "{name}.{key}");
        }
    }
}

#[test]
fn a_file_that_cannot_be_read_is_told_from_one_that_is_wrong() {
    let absent = config::load(Path::new("tests/config/none.yaml"), &Repository);
    assert!(!absent.readable);
    assert_eq!(absent.files, [Path::new("tests/config/none.yaml")]);
    let problems = absent.config.unwrap_err();
    assert_eq!(problems.len(), 1);
    assert!(load(b"routes: x").readable);
}

#[test]
fn a_secret_is_never_in_a_problem_wherever_it_was_written() {
    let full = std::fs::read_to_string("tests/config/valid/full.yaml").unwrap();
    let written = ["{env: SECRET}", "{file: ../files/key.pem}"];
    let mut tried = 0;
    for (at, secret) in written.iter().flat_map(|secret| full.match_indices(secret)) {
        for wrong in [
            "hunter2",
            "\"hunter2\"",
            "[hunter2]",
            "{value: hunter2}",
            "{env: hunter2}",
            "{env: hunter-2-hunter2}",
            "{env: [hunter2]}",
            "{file: ''}",
            "{hunter2}",
            "hunter2: hunter2",
            "{env: SHORT}",
            "{env: SECRET, file: hunter2}",
        ] {
            let broken = format!("{}{wrong}{}", &full[..at], &full[at + secret.len()..]);
            let problems = match load(broken.as_bytes()).config {
                Err(problems) => shown(&problems),
                // Long enough where only a token is asked for.
                Ok(_) if wrong == "{env: SHORT}" => continue,
                Ok(_) => panic!("accepted: {wrong}"),
            };
            assert!(!problems.contains("hunter2"), "{wrong}: {problems}");
            tried += 1;
        }
    }
    assert!(tried >= 36, "{tried}");
}

#[test]
fn a_configuration_does_not_show_its_secrets_in_debug() {
    let config = load(std::fs::read("tests/config/valid/full.yaml").unwrap().as_slice()).config.unwrap();
    let debug = format!("{config:?}");
    assert!(!debug.contains("hunter2"));
    // The bytes of `content`, as a list would show them.
    assert!(!debug.contains("99, 111, 110"));
}

#[test]
fn bombs_and_hostile_files_are_refused_soon() {
    let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..12 {
        let earlier = vec![format!("*a{}", n - 1); 10].join(", ");
        laughs += &format!("a{n}: &a{n} [{earlier}]\n");
    }
    let megabytes = 4 * 1024 * 1024;
    let hostile: [(&str, Vec<u8>); 14] = [
        ("billion laughs", laughs.into()),
        ("too large", vec![b'#'; megabytes + 1]),
        ("open brackets", vec![b'['; megabytes]),
        ("open braces", b"{a: ".repeat(megabytes / 4)),
        ("dashes", b"- ".repeat(megabytes / 2)),
        ("complex keys", b"? ".repeat(megabytes / 2)),
        ("colons", b": ".repeat(megabytes / 2)),
        ("aliases", [b"a: &a 1\nb: [".as_slice(), &b"*a,".repeat(megabytes / 3 - 10), b"]"].concat()),
        ("anchors", b"- &a x\n".repeat(megabytes / 8)),
        ("unknown keys", (0..300_000).flat_map(|n| format!("k{n}: 1\n").into_bytes()).collect()),
        ("duplicate keys", b"k: 1\n".repeat(megabytes / 5)),
        ("one long word", vec![b'a'; megabytes]),
        ("one long quote", [b"\"".as_slice(), &vec![b'a'; megabytes - 1]].concat()),
        ("spaces", vec![b' '; megabytes]),
    ];
    for (name, bytes) in hostile {
        let started = std::time::Instant::now();
        let problems = load(&bytes).config.expect_err(name);
        assert!(problems.len() <= 1_001, "{name}: {} problems", problems.len());
        // At most 0.7 s when optimised; the bound here only tells linear from quadratic.
        assert!(started.elapsed().as_secs() < 90, "{name}: {:?}", started.elapsed());
        println!("{name}: {:?} {}", started.elapsed(), shown(&problems[..1]));
    }
}

#[test]
fn every_prefix_of_an_example_is_read_without_a_panic() {
    let full = std::fs::read("tests/config/valid/full.yaml").unwrap();
    for end in 0..full.len() {
        let _ = load(&full[..end]);
    }
}

/// Pieces from which files are made that come further than random bytes do.
const PIECES: [&str; 40] = [
    "a",
    "0",
    "-1",
    ":",
    ": ",
    "- ",
    "? ",
    "\n",
    "\n  ",
    "\n    ",
    "{",
    "}",
    "[",
    "]",
    ",",
    "&a ",
    "*a",
    "!x ",
    "|\n",
    ">-\n",
    "'",
    "\"",
    "\\",
    "#",
    "%",
    "---\n",
    "...\n",
    "<<",
    "~",
    "\t",
    "\u{feff}",
    "\u{e9}",
    "routes",
    "policy",
    "authenticate",
    "public",
    "{env: SECRET}",
    "jwt",
    "{file: x}",
    "\0",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_bytes_make_the_loader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let _ = load(&bytes);
    }

    #[test]
    fn no_yaml_makes_the_loader_panic(pieces in proptest::collection::vec(proptest::sample::select(&PIECES[..]), 0..64)) {
        let _ = load(pieces.concat().as_bytes());
    }

    #[test]
    fn no_mutation_of_an_example_makes_the_loader_panic(
        mutations in proptest::collection::vec((any::<prop::sample::Index>(), 0_usize..12, proptest::sample::select(&PIECES[..])), 1..6)
    ) {
        let mut text = std::fs::read("tests/config/valid/full.yaml").unwrap();
        for (at, cut, piece) in mutations {
            let at = at.index(text.len());
            let end = (at + cut).min(text.len());
            text.splice(at..end, piece.bytes());
        }
        let _ = load(&text);
    }
}
