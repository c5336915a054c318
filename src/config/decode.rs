//! From marked YAML to typed values: one description of a mapping makes its struct, its strict reading, its defaults and its JSON Schema.
//!
//! A decoder that answers `None` has reported why; one that answers `Some` may have reported as well, and then the whole is refused all the
//! same. So nothing here stops at the first problem.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use serde_json::{Map as Object, Value, json};

use super::File;
use super::problem::{At, Place, Problem, Problems, nearest};
use super::source::Source;
use super::yaml::{self, Kind, Mark, Node};

/// How a value is read. Implemented by the values themselves, and by marker types that read a common value in a narrower way.
pub(crate) trait Decode {
    /// What reading gives.
    type Value;

    /// Reads the value. `None`: a problem was reported.
    fn decode(node: &Node, context: &mut Context<'_>) -> Option<Self::Value>;

    /// What would be right here, for messages.
    fn expected() -> String;

    /// The JSON Schema; mappings put theirs into `definitions` and answer a reference.
    fn schema(definitions: &mut Object<String, Value>) -> Value;
}

/// A value that is written as one word.
pub(crate) trait Scalar {
    /// What reading gives.
    type Value;

    /// Whether it must stand without quotes, as numbers and booleans do.
    const PLAIN: bool = false;

    /// Reads the text, or says what is wrong with it; quotes it only when no secret can be meant.
    fn parse(text: &str) -> Result<Self::Value, String>;

    /// What would be right here, for messages.
    fn expected() -> String;

    /// The JSON Schema.
    fn schema() -> Value;
}

impl<S: Scalar> Decode for S {
    type Value = S::Value;

    fn decode(node: &Node, context: &mut Context<'_>) -> Option<S::Value> {
        let Kind::Scalar { text, plain } = &node.kind else {
            return context.refuse_kind(node, <S as Scalar>::expected());
        };
        if node.is_null() {
            return context.refuse_kind(node, <S as Scalar>::expected());
        }
        if S::PLAIN && !plain {
            return context.refuse(node, "a text in quotes", <S as Scalar>::expected());
        }
        match S::parse(text) {
            Ok(value) => Some(value),
            Err(message) => context.refuse(node, message, <S as Scalar>::expected()),
        }
    }

    fn expected() -> String {
        <S as Scalar>::expected()
    }

    fn schema(_: &mut Object<String, Value>) -> Value {
        <S as Scalar>::schema()
    }
}

/// What decoders share: where they are, what they may read, and what they found wrong.
pub(crate) struct Context<'a> {
    source: &'a dyn Source,
    /// What relative paths are relative to.
    folder: PathBuf,
    file: Arc<str>,
    path: String,
    pub(crate) problems: Problems,
    /// Every file that was named, read or not.
    pub(crate) files: Vec<PathBuf>,
}

impl<'a> Context<'a> {
    pub(crate) fn new(config: &Path, source: &'a dyn Source) -> Self {
        Self {
            source,
            folder: config.parent().unwrap_or(Path::new("")).to_owned(),
            file: config.display().to_string().into(),
            path: String::new(),
            problems: Problems::default(),
            files: Vec::new(),
        }
    }

    /// The place of a node that is being decoded.
    pub(crate) fn place(&self, node: &Node) -> Place {
        self.place_at(node.mark)
    }

    /// The place of the file as a whole.
    pub(crate) fn start(&self) -> Place {
        self.place_at(Mark::START)
    }

    fn place_at(&self, mark: Mark) -> Place {
        Place { file: Arc::clone(&self.file), line: mark.line, column: mark.column, path: self.path.as_str().into() }
    }

    /// Reports a problem and gives the answer of a decoder that failed.
    pub(crate) fn refuse<T>(&mut self, node: &Node, message: impl Into<String>, expected: impl Into<String>) -> Option<T> {
        self.report(Problem::at(&self.place(node), message).expected(expected));
        None
    }

    /// Reports that another kind of value stands here. The value itself is not shown: it may be a secret in the wrong place.
    pub(crate) fn refuse_kind<T>(&mut self, node: &Node, expected: impl Into<String>) -> Option<T> {
        self.refuse(node, format!("{} stands here", node.describe()), expected)
    }

