//! `edgeward health`: asks a running gateway whether it is ready, for containers that hold no other program to ask with.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use http::HeaderMap;

use crate::net::http::{Client, Limits, Tls};

/// Longer than a busy gateway takes, shorter than the three seconds that orchestrators commonly give a probe.
const LIMITS: Limits = Limits { deadline: Duration::from_millis(2500), body: 64 * 1024 };

#[derive(Debug, Args)]
pub(crate) struct Health {
    /// Where the administration listens
    #[arg(default_value = "http://127.0.0.1:9901/readyz")]
    url: String,
}

impl Health {
    /// 0 when ready, 1 otherwise.
    pub(crate) fn run(&self) -> ExitCode {
        match self.ask() {
            Ok(()) => ExitCode::SUCCESS,
            Err(reason) => {
                eprintln!("edgeward: {}: {reason}", self.url);
                ExitCode::FAILURE
            }
        }
    }

    fn ask(&self) -> Result<(), String> {
        let client = Client::new(&Tls::default())?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
        let answer = runtime.block_on(client.get(&self.url, &HeaderMap::new(), LIMITS)).map_err(|error| error.to_string())?;
        match answer.status() {
            status if status.is_success() => Ok(()),
            status => Err(format!("{status}: {}", String::from_utf8_lossy(answer.body()).trim())),
        }
    }
}
