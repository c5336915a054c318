//! Header names as a server behind us may read them: several spellings that are one name to it are one name here.

/// Whether a header may be taken for another. CGI, WSGI and their like see one name where only the characters between the letters and digits
/// differ (CVE-2025-64484).
pub fn folds_to(name: &str, other: &str) -> bool {
    let fold = |byte: u8| if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'-' };
    name.len() == other.len() && name.bytes().map(fold).eq(other.bytes().map(fold))
}