    pub(crate) fn report(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    /// Goes on one key deeper.
    pub(crate) fn key<T>(&mut self, key: &str, inner: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        yaml::push_key(&mut self.path, key);
        let value = inner(self);
        self.path.truncate(length);
        value
    }

    /// Goes on into an item of a list.
    pub(crate) fn item<T>(&mut self, index: impl Display, inner: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        self.path.push_str(&format!("[{index}]"));
        let value = inner(self);
        self.path.truncate(length);
        value
    }

    /// A path as written, seen from the configuration's folder.
    pub(crate) fn resolve(&self, path: &str) -> PathBuf {
        self.folder.join(path)
    }

    /// Reads the file that `node` names.
    pub(crate) fn read(&mut self, node: &Node, path: &str) -> Option<File> {
        let path = self.resolve(path);
        let place = self.place(node);
        let bytes = self.bytes(&path, &place)?;
        if bytes.is_empty() {
            return self.refuse(node, format!("`{}` is empty", path.display()), "a file with content");
        }
        Some(File { path, bytes: bytes.into(), place })
    }

    /// The bytes of a file; `None`: reported at `place`.
    pub(crate) fn bytes(&mut self, path: &Path, place: &Place) -> Option<Vec<u8>> {
        if !self.files.iter().any(|known| known == path) {
            self.files.push(path.to_owned());
        }
        match self.source.read(path) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                self.report(Problem::at(place, format!("cannot read `{}`: {error}", path.display())).expected("a readable file"));
                None
            }
        }
    }

    /// Decodes a whole YAML file.
    pub(crate) fn document<D: Decode>(&mut self, path: &Path, bytes: &[u8]) -> Option<D::Value> {
        self.within(path, |context| {
            let root = yaml::parse(&context.file, bytes, &mut context.problems)?;
            D::decode(&root, context)
        })
    }

    /// Goes on in another file: what is found wrong is reported there.
    pub(crate) fn within<T>(&mut self, path: &Path, inner: impl FnOnce(&mut Self) -> T) -> T {
        let file = std::mem::replace(&mut self.file, path.display().to_string().into());
        let outer = std::mem::take(&mut self.path);
        let value = inner(self);
        self.file = file;
        self.path = outer;
        value
    }

    pub(crate) fn env(&self, name: &str) -> Option<String> {
        self.source.env(name)
    }
}

/// A mapping whose keys are known, opened: the unknown ones are reported.
pub(crate) struct Fields<'n> {
    node: &'n Node,
    entries: &'n [(Node, Rc<Node>)],
}

impl<'n> Fields<'n> {
    pub(crate) fn open(node: &'n Node, context: &mut Context<'_>, keys: &[&str]) -> Option<Self> {
        let Kind::Mapping(entries) = &node.kind else {
            return context.refuse_kind(node, format!("a mapping of {}", listed(keys)));
        };
        for (key, _) in entries {
            let Kind::Scalar { text, .. } = &key.kind else { continue };
            if keys.contains(&text.as_str()) || text == "<<" {
                continue;
            }
            if context.problems.are_full() {
                break;
            }
            let message = format!("unknown key{}", nearest_of(text, keys));
            context.key(text, |context| context.refuse::<()>(key, message, listed(keys)));
        }
        Some(Self { node, entries })
    }

    /// The value of a key, if it is written.
    pub(crate) fn written(&self, name: &str) -> Option<&'n Node> {
        self.entries.iter().find(|(key, _)| matches!(&key.kind, Kind::Scalar { text, .. } if text == name)).map(|(_, value)| &**value)
    }

    pub(crate) fn required<D: Decode>(&self, context: &mut Context<'_>, key: &str) -> Option<D::Value> {
        match self.written(key) {
            Some(node) => context.key(key, |context| D::decode(node, context)),
            None => context.refuse(self.node, format!("missing key `{key}`"), D::expected()),
        }
    }

    /// The default is written in YAML and read as if the operator had written it.
    pub(crate) fn default<D: Decode>(&self, context: &mut Context<'_>, key: &str, default: &str) -> Option<D::Value> {
        context.key(key, |context| match self.written(key) {
            Some(node) => D::decode(node, context),
            None => {
                let node = yaml::parse(&Arc::from("default"), default.as_bytes(), &mut context.problems)?;
                D::decode(&node, context)
            }
        })
    }

    pub(crate) fn optional<D: Decode<Value: Default>>(&self, context: &mut Context<'_>, key: &str) -> Option<D::Value> {
        match self.written(key) {
            Some(node) => context.key(key, |context| D::decode(node, context)),
            None => Some(D::Value::default()),
        }
    }

    /// Reports a problem with the mapping as a whole.
    pub(crate) fn refuse(&self, context: &mut Context<'_>, message: impl Into<String>, expected: impl Into<String>) {
        context.refuse::<()>(self.node, message, expected);
    }

    /// The place of an item of the list under `key`.
    pub(crate) fn item(&self, key: &str, index: usize, context: &mut Context<'_>) -> Place {
        let node = match self.written(key) {
            Some(Node { kind: Kind::Sequence(items), .. }) => items.get(index).map_or(self.node, |item| &**item),
            _ => self.node,
        };
        context.key(key, |context| context.item(index, |context| context.place(node)))
    }

    /// Refuses the mapping unless exactly one of these keys is written.
    pub(crate) fn one_of(&self, context: &mut Context<'_>, keys: &[&str]) -> Option<()> {
        let written: Vec<&str> = keys.iter().copied().filter(|key| self.written(key).is_some()).collect();
        match written.len() {
            1 => Some(()),
            0 => context.refuse(self.node, "a choice is missing", format!("exactly one of {}", listed(keys))),
            _ => context.refuse(self.node, format!("{} exclude each other", listed(&written)), format!("exactly one of {}", listed(keys))),
        }
    }
}

