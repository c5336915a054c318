//! The two dictionaries of a signed message (RFC 8941, as far as RFC 9421 needs them), in the strictest reading: nothing twice, nothing loose.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// More signatures, parts or parameters than this are no request of anybody's.
const MOST: usize = 64;

/// One value: of a parameter, or of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A whole number.
    Integer(i64),
    /// A text in quotes.
    Text(String),
    /// A word.
    Token(String),
    /// `:base64:`.
    Bytes(Vec<u8>),
    /// `?0` or `?1`.
    Boolean(bool),
}

/// Parameters in their order.
pub type Parameters = Vec<(String, Item)>;

/// What one signature covers, and its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Covered {
    /// The parts, each with its parameters.
    pub components: Vec<(String, Parameters)>,
    /// The parameters of the signature.
    pub parameters: Parameters,
}

/// `Signature-Input`: by label, what each signature covers. `None`: not in its form.
pub fn inputs(text: &str) -> Option<Vec<(String, Covered)>> {
    dictionary(text, |reader| {
        let components = reader.inner_list()?;
        Some(Covered { components, parameters: reader.parameters()? })
    })
}

/// `Signature` and `Content-Digest`: bytes by label. `None`: not in its form.
pub fn byte_sequences(text: &str) -> Option<Vec<(String, Vec<u8>)>> {
    dictionary(text, |reader| match (reader.item()?, reader.parameters()?) {
        (Item::Bytes(bytes), parameters) if parameters.is_empty() => Some(bytes),
        _ => None,
    })
}

impl Covered {
    /// The one spelling that is signed (RFC 9421 section 2.3).
    pub fn serialize(&self) -> String {
        let mut text = String::from("(");
        for (at, (name, parameters)) in self.components.iter().enumerate() {
            if at > 0 {
                text.push(' ');
            }
            text.push_str(&identifier(name, parameters));
        }
        text.push(')');
        write_parameters(&mut text, &self.parameters);
        text
    }

    /// The parameter of this name.
    pub fn parameter(&self, name: &str) -> Option<&Item> {
        self.parameters.iter().find(|(own, _)| own == name).map(|(_, item)| item)
    }
}

/// A part as it is named in what is signed.
pub fn identifier(name: &str, parameters: &Parameters) -> String {
    let mut text = String::new();
    write_text(&mut text, name);
    write_parameters(&mut text, parameters);
    text
}

fn write_parameters(out: &mut String, parameters: &Parameters) {
    for (name, item) in parameters {
        out.push(';');
        out.push_str(name);
        match item {
            // RFC 8941 section 4.1.1.2: true is not written.
            Item::Boolean(true) => {}
            Item::Boolean(false) => out.push_str("=?0"),
            Item::Integer(number) => out.push_str(&format!("={number}")),
            Item::Token(token) => out.extend(["=", token]),
            Item::Bytes(bytes) => out.push_str(&format!("=:{}:", STANDARD.encode(bytes))),
            Item::Text(text) => {
                out.push('=');
                write_text(out, text);
            }
        }
    }
}

fn write_text(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        if matches!(character, '"' | '\\') {
            out.push('\\');
        }
        out.push(character);
    }
    out.push('"');
}

fn dictionary<T>(text: &str, mut value: impl FnMut(&mut Reader<'_>) -> Option<T>) -> Option<Vec<(String, T)>> {
    let mut reader = Reader { rest: text.trim_matches(' ') };
    let mut members: Vec<(String, T)> = Vec::new();
    loop {
        let label = reader.key()?;
        reader.expect('=')?;
        let value = value(&mut reader)?;
        // The RFC lets the last one win; whoever put the first there meant something else.
        if members.len() >= MOST || members.iter().any(|(known, _)| *known == label) {
            return None;
        }
        members.push((label, value));
        reader.rest = reader.rest.trim_start_matches([' ', '\t']);
        if reader.rest.is_empty() {
            return Some(members);
        }
        reader.expect(',')?;
        reader.rest = reader.rest.trim_start_matches([' ', '\t']);
    }
}

struct Reader<'t> {
    rest: &'t str,
}

impl<'t> Reader<'t> {
    fn expect(&mut self, character: char) -> Option<()> {
        self.rest = self.rest.strip_prefix(character)?;
        Some(())
    }

    fn take_while(&mut self, fits: impl Fn(u8) -> bool) -> &'t str {
        let end = self.rest.bytes().position(|byte| !fits(byte)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at_checked(end).unwrap_or(("", self.rest));
        self.rest = rest;
        taken
    }

    fn spaces(&mut self) -> usize {
        self.take_while(|byte| byte == b' ').len()
    }

