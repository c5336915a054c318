//! The head fields of an upstream's request, where they are set and removed: a table, or a list that is written out.
//!
//! A request has some ten fields, and some ten more are set: going through a list costs less than copying a table and hashing each name.

use bytes::{BufMut, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;

/// The fields of a head; the names that are set live as long as `'a`.
pub trait Fields<'a> {
    /// Every name, as often as it has lines or once.
    fn names(&self) -> impl Iterator<Item = &HeaderName>;
    /// The lines of a name.
    fn lines(&self, name: &HeaderName) -> impl Iterator<Item = &[u8]>;
    /// Removes every line of a name.
    fn remove(&mut self, name: &HeaderName);
    /// Sets a name to one line; of what is no value of a field nothing is sent.
    fn set(&mut self, name: &'a HeaderName, value: &[u8]);
}

impl<'a> Fields<'a> for HeaderMap {
    fn names(&self) -> impl Iterator<Item = &HeaderName> {
        self.keys()
    }

    fn lines(&self, name: &HeaderName) -> impl Iterator<Item = &[u8]> {
        self.get_all(name).iter().map(HeaderValue::as_bytes)
    }

    fn remove(&mut self, name: &HeaderName) {
        self.remove(name);
    }

    fn set(&mut self, name: &'a HeaderName, value: &[u8]) {
        match HeaderValue::from_bytes(value) {
            Ok(value) => drop(self.insert(name, value)),
            Err(_) => drop(self.remove(name)),
        }
    }
}

/// The fields that were received and not removed, and those that were set.
#[derive(Debug)]
pub struct FieldList<'a> {
    lines: SmallVec<[(&'a HeaderName, Value<'a>); 24]>,
    /// A bit for the length of each name that was ever there: most that are set were not, and need not be looked for.
    lengths: u64,
    /// The values that were set, one behind the other.
    text: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
enum Value<'a> {
    Received(&'a [u8]),
    /// From and to, in the text.
    Set(usize, usize),
}

impl<'a> FieldList<'a> {
    /// The fields as they were received.
    pub fn new(received: &'a HeaderMap) -> Self {
        let mut lengths = 0;
        let lines = received.iter().map(|(name, value)| {
            lengths |= length_bit(name.as_str().len());
            (name, Value::Received(value.as_bytes()))
        });
        Self { lines: lines.collect(), lengths, text: Vec::with_capacity(512) }
    }

    /// Writes every line with its end.
    pub fn write(&self, head: &mut BytesMut) {
        for (name, value) in &self.lines {
            for part in [name.as_str().as_bytes(), b": ", self.value(*value), b"\r\n"] {
                head.put_slice(part);
            }
        }
    }

    fn value<'s>(&'s self, value: Value<'s>) -> &'s [u8] {
        match value {
            Value::Received(value) => value,
            Value::Set(from, to) => self.text.get(from..to).unwrap_or_default(),
        }
    }
}

/// The bit that stands for a name of so many bytes.
pub fn length_bit(length: usize) -> u64 {
    1 << (length % 64)
}

impl<'a> Fields<'a> for FieldList<'a> {
    fn names(&self) -> impl Iterator<Item = &HeaderName> {
        self.lines.iter().map(|(name, _)| *name)
    }

    fn lines(&self, name: &HeaderName) -> impl Iterator<Item = &[u8]> {
        self.lines.iter().filter(move |(own, _)| *own == name).map(|(_, value)| self.value(*value))
    }

    fn remove(&mut self, name: &HeaderName) {
        if self.lengths & length_bit(name.as_str().len()) != 0 {
            self.lines.retain(|(own, _)| *own != name);
        }
    }

    fn set(&mut self, name: &'a HeaderName, value: &[u8]) {
        Fields::remove(self, name);
        // What ends its line would begin another. To the end in any case: a loop without a way out looks at many bytes at once.
        if value.iter().fold(true, |sound, byte| sound & (*byte == b'\t' || (*byte >= 0x20 && *byte != 0x7f))) {
            let from = self.text.len();
            self.text.extend_from_slice(value);
            self.lines.push((name, Value::Set(from, self.text.len())));
            self.lengths |= length_bit(name.as_str().len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sorted<'a>(fields: &impl Fields<'a>) -> Vec<(String, Vec<u8>)> {
        let mut names: Vec<&HeaderName> = fields.names().collect();
        names.sort_by_key(|name| name.as_str());
        names.dedup();
        names.iter().flat_map(|name| fields.lines(name).map(|line| (name.to_string(), line.to_vec()))).collect()
    }

    #[test]
    fn what_is_written_is_what_was_kept_and_what_was_set() {
        let received: HeaderMap = [("host", "a"), ("accept", "x"), ("cookie", "a=1"), ("cookie", "b=2")]
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .into_iter()
            .collect();
        let (host, user) = (http::header::HOST, HeaderName::from_static("x-user-id"));
        let mut fields = FieldList::new(&received);
        fields.set(&host, b"b.test");
        fields.set(&user, b"nobody");
        fields.set(&user, b"caf\xc3\xa9 ");
        Fields::remove(&mut fields, &http::header::ACCEPT);
        let mut head = BytesMut::new();
        fields.write(&mut head);
        assert_eq!(head, &b"cookie: a=1\r\ncookie: b=2\r\nhost: b.test\r\nx-user-id: caf\xc3\xa9 \r\n"[..]);
    }

    proptest! {
        #[test]
        fn a_list_comes_to_the_same_fields_as_a_table(
            received in proptest::collection::vec((0..6usize, "[ -~]{0,6}"), 0..10),
            changes in proptest::collection::vec((0..6usize, any::<bool>(), proptest::collection::vec(any::<u8>(), 0..4)), 0..10),
        ) {
            let names = ["host", "cookie", "x-user-id", "accept", "x-tenant", "authorization"].map(HeaderName::from_static);
            let mut table = HeaderMap::new();
            for (name, value) in &received {
                table.append(&names[*name], HeaderValue::from_str(value).unwrap());
            }
            let received = table.clone();
            let mut list = FieldList::new(&received);
            for (name, set, value) in &changes {
                if *set {
                    Fields::set(&mut table, &names[*name], value);
                    list.set(&names[*name], value);
                } else {
                    Fields::remove(&mut table, &names[*name]);
                    Fields::remove(&mut list, &names[*name]);
                }
            }
            prop_assert_eq!(sorted(&table), sorted(&list));
        }
    }
}
