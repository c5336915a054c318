//! `Date` as an answer has it (RFC 9110 section 5.6.7), written once for each second.

use std::io::Write as _;
use std::time::{Duration, SystemTime};

use httpdate::HttpDate;

/// The last date that was asked for.
#[derive(Default)]
pub(super) struct Date {
    second: u64,
    text: Vec<u8>,
}

impl Date {
    /// The date of a time since the Unix epoch.
    pub(super) fn of(&mut self, unix: Duration) -> &[u8] {
        if self.text.is_empty() || self.second != unix.as_secs() {
            self.second = unix.as_secs();
            self.text.clear();
            let _ = write!(self.text, "{}", HttpDate::from(SystemTime::UNIX_EPOCH + unix));
        }
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_written_as_rfc_9110_says() {
        let mut date = Date::default();
        for (unix, text) in [(784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"), (0, "Thu, 01 Jan 1970 00:00:00 GMT")] {
            assert_eq!(date.of(Duration::from_secs(unix)), text.as_bytes());
        }
        assert_eq!(date.of(Duration::from_millis(999)), b"Thu, 01 Jan 1970 00:00:00 GMT");
    }
}
