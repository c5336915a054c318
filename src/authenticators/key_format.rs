//! The written form of our API keys, `<prefix><id>_<secret><checksum>`: told from other text by a scanner, and from a typo by us.
//!
//! The secret has 256 random bits, so one fast hash at rest is enough: there is nothing to guess that a slow one would protect.

use zeroize::Zeroizing;

/// The random bytes that one key is made of.
pub type Seed = [u8; 32];

/// A new public id: 10 letters and digits (50 bits) that nobody confuses when they read them out.
pub fn compose_id(random: [u8; 10]) -> String {
    const READABLE: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    random.iter().filter_map(|byte| READABLE.get(usize::from(byte % 32))).map(|&letter| char::from(letter)).collect()
}

/// A whole key.
pub fn compose(prefix: &str, id: &str, secret: &Seed) -> Zeroizing<String> {
    let mut key = Zeroizing::new(String::with_capacity(prefix.len() + id.len() + 1 + SECRET + CHECKSUM));
    key.push_str(prefix);
    key.push_str(id);
    key.push('_');
    key.extend(Zeroizing::new(base62::<32, SECRET>(*secret)).iter().map(|&digit| char::from(digit)));
    let checksum = checksum(key.as_bytes());
    key.extend(checksum.map(char::from));
    key
}

/// Whether the last six characters are the checksum of what stands before them.
pub fn checksum_holds(key: &str) -> bool {
    key.as_bytes().split_last_chunk().is_some_and(|(body, stated)| checksum(body) == *stated)
}

/// 43 characters of base62 hold 256 bits, 6 hold 32.
const SECRET: usize = 43;
const CHECKSUM: usize = 6;

fn checksum(body: &[u8]) -> [u8; CHECKSUM] {
    base62(crc32fast::hash(body).to_be_bytes())
}

/// The big-endian number in exactly `WIDTH` digits: schoolbook division, least digit first.
fn base62<const BYTES: usize, const WIDTH: usize>(number: [u8; BYTES]) -> [u8; WIDTH] {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut number = Zeroizing::new(number);
    let mut digits = [0; WIDTH];
    for digit in digits.iter_mut().rev() {
        let mut remainder = 0_u32;
        for byte in number.iter_mut() {
            let value = remainder << 8 | u32::from(*byte);
            *byte = (value / 62) as u8; // below 256: the remainder was below 62
            remainder = value % 62;
        }
        *digit = DIGITS.get(remainder as usize).copied().unwrap_or_default();
    }
    digits
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_are_written_as_the_contract_says() {
        // Computed with Python's integers and zlib.crc32.
        let rows = [
            ([0; 32], "ck_live_7f3k2m9q_00000000000000000000000000000000000000000004CgHpL"),
            ([0xff; 32], "ck_live_7f3k2m9q_yhjskwdA6OZ1AL1YmHWZWm8LLG7HjnuCA2j5rOw8Xp11QfdUx"),
        ];
        for (secret, expected) in rows {
            let key = compose("ck_live_", "7f3k2m9q", &secret);
            assert_eq!(*key, expected);
            assert!(checksum_holds(&key));
        }
        assert_eq!(compose_id([0, 1, 31, 32, 255, 10, 18, 19, 20, 21]), "01z0zajkmn");
    }

    #[test]
    fn text_that_is_too_short_or_no_key_has_no_checksum() {
        for text in ["", "0", "00000", "ck_live_", "ck_live_7f3k2m9q_", "ü000000", "000000ü"] {
            assert!(!checksum_holds(text), "{text}");
        }
    }

    proptest! {
        #[test]
        fn one_wrong_character_is_always_noticed(secret: [u8; 32], at in 0..66_usize, other in "[0-9A-Za-z_]") {
            let key = compose("ck_live_", "7f3k2m9q", &secret);
            prop_assert_eq!(key.len(), 66);
            let mut typo = key.to_string();
            typo.replace_range(at..at + 1, &other);
            prop_assert_eq!(checksum_holds(&typo), typo == *key);
        }

        #[test]
        fn two_neighbours_in_the_wrong_order_are_always_noticed(secret: [u8; 32], at in 0..65_usize) {
            let key = compose("ck_live_", "7f3k2m9q", &secret);
            let mut letters: Vec<char> = key.chars().collect();
            letters.swap(at, at + 1);
            let typo: String = letters.into_iter().collect();
            prop_assert_eq!(checksum_holds(&typo), typo == *key);
        }
    }
}
