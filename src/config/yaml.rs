//! YAML as a tree in which every value knows its line and column, without YAML's surprises.
//!
//! Refused are what would let a file say something else than a reader sees: duplicate keys, tags, merge keys, several documents, control
//! characters, and aliases that expand without measure. Types are deliberately not here: `no` is the text `no` until a value asks for more.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Tag};

use super::problem::{Place, Problem, Problems};

const MOST_BYTES: usize = 4 * 1024 * 1024;
/// After expansion of aliases.
const MOST_NODES: usize = 1_000_000;
const DEEPEST: usize = 64;

/// Line and column, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) line: u32,
    pub(crate) column: u32,
}

impl Mark {
    pub(crate) const START: Self = Self { line: 1, column: 1 };
}

impl From<Marker> for Mark {
    fn from(marker: Marker) -> Self {
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Self { line: number(marker.line()).max(1), column: number(marker.col()).saturating_add(1) }
    }
}

/// One value of a file.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) mark: Mark,
    pub(crate) kind: Kind,
}

#[derive(Debug)]
pub(crate) enum Kind {
    /// `plain`: written without quotes and not as a block.
    Scalar {
        text: String,
        plain: bool,
    },
    Sequence(Vec<Rc<Node>>),
    /// Key and value; keys are scalars, each there once.
    Mapping(Vec<(Node, Rc<Node>)>),
}

impl Node {
    /// Whether nothing is written here: `key:`, `~` or `null`.
    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.kind, Kind::Scalar { text, plain: true } if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// What stands here, never its text.
    pub(crate) fn describe(&self) -> &'static str {
        match &self.kind {
            _ if self.is_null() => "nothing",
            Kind::Scalar { .. } => "a single value",
            Kind::Sequence(_) => "a list",
            Kind::Mapping(_) => "a mapping",
        }
    }
}

/// Reads one document. `None` when there is no tree to go on with; then at least one problem was reported.
pub(crate) fn parse(file: &Arc<str>, bytes: &[u8], problems: &mut Problems) -> Option<Rc<Node>> {
    let mut builder = Builder { file, problems, stack: Vec::new(), anchors: HashMap::new(), nodes: 0, root: None };
    if let Err(flaw) = builder.build(bytes) {
        builder.report(flaw);
        return None;
    }
    builder.root
}

/// What is wrong and where.
struct Flaw {
    mark: Mark,
    message: String,
    expected: Option<&'static str>,
}

fn flaw(mark: impl Into<Mark>, message: impl Into<String>) -> Flaw {
    Flaw { mark: mark.into(), message: message.into(), expected: None }
}

/// A collection that is not closed yet.
struct Frame {
    mark: Mark,
    anchor: usize,
    measure: Measure,
    open: Open,
}

enum Open {
    Sequence(Vec<Rc<Node>>),
    Mapping { entries: Vec<(Node, Rc<Node>)>, seen: HashMap<String, Mark>, key: Option<Node> },
}

/// How much a node is once its aliases are expanded.
#[derive(Debug, Clone, Copy)]
struct Measure {
    nodes: usize,
    height: usize,
}

impl Measure {
    const ONE: Self = Self { nodes: 1, height: 1 };

    fn add(&mut self, child: Self) {
        self.nodes += child.nodes;
        self.height = self.height.max(child.height + 1);
    }
}

struct Builder<'a> {
    file: &'a Arc<str>,
    problems: &'a mut Problems,
    stack: Vec<Frame>,
    anchors: HashMap<usize, (Rc<Node>, Measure)>,
    nodes: usize,
    root: Option<Rc<Node>>,
}

