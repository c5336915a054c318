//! The one form of a request target, matched by the router and sent upstream, because most bypasses are two parties reading one path
//! in two ways.
//!
//! What a careful client may send (a literal dot segment, `//`, a needless escape) is rewritten to the one form; what only an attacker
//! gains from (an encoded separator, an encoded dot segment, a second layer of encoding) is refused.

use std::borrow::Cow;

use super::Rejection;

/// A request target in its one form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canonical<'a> {
    /// The path: absolute, without dot segments, empty segments or needless escapes. Borrowed when the target had it already.
    pub path: Cow<'a, str>,
    /// What followed the first `?`, as it came.
    pub query: Option<&'a str>,
}

/// Brings a target in origin form (RFC 9112, 3.2.1) to its one form, or refuses it with [`Rejection::AmbiguousPath`].
///
/// It is idempotent: the canonical form of a canonical form is itself. Letter case is kept, as paths are case-sensitive.
pub fn canonical(target: &[u8]) -> Result<Canonical<'_>, Rejection> {
    let target = std::str::from_utf8(target).map_err(|_| Rejection::AmbiguousPath("non_ascii"))?;
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    if !path.starts_with('/') {
        return Err(Rejection::AmbiguousPath("not_origin_form"));
    }
    if let Some(query) = query {
        check_query(query)?;
    }
    let path = if is_plain(path) { Cow::Borrowed(path) } else { rewrite(path)? };
    Ok(Canonical { path, query })
}

/// What a byte means in a path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Byte {
    /// Stands for itself.
    Plain,
    Slash,
    Dot,
    Percent,
    /// Not allowed by RFC 3986, sent by clients all the same, and harmless: stands for its escape.
    Escaped,
    Refused(&'static str),
}

const BYTES: [Byte; 256] = {
    let mut bytes = [Byte::Refused("non_ascii"); 256];
    let mut at = 0;
    while at < 128 {
        #[expect(clippy::indexing_slicing, reason = "evaluated by the compiler")]
        {
            bytes[at] = match at as u8 {
                b'/' => Byte::Slash,
                b'.' => Byte::Dot,
                b'%' => Byte::Percent,
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'~' => Byte::Plain,
                b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b'=' | b':' | b'@' => Byte::Plain,
                b'"' | b'<' | b'>' | b'[' | b']' | b'^' | b'`' | b'{' | b'|' | b'}' => Byte::Escaped,
                // Servlet containers cut a segment at `;`, so `/public/..;/admin` is two paths.
                b';' => Byte::Refused("semicolon"),
                b'\\' => Byte::Refused("backslash"),
                b'#' => Byte::Refused("fragment"),
                b' ' => Byte::Refused("space"),
                _ => Byte::Refused("control"),
            };
        }
        at += 1;
    }
    bytes
};

fn meaning(byte: u8) -> Byte {
    BYTES.get(usize::from(byte)).copied().unwrap_or(Byte::Refused("non_ascii"))
}

/// Whether a path has nothing that [`rewrite`] would have to look at: one pass, and true for nearly every request.
fn is_plain(path: &str) -> bool {
    let mut after_slash = false;
    for byte in path.bytes() {
        match meaning(byte) {
            Byte::Plain => after_slash = false,
            Byte::Slash if !after_slash => after_slash = true,
            Byte::Dot if !after_slash => {}
            _ => return false,
        }
    }
    true
}

fn rewrite(path: &str) -> Result<Cow<'_, str>, Rejection> {
    let mut output = Output { input: path, same: 0, different: None };
    let mut segments = path.split('/').skip(1).peekable();
    let mut seen_empty = false;
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "" | "." => {}
            // Whoever removes dot segments first reads `/a//../b` as `/a/b`, whoever merges slashes first as `/b`.
            ".." if seen_empty => return Err(Rejection::AmbiguousPath("dots_after_empty_segment")),
            ".." => output.pop_segment()?,
            _ => {
                output.push("/");
                push_segment(segment, &mut output)?;
            }
        }
        if last && matches!(segment, "" | "." | "..") {
            output.push("/");
        }
        seen_empty |= segment.is_empty();
    }
    Ok(output.finish())
}

