//! What a limit counts by: the parts of a key, put together without allocating and never confused with those of another.

use std::fmt;

/// A key with what stands of it fills one cache line.
const KEY_BYTES: usize = 40;

/// As much of the parts as is kept as it is; more is kept as its SHA-256. A tagged UUID or SHA-256 still fits.
const ROOM: usize = KEY_BYTES - 1;

/// Stands for the length of parts that are kept as their SHA-256.
const DIGEST: u8 = u8::MAX;

/// What is counted. The last byte is the length, so that parts and digests are told apart; what is not used is zero.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key([u8; KEY_BYTES]);

impl Key {
    /// The same bytes for the same parts on every node and in every version, and never those of other parts.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The key of these bytes, as they were written down.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    fn new(parts: [u8; ROOM], length: u8) -> Self {
        let mut bytes = [length; KEY_BYTES];
        bytes.iter_mut().zip(parts).for_each(|(byte, part)| *byte = part);
        Self(bytes)
    }
}

impl fmt::Debug for Key {
    /// Silent: a limit may count by a header that holds a secret.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Key")
    }
}

impl std::hash::Hash for Key {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        // One write of a fixed size is what the hasher is fastest at.
        state.write(&self.0);
    }
}

/// Puts a [`Key`] together.
pub struct KeyBuilder {
    parts: [u8; ROOM],
    length: usize,
    digest: Option<openssl::sha::Sha256>,
}

impl Default for KeyBuilder {
    fn default() -> Self {
        Self { parts: [0; ROOM], length: 0, digest: None }
    }
}

impl KeyBuilder {
    /// Adds a part; the tag tells parts of different kinds apart, and each part carries its length.
    pub fn part(&mut self, tag: u8, part: &[u8]) {
        self.write(&[tag]);
        // Seven bits a byte, the last without the eighth: one byte for nearly every part.
        let mut length = part.len();
        while length >= 0x80 {
            self.write(&[length as u8 | 0x80]);
            length >>= 7;
        }
        self.write(&[length as u8]);
        self.write(part);
    }

    /// The key of all parts.
    pub fn finish(self) -> Key {
        let Some(digest) = self.digest else { return Key::new(self.parts, self.length as u8) };
        let mut parts = [0; ROOM];
        parts.iter_mut().zip(digest.finish()).for_each(|(byte, digest)| *byte = digest);
        Key::new(parts, DIGEST)
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.digest.is_none()
            && let Some(room) = self.parts.get_mut(self.length..self.length + bytes.len())
        {
            room.copy_from_slice(bytes);
            self.length += bytes.len();
            return;
        }
        let written = self.parts.get(..self.length).unwrap_or_default();
        let digest = self.digest.get_or_insert_with(|| {
            let mut digest = openssl::sha::Sha256::new();
            digest.update(written);
            digest
        });
        digest.update(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: impl AsRef<[u8]>) -> Key {
        let mut key = KeyBuilder::default();
        key.part(0, text.as_ref());
        key.finish()
    }

    #[test]
    fn keys_of_any_length_are_told_apart() {
        let mut keys = vec![KeyBuilder::default().finish()];
        for length in 0..300 {
            keys.push(key(vec![0; length]));
            keys.push(key(vec![1; length + 1]));
        }
        let two = |first: &str, second: &str| {
            let mut key = KeyBuilder::default();
            key.part(0, first.as_bytes());
            key.part(0, second.as_bytes());
            key.finish()
        };
        keys.extend([two("ab", "c"), two("a", "bc"), two("abc", ""), two(&"a".repeat(60), "b"), two("a", &("a".repeat(59) + "b"))]);
        let mut tagged = KeyBuilder::default();
        tagged.part(1, b"abc");
        keys.extend([tagged.finish(), key("abc")]);
        for (at, one) in keys.iter().enumerate() {
            assert!(keys.iter().skip(at + 1).all(|other| other != one), "{at}");
        }
    }

    #[test]
    fn a_uuid_and_a_digest_are_kept_whole_and_a_longer_part_as_its_digest() {
        let is_whole = |length: usize| key(vec![b'a'; length]).as_bytes().last() != Some(&DIGEST);
        assert!(is_whole(32) && is_whole(36) && is_whole(37));
        assert!(!is_whole(38));
    }

    #[test]
    fn a_key_is_written_down_in_the_form_that_it_always_had() {
        let mut bytes = [0; KEY_BYTES];
        bytes[..6].copy_from_slice(b"\x00\x04acme");
        bytes[KEY_BYTES - 1] = 6;
        assert_eq!(key("acme").as_bytes(), bytes);
        assert_eq!(Key::from_bytes(&bytes), Some(key("acme")));
        let digest: String = key([7; 60]).as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(digest, "b493f1d2ac4ae98c4fe85087ba721d589778b32c7c232cb9c0a1fb44b225bd8f00000000000000ff");
        assert_eq!(Key::from_bytes(&bytes[1..]), None);
    }

    #[test]
    fn a_key_does_not_show_what_it_holds() {
        assert_eq!(format!("{:?}", key("secret")), "Key");
    }
}