impl Builder<'_> {
    fn build(&mut self, bytes: &[u8]) -> Result<(), Flaw> {
        if bytes.len() > MOST_BYTES {
            return Err(Flaw { expected: Some("at most 4 MiB"), ..flaw(Mark::START, "the file is too large") });
        }
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let sound = String::from_utf8_lossy(bytes.get(..error.valid_up_to()).unwrap_or_default());
            flaw(mark_after(&sound), "not UTF-8")
        })?;
        // The scanner would take a NUL for the end of the file and ignore the rest of it.
        if let Some(index) = text.find(|c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r' | '\u{85}')) {
            return Err(flaw(mark_after(text.get(..index).unwrap_or_default()), "a control character"));
        }
        let mut documents = 0;
        let mut parser = Parser::new_from_str(text);
        while let Some(event) = parser.next_event() {
            let (event, span) = event.map_err(|error| flaw(*error.marker(), format!("not YAML: {}", error.info())))?;
            let mark = Mark::from(span.start);
            match event {
                Event::DocumentStart(_) => {
                    documents += 1;
                    if documents > 1 {
                        return Err(flaw(mark, "a second document; one file holds one"));
                    }
                }
                Event::Scalar(text, style, anchor, tag) => {
                    self.refuse_tag(mark, tag.as_deref());
                    let node = Node { mark, kind: Kind::Scalar { text: text.into_owned(), plain: style == ScalarStyle::Plain } };
                    self.scalar(node, anchor)?;
                }
                Event::SequenceStart(anchor, tag) => {
                    self.refuse_tag(mark, tag.as_deref());
                    self.open(mark, anchor, Open::Sequence(Vec::new()))?;
                }
                Event::MappingStart(anchor, tag) => {
                    self.refuse_tag(mark, tag.as_deref());
                    self.open(mark, anchor, Open::Mapping { entries: Vec::new(), seen: HashMap::new(), key: None })?;
                }
                Event::SequenceEnd | Event::MappingEnd => self.close(),
                Event::Alias(anchor) => {
                    self.refuse_key(mark)?;
                    // Not there yet when the alias stands inside what it names.
                    let Some((node, measure)) = self.anchors.get(&anchor).cloned() else {
                        return Err(flaw(mark, "an alias to a key, or to the value it stands in"));
                    };
                    self.count(mark, measure)?;
                    self.place(node, measure);
                }
                Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
            }
        }
        match self.root {
            Some(_) => Ok(()),
            None => Err(flaw(Mark::START, "the file is empty")),
        }
    }

    fn scalar(&mut self, node: Node, anchor: usize) -> Result<(), Flaw> {
        self.count(node.mark, Measure::ONE)?;
        let Some(Frame { open: Open::Mapping { seen, key: key @ None, .. }, .. }) = self.stack.last_mut() else {
            let node = Rc::new(node);
            if anchor > 0 {
                self.anchors.insert(anchor, (Rc::clone(&node), Measure::ONE));
            }
            self.place(node, Measure::ONE);
            return Ok(());
        };
        let Kind::Scalar { text, plain } = &node.kind else { return Ok(()) };
        let mark = node.mark;
        let found = match seen.get(text) {
            _ if *plain && text == "<<" => {
                Some(Flaw { expected: Some("the keys written out"), ..flaw(mark, "merge keys (`<<`) are not supported") })
            }
            Some(first) => Some(flaw(mark, format!("duplicate key; the first is at {}:{}", first.line, first.column))),
            None => {
                seen.insert(text.clone(), mark);
                None
            }
        };
        *key = Some(node);
        if let Some(flaw) = found {
            self.report(flaw);
        }
        Ok(())
    }

    fn open(&mut self, mark: Mark, anchor: usize, open: Open) -> Result<(), Flaw> {
        self.refuse_key(mark)?;
        self.count(mark, Measure::ONE)?;
        self.stack.push(Frame { mark, anchor, measure: Measure::ONE, open });
        Ok(())
    }

    fn close(&mut self) {
        let Some(Frame { mark, anchor, measure, open }) = self.stack.pop() else { return };
        let kind = match open {
            Open::Sequence(items) => Kind::Sequence(items),
            Open::Mapping { entries, .. } => Kind::Mapping(entries),
        };
        let node = Rc::new(Node { mark, kind });
        if anchor > 0 {
            self.anchors.insert(anchor, (Rc::clone(&node), measure));
        }
        self.place(node, measure);
    }

    /// Puts a finished value where it belongs.
    fn place(&mut self, node: Rc<Node>, child: Measure) {
        let Some(Frame { measure, open, .. }) = self.stack.last_mut() else {
            self.root = Some(node);
            return;
        };
        measure.add(child);
        match open {
            Open::Sequence(items) => items.push(node),
            Open::Mapping { entries, key, .. } => {
                if let Some(key) = key.take() {
                    entries.push((key, node));
                }
            }
        }
    }

    /// Bounds what aliases and nesting can make of a small file, before it is made.
    fn count(&mut self, mark: Mark, measure: Measure) -> Result<(), Flaw> {
        self.nodes = self.nodes.saturating_add(measure.nodes);
        if self.nodes > MOST_NODES {
            return Err(Flaw { expected: Some("at most 1000000"), ..flaw(mark, "too many values once aliases are expanded") });
        }
        if self.stack.len() + measure.height > DEEPEST {
            return Err(Flaw { expected: Some("at most 64 levels"), ..flaw(mark, "nested too deeply") });
        }
        Ok(())
    }

    fn refuse_key(&self, mark: Mark) -> Result<(), Flaw> {
        match self.stack.last() {
            Some(Frame { open: Open::Mapping { key: None, .. }, .. }) => {
                Err(Flaw { expected: Some("a single word"), ..flaw(mark, "a list, a mapping or an alias as a key") })
            }
            _ => Ok(()),
        }
    }

    fn refuse_tag(&mut self, mark: Mark, tag: Option<&Tag>) {
        if tag.is_some() {
            self.report(flaw(mark, "tags (`!...`) are not supported"));
        }
    }

    fn report(&mut self, flaw: Flaw) {
        let Flaw { mark, message, expected } = flaw;
        let place = Place { file: Arc::clone(self.file), line: mark.line, column: mark.column, path: self.path().into() };
        let problem = Problem::at(&place, message);
        self.problems.push(match expected {
            Some(expected) => problem.expected(expected),
            None => problem,
        });
    }

    fn path(&self) -> String {
        let mut path = String::new();
        for frame in &self.stack {
            match &frame.open {
                Open::Sequence(items) => path.push_str(&format!("[{}]", items.len())),
                Open::Mapping { key: Some(Node { kind: Kind::Scalar { text, .. }, .. }), .. } => push_key(&mut path, text),
                Open::Mapping { .. } => {}
            }
        }
        path
    }
}

/// Appends a key to a path; one that is long or holds more than a word may hold is shortened and escaped.
pub(crate) fn push_key(path: &mut String, key: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    path.extend(key.chars().take(64).flat_map(char::escape_debug));
}

fn mark_after(text: &str) -> Mark {
    let lines = text.matches('\n').count();
    let column = text.rsplit('\n').next().unwrap_or_default().chars().count();
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).saturating_add(1);
    Mark { line: number(lines), column: number(column) }
}
