//! A signer of AWS Signature Version 4, written from AWS's documentation and apart from the gateway's own reading of it.

use std::time::{SystemTime, UNIX_EPOCH};

use openssl::hash::{MessageDigest, hash};
use openssl::pkey::PKey;
use openssl::sign::Signer;

/// A key, and what it signs for.
#[derive(Clone)]
pub struct Aws {
    pub id: &'static str,
    pub secret: &'static str,
    pub region: &'static str,
    pub service: &'static str,
    /// Seconds that the caller's clock is ahead.
    pub ahead: i64,
}

pub const ACME: Aws =
    Aws { id: "AKIDACME", secret: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", region: "eu-west-1", service: "execute-api", ahead: 0 };

impl Aws {
    /// The headers of a signed request, the given ones among them; `payload` is what stands for the body.
    pub fn sign(&self, method: &str, target: &str, headers: &[(&str, &str)], payload: &str) -> Vec<(String, String)> {
        let time = self.time();
        let mut all: Vec<(String, String)> = headers.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        all.push(("X-Amz-Date".to_owned(), time.clone()));
        if !all.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            all.push(("Host".to_owned(), "edgeward.test".to_owned()));
        }
        let mut canonical: Vec<(String, String)> = all.iter().map(|(name, value)| (name.to_lowercase(), value.trim().to_owned())).collect();
        canonical.sort();
        let names = canonical.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(";");
        let lines: String = canonical.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut pairs: Vec<&str> = query.split('&').filter(|pair| !pair.is_empty()).collect();
        pairs.sort();
        let query = pairs.join("&");
        let signature = self.signature(&time, &format!("{method}\n{}\n{query}\n{lines}\n{names}\n{payload}", path.replace('%', "%25")));
        let value = format!("AWS4-HMAC-SHA256 Credential={}/{}, SignedHeaders={names}, Signature={signature}", self.id, self.scope(&time));
        all.push(("Authorization".to_owned(), value));
        all
    }

    /// The target of a link that lives so many seconds; `host` alone is signed.
    pub fn presign(&self, method: &str, path: &str, lives: &str, payload: &str) -> String {
        let time = self.time();
        let mut pairs = [
            "X-Amz-Algorithm=AWS4-HMAC-SHA256".to_owned(),
            format!("X-Amz-Credential={}%2F{}", self.id, self.scope(&time).replace('/', "%2F")),
            format!("X-Amz-Date={time}"),
            format!("X-Amz-Expires={lives}"),
            "X-Amz-SignedHeaders=host".to_owned(),
        ];
        pairs.sort();
        let query = pairs.join("&");
        let signature = self.signature(&time, &format!("{method}\n{path}\n{query}\nhost:edgeward.test\n\nhost\n{payload}"));
        format!("{path}?{query}&X-Amz-Signature={signature}")
    }

    fn scope(&self, time: &str) -> String {
        format!("{}/{}/{}/aws4_request", &time[..8], self.region, self.service)
    }

    fn signature(&self, time: &str, canonical: &str) -> String {
        let text = format!("AWS4-HMAC-SHA256\n{time}\n{}\n{}", self.scope(time), sha256(canonical.as_bytes()));
        let mut key = hmac(format!("AWS4{}", self.secret).as_bytes(), &time[..8]);
        for part in [self.region, self.service, "aws4_request"] {
            key = hmac(&key, part);
        }
        hex(&hmac(&key, &text))
    }

    fn time(&self) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64 + self.ahead;
        let now = time::OffsetDateTime::from_unix_timestamp(now).unwrap();
        let (year, month, day) = now.to_calendar_date();
        format!("{year:04}{:02}{day:02}T{:02}{:02}{:02}Z", month as u8, now.hour(), now.minute(), now.second())
    }
}

/// SHA-256 in hexadecimal, as it stands for a body.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&hash(MessageDigest::sha256(), bytes).unwrap())
}

fn hmac(key: &[u8], text: &str) -> Vec<u8> {
    let key = PKey::hmac(key).unwrap();
    Signer::new(MessageDigest::sha256(), &key).unwrap().sign_oneshot_to_vec(text.as_bytes()).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
