//! The head fields of an upstream's request, where they are set and removed: a table, or a list that is written out.
//!
//! A request has some ten fields, and some ten more are set: going through a list costs less than copying a table and hashing each name.

use std::ops::Range;

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
    received: SmallVec<[(&'a HeaderName, &'a [u8]); 16]>,
    /// The names that were set, and how long the line of each is.
    set: SmallVec<[(&'a HeaderName, usize); 16]>,
    /// The lines that were set, one behind the other, as they are sent.
    text: Vec<u8>,
    /// The [`mark`] of each name that was ever there: most that are set were not, and need not be looked for.
    marks: u64,
}

impl<'a> FieldList<'a> {
    /// The fields as they were received.
    pub fn new(received: &'a HeaderMap) -> Self {
        let mut list = Self { received: SmallVec::new(), set: SmallVec::new(), text: Vec::with_capacity(512), marks: 0 };
        for (name, value) in received {
            list.marks |= mark(name.as_str().as_bytes());
            list.received.push((name, value.as_bytes()));
        }
        list
    }

    /// Writes every line with its end.
    pub fn write(&self, head: &mut BytesMut) {
        for (name, value) in &self.received {
            for part in [name.as_str().as_bytes(), b": ", value, b"\r\n"] {
                head.put_slice(part);
            }
        }
        head.put_slice(&self.text);
    }

    fn may_have(&self, name: &HeaderName) -> bool {
        self.marks & mark(name.as_str().as_bytes()) != 0
    }

    fn cut(&mut self, name: &HeaderName) {
        self.received.retain(|(own, _)| *own != name);
        // One line at most, as each that is set takes the place of the one before.
        let found = self.lines_set().enumerate().find(|(_, (own, _))| *own == name);
        if let Some((at, (_, line))) = found {
            self.set.remove(at);
            self.text.drain(line);
        }
    }

    /// The names that were set, and where their lines are.
    fn lines_set(&self) -> impl Iterator<Item = (&'a HeaderName, Range<usize>)> {
        let mut end = 0;
        self.set.iter().map(move |(name, length)| {
            end += length;
            (*name, end - length..end)
        })
    }
}

/// One bit of 64 that a name has in any case of its letters, and few others: by its length and the letter in its middle.
pub fn mark(name: &[u8]) -> u64 {
    let middle = name.get(name.len() / 2).map_or(0, |letter| letter | 0x20);
    1 << ((name.len() + 13 * usize::from(middle)) % 64)
}

impl<'a> Fields<'a> for FieldList<'a> {
    fn names(&self) -> impl Iterator<Item = &HeaderName> {
        self.received.iter().map(|(name, _)| *name).chain(self.set.iter().map(|(name, _)| *name))
    }

    fn lines(&self, name: &HeaderName) -> impl Iterator<Item = &[u8]> {
        let own = move |own: &HeaderName| own == name;
        let received = self.received.iter().filter(move |(name, _)| own(name)).map(|(_, value)| *value);
        let set = self.lines_set().filter(move |(name, _)| own(name)).map(|(name, line)| {
            let value = line.start + name.as_str().len() + b": ".len()..line.end - b"\r\n".len();
            self.text.get(value).unwrap_or_default()
        });
        self.may_have(name).then(|| received.chain(set)).into_iter().flatten()
    }

    fn remove(&mut self, name: &HeaderName) {
        if self.may_have(name) {
            self.cut(name);
        }
    }

    fn set(&mut self, name: &'a HeaderName, value: &[u8]) {
        Fields::remove(self, name);
        // What ends its line would begin another. To the end in any case: a loop without a way out looks at many bytes at once.
        if value.iter().fold(true, |sound, byte| sound & (*byte == b'\t' || (*byte >= 0x20 && *byte != 0x7f))) {
            let from = self.text.len();
            for part in [name.as_str().as_bytes(), b": ", value, b"\r\n"] {
                self.text.extend_from_slice(part);
            }
            self.set.push((name, self.text.len() - from));
            self.marks |= mark(name.as_str().as_bytes());
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
        fn a_name_has_one_mark_however_its_letters_are_written(name in "[!#$%&'*+.^_`|~0-9A-Za-z-]{1,140}") {
            prop_assert_eq!(mark(name.as_bytes()), mark(name.to_ascii_lowercase().as_bytes()));
            prop_assert_eq!(mark(name.as_bytes()), mark(name.to_ascii_uppercase().as_bytes()));
        }

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