/// Names for a message: `a`, `b`.
pub(crate) fn listed(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

impl<D: Decode> Decode for Option<D> {
    type Value = Option<D::Value>;

    fn decode(node: &Node, context: &mut Context<'_>) -> Option<Self::Value> {
        D::decode(node, context).map(Some)
    }

    fn expected() -> String {
        D::expected()
    }

    fn schema(definitions: &mut Object<String, Value>) -> Value {
        D::schema(definitions)
    }
}

impl<D: Decode> Decode for At<D> {
    type Value = At<D::Value>;

    fn decode(node: &Node, context: &mut Context<'_>) -> Option<Self::Value> {
        let value = D::decode(node, context)?;
        Some(At { value, place: context.place(node) })
    }

    fn expected() -> String {
        D::expected()
    }

    fn schema(definitions: &mut Object<String, Value>) -> Value {
        D::schema(definitions)
    }
}

impl<D: Decode> Decode for Vec<D> {
    type Value = Vec<D::Value>;

    fn decode(node: &Node, context: &mut Context<'_>) -> Option<Self::Value> {
        let Kind::Sequence(items) = &node.kind else {
            return context.refuse_kind(node, Self::expected());
        };
        let read: Vec<_> = items.iter().enumerate().map(|(index, item)| context.item(index, |context| D::decode(item, context))).collect();
        read.into_iter().collect()
    }

    fn expected() -> String {
        format!("a list, each item {}", D::expected())
    }

    fn schema(definitions: &mut Object<String, Value>) -> Value {
        json!({"type": "array", "items": D::schema(definitions)})
    }
}

/// A list that says something: an empty one would mean everything or nothing by accident.
pub(crate) struct NonEmpty<L>(std::marker::PhantomData<L>);

impl<T, L: Decode<Value = Vec<T>>> Decode for NonEmpty<L> {
    type Value = Vec<T>;

    fn decode(node: &Node, context: &mut Context<'_>) -> Option<Self::Value> {
        let list = L::decode(node, context)?;
        if list.is_empty() {
            return context.refuse(node, "an empty list", "at least one item, or the key left out where it is optional");
        }
        Some(list)
    }

    fn expected() -> String {
        L::expected()
    }

    fn schema(definitions: &mut Object<String, Value>) -> Value {
        let mut schema = L::schema(definitions);
        let list = match schema.get_mut("anyOf") {
            Some(forms) => forms.get_mut(1),
            None => Some(&mut schema),
        };
        if let Some(Value::Object(list)) = list {
            list.insert("minItems".to_owned(), 1.into());
        }
        schema
    }
}

/// One item, or a list of them.
pub(crate) struct OneOrMany<D>(std::marker::PhantomData<D>);

impl<D: Decode> Decode for OneOrMany<D> {
    type Value = Vec<D::Value>;

    fn decode(node: &Node, context: &mut Context<'_>) -> Option<Self::Value> {
        match &node.kind {
            Kind::Sequence(_) => Vec::<D>::decode(node, context),
            _ => D::decode(node, context).map(|one| vec![one]),
        }
    }

    fn expected() -> String {
        format!("{}, or a list of these", D::expected())
    }

    fn schema(definitions: &mut Object<String, Value>) -> Value {
        let item = D::schema(definitions);
        json!({"anyOf": [item, {"type": "array", "items": item}]})
    }
}

/// A mapping whose keys the operator chooses, in the order of the file.
pub(crate) struct Map<K, V>(std::marker::PhantomData<(K, V)>);

impl<K: Scalar, V: Decode> Decode for Map<K, V> {
    type Value = Vec<(At<K::Value>, V::Value)>;

    fn decode(node: &Node, context: &mut Context<'_>) -> Option<Self::Value> {
        let Kind::Mapping(entries) = &node.kind else {
            return context.refuse_kind(node, <Self as Decode>::expected());
        };
        let mut read = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            let Kind::Scalar { text, .. } = &key.kind else { continue };
            read.push(context.key(text, |context| {
                let key = At::<K>::decode(key, context);
                let value = V::decode(value, context);
                Some((key?, value?))
            }));
        }
        read.into_iter().collect()
    }

    fn expected() -> String {
        format!("a mapping from {} to {}", <K as Scalar>::expected(), V::expected())
    }

    fn schema(definitions: &mut Object<String, Value>) -> Value {
        json!({"type": "object", "propertyNames": <K as Scalar>::schema(), "additionalProperties": V::schema(definitions)})
    }
}