    fn key(&mut self) -> Option<String> {
        let key = self.take_while(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-.*".contains(&byte));
        key.starts_with(|first: char| first.is_ascii_lowercase() || first == '*').then(|| key.to_owned())
    }

    fn inner_list(&mut self) -> Option<Vec<(String, Parameters)>> {
        self.expect('(')?;
        let mut components = Vec::new();
        loop {
            let spaces = self.spaces();
            if self.rest.starts_with(')') {
                self.expect(')')?;
                return Some(components);
            }
            if (spaces == 0 && !components.is_empty()) || components.len() >= MOST {
                return None;
            }
            let component = (self.text()?, self.parameters()?);
            // RFC 9421 section 2: each part once.
            if components.contains(&component) {
                return None;
            }
            components.push(component);
        }
    }

    fn parameters(&mut self) -> Option<Parameters> {
        let mut parameters = Parameters::new();
        while self.rest.starts_with(';') {
            self.expect(';')?;
            self.spaces();
            let name = self.key()?;
            let item = match self.expect('=') {
                Some(()) => self.item()?,
                None => Item::Boolean(true),
            };
            if parameters.len() >= MOST || parameters.iter().any(|(known, _)| *known == name) {
                return None;
            }
            parameters.push((name, item));
        }
        Some(parameters)
    }

    fn item(&mut self) -> Option<Item> {
        match self.rest.bytes().next()? {
            b'"' => self.text().map(Item::Text),
            b':' => {
                self.expect(':')?;
                let (encoded, rest) = self.rest.split_once(':')?;
                self.rest = rest;
                STANDARD.decode(encoded).ok().map(Item::Bytes)
            }
            b'?' => {
                self.expect('?')?;
                match self.take_while(|byte| matches!(byte, b'0' | b'1')) {
                    "0" => Some(Item::Boolean(false)),
                    "1" => Some(Item::Boolean(true)),
                    _ => None,
                }
            }
            b'-' | b'0'..=b'9' => {
                let sign = if self.expect('-').is_some() { -1 } else { 1 };
                let digits = self.take_while(|byte| byte.is_ascii_digit());
                // A decimal has no place in a signature.
                let sound = matches!(digits.len(), 1..=15) && !self.rest.starts_with('.');
                digits.parse::<i64>().ok().filter(|_| sound).map(|number| Item::Integer(sign * number))
            }
            first if first.is_ascii_alphabetic() || first == b'*' => {
                let token = self.take_while(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(&byte));
                Some(Item::Token(token.to_owned()))
            }
            _ => None,
        }
    }

    fn text(&mut self) -> Option<String> {
        self.expect('"')?;
        let mut text = String::new();
        let mut characters = self.rest.char_indices();
        while let Some((at, character)) = characters.next() {
            match character {
                '"' => {
                    self.rest = self.rest.get(at + 1..)?;
                    return Some(text);
                }
                '\\' => text.push(characters.next().map(|(_, escaped)| escaped).filter(|escaped| matches!(escaped, '"' | '\\'))?),
                ' '..='~' => text.push(character),
                _ => return None,
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_its_form_is_written_as_it_is_signed() {
        for (written, signed) in [
            (r#"a=();created=1"#, r#"();created=1"#),
            (r#"a=( "@method"  "date" ); created=007;keyid="k""#, r#"("@method" "date");created=7;keyid="k""#),
            (r#"a=("@query-param";name="x");keyid="q\"\\""#, r#"("@query-param";name="x");keyid="q\"\\""#),
            (r#"a=("x";sf;bs=?1;req=?0);t=tok/en;b=:AA==:;n=-5"#, r#"("x";sf;bs;req=?0);t=tok/en;b=:AA==:;n=-5"#),
        ] {
            let read = inputs(written).unwrap();
            assert_eq!((read.len(), read[0].1.serialize().as_str()), (1, signed));
        }
        assert_eq!(inputs("a=();x=1 ,\tb=()").map(|read| read.len()), Some(2));
        assert_eq!(byte_sequences("sha-256=:AA==:, b=:AAA=:"), Some(vec![("sha-256".into(), vec![0]), ("b".into(), vec![0, 0])]));
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_not_read() {
        for text in [
            "",
            "a",
            "a=",
            "a=1",
            "a=()x",
            "a=(),",
            "a=() b=()",
            "a=(),,b=()",
            "a=(), a=()",
            "A=()",
            "1=()",
            "a=(\"x\"\"y\")",
            "a=(\"x\" \"x\")",
            "a=(x)",
            "a=(\"x\"",
            "a=(\"x)",
            "a=(\"x\\y\")",
            "a=(\"\u{e9}\")",
            "a=();created=1;created=2",
            "a=();created=1.5",
            "a=();created=1234567890123456",
            "a=();created=-",
            "a=();b=?2",
            "a=();b=:A:",
            "a=();b=:AB==:",
            "a=();b=:AA",
            "a=();=1",
            "a=();b=",
        ] {
            assert_eq!(inputs(text), None, "{text}");
        }
        for text in ["a=()", "a=1", "a=:AA==:;p", "a=:A A=:", "a=:AA==:, a=:AA==:"] {
            assert_eq!(byte_sequences(text), None, "{text}");
        }
        let many = |count: usize| (0..count).map(|at| format!("a{at}=()")).collect::<Vec<_>>().join(",");
        assert_eq!((inputs(&many(MOST)).is_some(), inputs(&many(MOST + 1))), (true, None));
    }
}
