//! `Date` as an answer has it (RFC 9110 section 5.6.7), written once for each second.

use std::io::Write as _;
use std::time::Duration;

use time::OffsetDateTime;

const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

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
            let time = OffsetDateTime::UNIX_EPOCH + unix;
            let day = DAYS.get(usize::from(time.weekday().number_days_from_monday())).copied().unwrap_or_default();
            let month = MONTHS.get(usize::from(u8::from(time.month()) - 1)).copied().unwrap_or_default();
            let (hour, minute, second) = time.to_hms();
            let _ = write!(self.text, "{day}, {:02} {month} {:04} {hour:02}:{minute:02}:{second:02} GMT", time.day(), time.year());
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