/// The value of a default, for the schema.
pub(crate) fn default_as_json(default: &str) -> Value {
    fn json(node: &Node) -> Value {
        match &node.kind {
            Kind::Scalar { text, plain: true } if matches!(text.as_str(), "true" | "false") => Value::Bool(text == "true"),
            Kind::Scalar { text, plain: true } => match text.parse::<serde_json::Number>() {
                Ok(number) => Value::Number(number),
                Err(_) => Value::String(text.clone()),
            },
            Kind::Scalar { text, plain: false } => Value::String(text.clone()),
            Kind::Sequence(items) => items.iter().map(|item| json(item)).collect(),
            Kind::Mapping(entries) => Value::Object(
                entries
                    .iter()
                    .filter_map(|(key, value)| match &key.kind {
                        Kind::Scalar { text, .. } => Some((text.clone(), json(value))),
                        _ => None,
                    })
                    .collect(),
            ),
        }
    }
    let node = yaml::parse(&Arc::from("default"), default.as_bytes(), &mut Problems::default());
    node.map_or(Value::Null, |node| json(&node))
}

/// Describes mappings: for each the struct, its strict reading, its defaults and its JSON Schema.
///
/// ```text
/// /// What it is.
/// #[one_of(a, b)]            exactly one of these keys is written
/// #[checked(function)]       called with the value, its fields and the context once all keys were read
/// struct Name {
///     /// What it says.
///     key: Type as Shape = "default",
/// }
/// ```
/// `as Shape` reads a common type in a narrower way. Without `=` the key is required; a default is written in YAML; `= absent` is the
/// type's own default, for which nothing can be written.
macro_rules! grammar {
    ($(
        $(#[doc = $doc:literal])+
        $(#[derive($($derive:ident),+)])?
        $(#[one_of($($one:ident),+)])?
        $(#[checked($check:path)])?
        $visibility:vis struct $name:ident {
            $( $(#[doc = $about:literal])+ $key:ident : $type:ty $(as $shape:ty)? $(= $default:tt)? ),+ $(,)?
        }
    )+) => {$(
        $(#[doc = $doc])+
        #[derive(Debug, Clone $(, $($derive),+)?)]
        $visibility struct $name {
            $( $(#[doc = $about])+ pub $key: $type, )+
        }

        impl $crate::config::decode::Decode for $name {
            type Value = Self;

            fn decode(node: &$crate::config::yaml::Node, context: &mut $crate::config::decode::Context<'_>) -> Option<Self> {
                let fields = $crate::config::decode::Fields::open(node, context, &[$(stringify!($key)),+])?;
                let chosen = Some(());
                $( let chosen = chosen.and(fields.one_of(context, &[$(stringify!($one)),+])); )?
                $( let $key = grammar!(@read fields, context, stringify!($key), ($type $(as $shape)?) $($default)?); )+
                chosen?;
                let value = Self { $($key: $key?),+ };
                $( $check(&value, &fields, context); )?
                Some(value)
            }

            fn expected() -> String {
                format!("a mapping of {}", $crate::config::decode::listed(&[$(stringify!($key)),+]))
            }

            fn schema(definitions: &mut serde_json::Map<String, serde_json::Value>) -> serde_json::Value {
                let name = stringify!($name).trim_start_matches("Written");
                if !definitions.contains_key(name) {
                    definitions.insert(name.to_owned(), serde_json::Value::Null);
                    let mut schema = $crate::config::decode::ObjectSchema::new(concat!($($doc, "\n"),+));
                    $(
                        let value = grammar!(@schema definitions, ($type $(as $shape)?));
                        schema.property(stringify!($key), concat!($($about, "\n"),+), value, grammar!(@default $($default)?));
                    )+
                    $( schema.one_of(&[$(stringify!($one)),+]); )?
                    definitions.insert(name.to_owned(), schema.into());
                }
                serde_json::json!({"$ref": format!("#/$defs/{name}")})
            }
        }
    )+};

    (@read $fields:ident, $context:ident, $key:expr, ($type:ty as $shape:ty) $($default:tt)?) => {
        grammar!(@read $fields, $context, $key, ($shape) $($default)?)
    };
    (@read $fields:ident, $context:ident, $key:expr, ($shape:ty)) => { $fields.required::<$shape>($context, $key) };
    (@read $fields:ident, $context:ident, $key:expr, ($shape:ty) absent) => { $fields.optional::<$shape>($context, $key) };
    (@read $fields:ident, $context:ident, $key:expr, ($shape:ty) $default:literal) => {
        $fields.default::<$shape>($context, $key, $default)
    };
    (@schema $definitions:ident, ($type:ty as $shape:ty)) => { grammar!(@schema $definitions, ($shape)) };
    (@schema $definitions:ident, ($shape:ty)) => { <$shape as $crate::config::decode::Decode>::schema($definitions) };
    (@default) => { $crate::config::decode::Presence::Required };
    (@default absent) => { $crate::config::decode::Presence::Optional };
    (@default $default:literal) => { $crate::config::decode::Presence::Default($default) };
}
pub(crate) use grammar;

/// Describes a closed set of words: the enum, its reading and its schema.
macro_rules! words {
    ($(
        $(#[doc = $doc:literal])+
        $visibility:vis enum $name:ident { $( $(#[doc = $about:literal])+ $variant:ident = $word:literal ),+ $(,)? }
    )+) => {$(
        $(#[doc = $doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        $visibility enum $name { $( $(#[doc = $about])+ $variant, )+ }

        impl $crate::config::decode::Scalar for $name {
            type Value = Self;

            fn parse(text: &str) -> Result<Self, String> {
                match text {
                    $( $word => Ok(Self::$variant), )+
                    _ => Err($crate::config::decode::unknown_word(text, &[$($word),+])),
                }
            }

            fn expected() -> String {
                format!("one of {}", $crate::config::decode::listed(&[$($word),+]))
            }

            fn schema() -> serde_json::Value {
                serde_json::json!({"enum": [$($word),+]})
            }
        }
    )+};
}
pub(crate) use words;

/// What to say of a word that is none of the known ones.
pub(crate) fn unknown_word(text: &str, words: &[&str]) -> String {
    format!("unknown word{}", nearest_of(text, words))
}

/// The end of a message about an unknown name: what was probably meant.
pub(crate) fn nearest_of(text: &str, names: &[&str]) -> String {
    nearest(text, names.iter().copied()).map_or_else(String::new, |near| format!("; did you mean `{near}`?"))
}

/// How a key may be left out.
pub(crate) enum Presence {
    Required,
    Optional,
    Default(&'static str),
}

/// The JSON Schema of a mapping, while it grows.
pub(crate) struct ObjectSchema {
    description: String,
    properties: Object<String, Value>,
    required: Vec<Value>,
    one_of: Vec<Value>,
}

impl ObjectSchema {
    pub(crate) fn new(documentation: &str) -> Self {
        Self { description: prose(documentation), properties: Object::new(), required: Vec::new(), one_of: Vec::new() }
    }

    pub(crate) fn property(&mut self, key: &str, documentation: &str, mut schema: Value, presence: Presence) {
        if let Some(schema) = schema.as_object_mut() {
            schema.insert("description".to_owned(), prose(documentation).into());
            match presence {
                Presence::Required => self.required.push(key.into()),
                Presence::Optional => {}
                Presence::Default(default) => {
                    schema.insert("default".to_owned(), default_as_json(default));
                }
            }
        }
        self.properties.insert(key.to_owned(), schema);
    }

    pub(crate) fn one_of(&mut self, keys: &[&str]) {
        self.one_of = keys.iter().map(|key| json!({"required": [key]})).collect();
    }
}

impl From<ObjectSchema> for Value {
    fn from(object: ObjectSchema) -> Self {
        let mut schema = json!({
            "type": "object",
            "description": object.description,
            "properties": object.properties,
            "additionalProperties": false,
        });
        if let Some(schema) = schema.as_object_mut() {
            if !object.required.is_empty() {
                schema.insert("required".to_owned(), object.required.into());
            }
            if !object.one_of.is_empty() {
                schema.insert("oneOf".to_owned(), object.one_of.into());
            }
        }
        schema
    }
}

/// The text of a doc comment as one paragraph.
fn prose(documentation: &str) -> String {
    documentation.split_whitespace().collect::<Vec<_>>().join(" ")
}
