//! What is wrong with what the operator wrote, and where: the one error type of the configuration.

use std::fmt;
use std::sync::Arc;

use serde::ser::{Serialize, SerializeStruct, Serializer};

/// How many problems one reading reports: more than an operator reads, and a bound on what a hostile file can make us write.
const MOST_PROBLEMS: usize = 1_000;

/// Where a value stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: Arc<str>,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// The path of keys, such as `routes[2].policy`; empty for the file as a whole.
    pub path: Arc<str>,
}

/// A value and its place, so that what is found wrong with it later can be shown where it stands.
#[derive(Debug, Clone)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// Where it stands.
    pub place: Place,
}

impl<T> std::ops::Deref for At<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

/// One thing that is wrong, for the operator's eyes.
///
/// Its text never holds a secret: a value is quoted only where the grammar wants a word of its own (a duration, a name), never where a
/// credential may have slipped in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// What is wrong.
    pub message: String,
    /// What would have been right.
    pub expected: Option<String>,
}

impl Problem {
    /// A problem with the value at `place`.
    pub fn at(place: &Place, message: impl Into<String>) -> Self {
        Self { place: place.clone(), message: message.into(), expected: None }
    }

    /// Adds what was expected.
    pub fn expected(mut self, expected: impl Into<String>) -> Self {
        self.expected = Some(expected.into());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { file, line, column, path } = &self.place;
        write!(f, "{file}:{line}:{column}: ")?;
        if !path.is_empty() {
            write!(f, "{path}: ")?;
        }
        f.write_str(&self.message)?;
        match &self.expected {
            Some(expected) => write!(f, " (expected {expected})"),
            None => Ok(()),
        }
    }
}

impl Serialize for Problem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut problem = serializer.serialize_struct("Problem", 6)?;
        problem.serialize_field("file", &*self.place.file)?;
        problem.serialize_field("line", &self.place.line)?;
        problem.serialize_field("column", &self.place.column)?;
        problem.serialize_field("path", &*self.place.path)?;
        problem.serialize_field("message", &self.message)?;
        problem.serialize_field("expected", &self.expected)?;
        problem.end()
    }
}

/// The problems of one reading, bounded.
#[derive(Debug, Default)]
pub(crate) struct Problems(Vec<Problem>);

impl Problems {
    pub(crate) fn push(&mut self, problem: Problem) {
        match self.0.len() {
            0..MOST_PROBLEMS => self.0.push(problem),
            MOST_PROBLEMS => self.0.push(Problem::at(&problem.place, format!("more problems follow; the first {MOST_PROBLEMS} are shown"))),
            _ => {}
        }
    }

    /// Whether more would not be shown: then it need not be looked for.
    pub(crate) fn are_full(&self) -> bool {
        self.0.len() > MOST_PROBLEMS
    }

    pub(crate) fn into_vec(self) -> Vec<Problem> {
        self.0
    }
}

/// The candidate that a misspelt name most likely meant, if one is near enough.
pub fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // A third of the letters wrong is another word, not a slip.
    let furthest = (name.chars().count() / 3).max(1);
    candidates
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= furthest)
        .min()
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem() -> Problem {
        let place = Place { file: "a.yaml".into(), line: 3, column: 5, path: "routes[2].policy".into() };
        Problem::at(&place, "no policy `partnr`").expected("`partner`")
    }

    #[test]
    fn is_shown_as_file_line_column_path_what_and_expected() {
        assert_eq!(problem().to_string(), "a.yaml:3:5: routes[2].policy: no policy `partnr` (expected `partner`)");
    }

    #[test]
    fn is_written_as_a_flat_json_object() {
        let json = serde_json::to_value(problem()).unwrap();
        let expected = serde_json::json!({
            "file": "a.yaml", "line": 3, "column": 5, "path": "routes[2].policy",
            "message": "no policy `partnr`", "expected": "`partner`",
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn the_nearest_name_is_a_slip_away_and_never_another_word() {
        let names = ["partner", "customers", "x"];
        for (written, meant) in
            [("partnr", Some("partner")), ("partenr", Some("partner")), ("custmers", Some("customers")), ("orders", None), ("", Some("x"))]
        {
            assert_eq!(nearest(written, names.into_iter()), meant, "{written}");
        }
    }

    #[test]
    fn problems_are_bounded() {
        let mut problems = Problems::default();
        for _ in 0..5_000 {
            problems.push(problem());
        }
        assert_eq!(problems.into_vec().len(), MOST_PROBLEMS + 1);
    }
}