fn push_segment(segment: &str, output: &mut Output<'_>) -> Result<(), Rejection> {
    let start = output.as_str().len();
    let mut rest = segment.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = match meaning(byte) {
            Byte::Plain | Byte::Slash | Byte::Dot => {
                output.push_ascii(byte);
                after
            }
            Byte::Escaped => {
                output.push_escape(byte);
                after
            }
            Byte::Percent => push_decoded(rest, output)?,
            Byte::Refused(reason) => return Err(Rejection::AmbiguousPath(reason)),
        };
    }
    let written = output.as_str().get(start..).unwrap_or_default();
    if matches!(written, "." | "..") {
        return Err(Rejection::AmbiguousPath("encoded_dots"));
    }
    // Looked for in what is written, so that `%25%32%65`, which becomes `%252e`, is found as well.
    if written
        .match_indices("%25")
        .any(|(at, _)| written.as_bytes().get(at + 3..at + 5).is_some_and(|two| two.iter().all(u8::is_ascii_hexdigit)))
    {
        return Err(Rejection::AmbiguousPath("double_encoding"));
    }
    Ok(())
}

/// Writes what the escapes at the head of `rest` stand for: one ASCII character or one whole UTF-8 sequence.
fn push_decoded<'a>(rest: &'a [u8], output: &mut Output<'_>) -> Result<&'a [u8], Rejection> {
    let (first, mut rest) = split_escape(rest)?;
    if first.is_ascii() {
        match first {
            b'/' => return Err(Rejection::AmbiguousPath("encoded_slash")),
            b'\\' => return Err(Rejection::AmbiguousPath("encoded_backslash")),
            b';' => return Err(Rejection::AmbiguousPath("encoded_semicolon")),
            0..0x20 | 0x7f => return Err(Rejection::AmbiguousPath("encoded_control")),
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'~' | b'.' => output.push_ascii(first),
            _ => output.push_escape(first),
        }
        return Ok(rest);
    }
    let length = match first {
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => return Err(Rejection::AmbiguousPath("encoded_invalid_utf8")),
    };
    let mut sequence = [first, 0, 0, 0];
    for byte in sequence.iter_mut().take(length).skip(1) {
        (*byte, rest) = split_escape(rest).map_err(|_| Rejection::AmbiguousPath("encoded_invalid_utf8"))?;
    }
    let sequence = sequence.get(..length).unwrap_or_default();
    // The standard library refuses overlong forms and surrogates, which lenient decoders read as `.` and `/`.
    let decoded = std::str::from_utf8(sequence).map_err(|_| Rejection::AmbiguousPath("encoded_invalid_utf8"))?;
    for character in decoded.chars() {
        if character.is_control() {
            return Err(Rejection::AmbiguousPath("encoded_control"));
        }
        if folds_to_ascii(character) {
            return Err(Rejection::AmbiguousPath("folds_to_ascii"));
        }
    }
    sequence.iter().for_each(|byte| output.push_escape(*byte));
    Ok(rest)
}

fn split_escape(bytes: &[u8]) -> Result<(u8, &[u8]), Rejection> {
    let [b'%', high, low, rest @ ..] = bytes else { return Err(Rejection::AmbiguousPath("bad_escape")) };
    let (Some(high), Some(low)) = (char::from(*high).to_digit(16), char::from(*low).to_digit(16)) else {
        return Err(Rejection::AmbiguousPath("bad_escape"));
    };
    Ok(((high * 16 + low) as u8, rest))
}

fn check_query(query: &str) -> Result<(), Rejection> {
    for byte in query.bytes() {
        match byte {
            b'#' => return Err(Rejection::AmbiguousPath("fragment")),
            b' ' => return Err(Rejection::AmbiguousPath("space")),
            0..0x20 | 0x7f => return Err(Rejection::AmbiguousPath("control")),
            0x80.. => return Err(Rejection::AmbiguousPath("non_ascii")),
            _ => {}
        }
    }
    Ok(())
}

/// The path that is written: as long as it is a prefix of what came, only that prefix's length.
struct Output<'a> {
    input: &'a str,
    same: usize,
    different: Option<String>,
}

impl<'a> Output<'a> {
    fn as_str(&self) -> &str {
        self.different.as_deref().unwrap_or_else(|| self.prefix())
    }

    fn prefix(&self) -> &'a str {
        self.input.get(..self.same).unwrap_or_default()
    }

    fn push(&mut self, text: &str) {
        if let Some(different) = &mut self.different {
            different.push_str(text);
        } else if self.input.get(self.same..).is_some_and(|rest| rest.starts_with(text)) {
            self.same += text.len();
        } else {
            let mut different = String::with_capacity(self.input.len() + 8);
            different.push_str(self.prefix());
            different.push_str(text);
            self.different = Some(different);
        }
    }

    fn push_ascii(&mut self, byte: u8) {
        self.push(char::from(byte).encode_utf8(&mut [0; 4]));
    }

    fn push_escape(&mut self, byte: u8) {
        let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0').to_ascii_uppercase();
        let mut escape = ['%', digit(byte >> 4), digit(byte & 15)].map(|c| c as u8);
        self.push(std::str::from_utf8_mut(&mut escape).unwrap_or_default());
    }

    fn pop_segment(&mut self) -> Result<(), Rejection> {
        let parent = self.as_str().rfind('/').ok_or(Rejection::AmbiguousPath("above_root"))?;
        match &mut self.different {
            Some(different) => different.truncate(parent),
            None => self.same = parent,
        }
        Ok(())
    }

    fn finish(self) -> Cow<'a, str> {
        let prefix = self.prefix();
        self.different.map_or(Cow::Borrowed(prefix), Cow::Owned)
    }
}

