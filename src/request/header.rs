//! Header names as a server behind us may read them: several spellings that are one name to it are one name here.

/// Whether a header may be taken for another. CGI, WSGI and their like see one name where only the characters between the letters and digits
/// differ (CVE-2025-64484).
pub fn folds_to(name: &str, other: &str) -> bool {
    name.len() == other.len() && name.bytes().map(fold).eq(other.bytes().map(fold))
}

/// What a byte of a name is to all of them.
pub fn fold(byte: u8) -> u8 {
    if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'-' }
}
