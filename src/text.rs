//! Numbers and addresses as text. The formatter of the standard library takes ten times as long, for each request a dozen times.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};

/// The room for any number.
pub type Digits = [u8; 20];

/// A number of at least so many digits.
pub fn digits(room: &mut Digits, mut value: u64, least: usize) -> &[u8] {
    let mut first = room.len();
    while let Some(digit) = first.checked_sub(1).and_then(|at| room.get_mut(at)).filter(|_| value > 0 || 20 - first < least) {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
        first -= 1;
    }
    room.get(first..).unwrap_or_default()
}

/// Appends a number.
pub fn push_number(text: &mut Vec<u8>, value: u64) {
    text.extend_from_slice(digits(&mut Digits::default(), value, 1));
}

/// Appends an address.
pub fn push_address(text: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => {
            for (at, octet) in address.octets().into_iter().enumerate() {
                if at > 0 {
                    text.push(b'.');
                }
                push_number(text, octet.into());
            }
        }
        // A `Vec` takes all that is written.
        IpAddr::V6(address) => drop(write!(text, "{address}")),
    }
}

/// Appends an address and its port.
pub fn push_socket(text: &mut Vec<u8>, address: SocketAddr) {
    match address {
        SocketAddr::V4(v4) => {
            push_address(text, (*v4.ip()).into());
            text.push(b':');
            push_number(text, v4.port().into());
        }
        SocketAddr::V6(v6) => drop(write!(text, "{v6}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_number_is_written_in_full() {
        for (value, least, expected) in [
            (0, 1, "0"),
            (7, 1, "7"),
            (10, 1, "10"),
            (7, 2, "07"),
            (0, 6, "000000"),
            (123, 2, "123"),
            (u64::MAX, 1, "18446744073709551615"),
        ] {
            assert_eq!(digits(&mut Digits::default(), value, least), expected.as_bytes());
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_the_formatter_writes(value: u64, v4: u32, v6: u128, port: u16) {
            let mut text = Vec::new();
            push_number(&mut text, value);
            prop_assert_eq!(std::str::from_utf8(&text), Ok(&*value.to_string()));
            for address in [IpAddr::V4(v4.into()), IpAddr::V6(v6.into())] {
                text.clear();
                push_address(&mut text, address);
                prop_assert_eq!(std::str::from_utf8(&text), Ok(&*address.to_string()));
                text.clear();
                push_socket(&mut text, SocketAddr::new(address, port));
                prop_assert_eq!(std::str::from_utf8(&text), Ok(&*SocketAddr::new(address, port).to_string()));
            }
        }
    }
}