/// Whether compatibility normalisation (NFKC) makes ASCII of a character, as some upstreams do after their checks: U+FF0F becomes `/`.
fn folds_to_ascii(character: char) -> bool {
    let code = u32::from(character);
    let after = FOLDS_TO_ASCII.partition_point(|(first, _)| *first <= code);
    after.checked_sub(1).and_then(|at| FOLDS_TO_ASCII.get(at)).is_some_and(|(_, last)| code <= *last)
}

/// Every character of Unicode 18 whose NFKC form has an ASCII character in it; a test derives the list anew.
#[rustfmt::skip]
const FOLDS_TO_ASCII: &[(u32, u32)] = &[
    (0xA0, 0xA0), (0xA8, 0xA8), (0xAA, 0xAA), (0xAF, 0xAF), (0xB2, 0xB4), (0xB8, 0xBA), (0xBC, 0xBE), (0x132, 0x133), (0x13F, 0x140),
    (0x149, 0x149), (0x17F, 0x17F), (0x1C4, 0x1CC), (0x1F1, 0x1F3), (0x2B0, 0x2B0), (0x2B2, 0x2B3), (0x2B7, 0x2B8), (0x2D8, 0x2DD),
    (0x2E1, 0x2E3), (0x37A, 0x37A), (0x37E, 0x37E), (0x384, 0x385), (0x1D2C, 0x1D2C), (0x1D2E, 0x1D2E), (0x1D30, 0x1D31), (0x1D33, 0x1D3A),
    (0x1D3C, 0x1D3C), (0x1D3E, 0x1D43), (0x1D47, 0x1D49), (0x1D4D, 0x1D4D), (0x1D4F, 0x1D50), (0x1D52, 0x1D52), (0x1D56, 0x1D58),
    (0x1D5B, 0x1D5B), (0x1D62, 0x1D65), (0x1D9C, 0x1D9C), (0x1DA0, 0x1DA0), (0x1DBB, 0x1DBB), (0x1E9A, 0x1E9A), (0x1FBD, 0x1FBD),
    (0x1FBF, 0x1FC1), (0x1FCD, 0x1FCF), (0x1FDD, 0x1FDF), (0x1FED, 0x1FEF), (0x1FFD, 0x1FFE), (0x2000, 0x200A), (0x2017, 0x2017),
    (0x2024, 0x2026), (0x202F, 0x202F), (0x203C, 0x203C), (0x203E, 0x203E), (0x2047, 0x2049), (0x205F, 0x205F), (0x2070, 0x2071),
    (0x2074, 0x207A), (0x207C, 0x208A), (0x208C, 0x208E), (0x2090, 0x2093), (0x2095, 0x209F), (0x20A8, 0x20A8), (0x2100, 0x2103),
    (0x2105, 0x2106), (0x2109, 0x210E), (0x2110, 0x2113), (0x2115, 0x2116), (0x2119, 0x211D), (0x2120, 0x2122), (0x2124, 0x2124),
    (0x2128, 0x2128), (0x212A, 0x212A), (0x212C, 0x212D), (0x212F, 0x2131), (0x2133, 0x2134), (0x2139, 0x2139), (0x213B, 0x213B),
    (0x2145, 0x2149), (0x2150, 0x217F), (0x2189, 0x2189), (0x2460, 0x24EA), (0x2A74, 0x2A76), (0x2C7C, 0x2C7D), (0x3000, 0x3000),
    (0x309B, 0x309C), (0x3200, 0x321E), (0x3220, 0x3243), (0x3250, 0x325F), (0x32B1, 0x32CF), (0x3358, 0x337A), (0x3380, 0x33FF),
    (0xA7F1, 0xA7F4), (0xFB00, 0xFB06), (0xFB29, 0xFB29), (0xFC5E, 0xFC63), (0xFDFA, 0xFDFB), (0xFE10, 0xFE10), (0xFE13, 0xFE16),
    (0xFE19, 0xFE19), (0xFE30, 0xFE30), (0xFE33, 0xFE38), (0xFE47, 0xFE50), (0xFE52, 0xFE52), (0xFE54, 0xFE57), (0xFE59, 0xFE5C),
    (0xFE5F, 0xFE66), (0xFE68, 0xFE6B), (0xFE70, 0xFE70), (0xFE72, 0xFE72), (0xFE74, 0xFE74), (0xFE76, 0xFE76), (0xFE78, 0xFE78),
    (0xFE7A, 0xFE7A), (0xFE7C, 0xFE7C), (0xFE7E, 0xFE7E), (0xFF01, 0xFF5E), (0xFFE3, 0xFFE3), (0x107A5, 0x107A5), (0x1CCD6, 0x1CCF9),
    (0x1D400, 0x1D454), (0x1D456, 0x1D49C), (0x1D49E, 0x1D49F), (0x1D4A2, 0x1D4A2), (0x1D4A5, 0x1D4A6), (0x1D4A9, 0x1D4AC),
    (0x1D4AE, 0x1D4B9), (0x1D4BB, 0x1D4BB), (0x1D4BD, 0x1D4C3), (0x1D4C5, 0x1D505), (0x1D507, 0x1D50A), (0x1D50D, 0x1D514),
    (0x1D516, 0x1D51C), (0x1D51E, 0x1D539), (0x1D53B, 0x1D53E), (0x1D540, 0x1D544), (0x1D546, 0x1D546), (0x1D54A, 0x1D550),
    (0x1D552, 0x1D6A3), (0x1D7CE, 0x1D7FF), (0x1F100, 0x1F10A), (0x1F110, 0x1F12E), (0x1F130, 0x1F14F), (0x1F16A, 0x1F16C),
    (0x1F190, 0x1F190), (0x1FBF0, 0x1FBF9),
];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use unicode_normalization::UnicodeNormalization;

    fn path(target: &str) -> Result<String, &'static str> {
        match canonical(target.as_bytes()) {
            Ok(canonical) => Ok(canonical.path.into_owned()),
            Err(Rejection::AmbiguousPath(reason)) => Err(reason),
            Err(other) => panic!("{target}: {other:?}"),
        }
    }

    #[test]
    fn what_a_careful_client_may_send_is_rewritten_to_the_one_form() {
        for (target, expected) in [
            ("/", "/"),
            ("/orders/7", "/orders/7"),
            ("/orders/", "/orders/"),
            ("//", "/"),
            ("//admin", "/admin"),
            ("/a//b///c", "/a/b/c"),
            ("/a//", "/a/"),
            ("/./admin", "/admin"),
            ("/admin/.", "/admin/"),
            ("/admin/./", "/admin/"),
            ("/admin/x/..", "/admin/"),
            ("/admin/..", "/"),
            ("/public/../admin", "/admin"),
            ("/a/b/../../c", "/c"),
            ("/.well-known/jwks", "/.well-known/jwks"),
            ("/a/...", "/a/..."),
            ("/public/....//admin", "/public/..../admin"),
            ("/%61dmin", "/admin"),
            ("/a%2Db%5f%7E", "/a-b_~"),
            ("/file%2ejson", "/file.json"),
            ("/a%20b", "/a%20b"),
            ("/a%3ab%40c", "/a%3Ab%40c"),
            ("/100%25", "/100%25"),
            ("/100%25-off", "/100%25-off"),
            ("/caf%c3%a9", "/caf%C3%A9"),
            ("/%f0%9f%a6%80", "/%F0%9F%A6%80"),
            ("/a|b{c}", "/a%7Cb%7Bc%7D"),
            ("/a%3fb%23c", "/a%3Fb%23c"),
            ("/a:b@c!$&'()*+,=", "/a:b@c!$&'()*+,="),
        ] {
            assert_eq!(path(target), Ok(expected.to_owned()), "{target}");
        }
    }

    #[test]
    fn what_two_parties_could_read_differently_is_refused() {
        for (target, reason) in [
            ("", "not_origin_form"),
            ("*", "not_origin_form"),
            ("admin", "not_origin_form"),
            ("./admin", "not_origin_form"),
            ("?x", "not_origin_form"),
            ("http://gw.test/admin", "not_origin_form"),
            ("/..", "above_root"),
            ("/../admin", "above_root"),
            ("/a/../../b", "above_root"),
            ("/a//../b", "dots_after_empty_segment"),
            ("/a//./../b", "dots_after_empty_segment"),
            ("/a//b/../../c", "dots_after_empty_segment"),
            ("/public/%2e%2e/admin", "encoded_dots"),
            ("/public/.%2E/admin", "encoded_dots"),
            ("/public/%2e./admin", "encoded_dots"),
            ("/%2e/admin", "encoded_dots"),
            ("/a%2fb", "encoded_slash"),
            ("/a%5Cb", "encoded_backslash"),
            ("/a\\b", "backslash"),
            ("/a;x=1", "semicolon"),
            ("/a%3bx=1", "encoded_semicolon"),
            ("/a%00", "encoded_control"),
            ("/a%0a", "encoded_control"),
            ("/a%7f", "encoded_control"),
            ("/a%c2%85", "encoded_control"),
            ("/%252e%252e/admin", "double_encoding"),
            ("/%25%32%65", "double_encoding"),
            ("/%2", "bad_escape"),
            ("/%", "bad_escape"),
            ("/%u0061dmin", "bad_escape"),
            ("/%%32%65", "bad_escape"),
            ("/%c0%ae%c0%ae/admin", "encoded_invalid_utf8"),
            ("/%e0%80%af", "encoded_invalid_utf8"),
            ("/%ed%a0%80", "encoded_invalid_utf8"),
            ("/%c3x", "encoded_invalid_utf8"),
            ("/%c3", "encoded_invalid_utf8"),
            ("/%80", "encoded_invalid_utf8"),
            ("/%ff", "encoded_invalid_utf8"),
            ("/a%ef%bc%8fb", "folds_to_ascii"),
            ("/%e2%80%a4%e2%80%a4/admin", "folds_to_ascii"),
            ("/%ef%bd%81dmin", "folds_to_ascii"),
            ("/a#b", "fragment"),
            ("/a b", "space"),
            ("/a\tb", "control"),
            ("/a\0b", "control"),
            ("/a\x7fb", "control"),
            ("/caf\u{e9}", "non_ascii"),
            ("/a?b#c", "fragment"),
            ("/a?b c", "space"),
            ("/a?b\rc", "control"),
            ("/a?caf\u{e9}", "non_ascii"),
        ] {
            assert_eq!(path(target), Err(reason), "{target}");
        }
        assert_eq!(canonical(b"/\xff"), Err(Rejection::AmbiguousPath("non_ascii")));
    }

    #[test]
    fn the_query_is_no_part_of_the_path_and_passes_as_it_came() {
        let found = canonical(b"/public?/../admin;%2f%00?x").unwrap();
        assert_eq!((found.path.as_ref(), found.query), ("/public", Some("/../admin;%2f%00?x")));
        assert_eq!(canonical(b"/a?").unwrap().query, Some(""));
    }

    #[test]
    fn a_canonical_path_is_borrowed() {
        for target in ["/", "/orders/7/lines", "/.well-known/x", "/a%20b%C3%A9", "/admin/.", "/a/b/.."] {
            assert!(matches!(canonical(target.as_bytes()).unwrap().path, Cow::Borrowed(_)), "{target}");
        }
    }

    #[test]
    fn every_character_that_compatibility_normalisation_makes_ascii_of_is_refused() {
        for character in ('\u{80}'..=char::MAX).filter(|c| std::iter::once(*c).nfkc().any(|folded| folded.is_ascii())) {
            assert!(folds_to_ascii(character), "U+{:04X}", u32::from(character));
        }
        assert!(!folds_to_ascii('é') && !folds_to_ascii('日') && !folds_to_ascii('🦀'));
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered_and_the_one_form_is_its_own(target in proptest::collection::vec(any::<u8>(), 0..64)) {
            check_properties(&target)?;
        }

        #[test]
        fn targets_of_tricks_are_answered_and_the_one_form_is_its_own(
            pieces in proptest::collection::vec(proptest::sample::select(vec![
                "/", "/", "/", ".", "..", "a", "%", "%25", "%2e", "%2E", "%2f", "%61", "25", "2e", "%32", "%65", "%C3%A9", "%c3", "|", "?", "%20", ":",
            ]), 0..12)
        ) {
            check_properties(format!("/{}", pieces.concat()).as_bytes())?;
        }
    }

    fn check_properties(target: &[u8]) -> Result<(), TestCaseError> {
        let Ok(first) = canonical(target) else { return Ok(()) };
        let path = first.path.as_ref();
        prop_assert!(path.starts_with('/') && path.is_ascii());
        prop_assert!(!path.contains("//") && !path.contains(['\\', ';', '#', '?', ' ']));
        prop_assert!(path.split('/').all(|segment| !matches!(segment, "." | "..")));
        let again = canonical(path.as_bytes());
        prop_assert_eq!(again.map(|again| again.path.into_owned()), Ok(path.to_owned()));
        Ok(())
    }
}
