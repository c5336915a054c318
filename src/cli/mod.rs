//! The door: the command line, which says what it does and leaves the doing to the floors below.

mod check;
mod clients;
mod health;
mod key_file;
mod key_quotas;
mod keys;
mod revoke;
mod tokens;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// An authentication gateway for the edge.
#[derive(Debug, Parser)]
#[command(name = "edgeward", version, about, propagate_version = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until a signal ends the process
    Run(ConfigFile),
    /// Read and compile a configuration, and say everything that is wrong with it
    Check(check::Check),
    /// Ask a running gateway whether it is ready
    Health(health::Health),
    /// Make throw-away keys and tokens, for the demo and for trying a configuration
    #[command(subcommand)]
    Tokens(tokens::Tokens),
    /// Make, show and withdraw API keys
    #[command(subcommand)]
    Keys(keys::Keys),
    /// Refuse credentials before their time: a token, or all of a subject, client, key or issuer
    Revoke(revoke::Revoke),
    /// Make, show and withdraw clients of the token endpoint
    #[command(subcommand)]
    Clients(clients::Clients),
    /// Print the JSON Schema of the configuration
    Schema,
}

/// Which configuration.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConfigFile {
    /// The configuration; without it conf/edgeward.yaml, else /etc/edgeward/edgeward.yaml
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigFile {
    /// The file that was named, or the first default that exists.
    pub(crate) fn path(&self) -> PathBuf {
        let here = || Some(PathBuf::from("conf/edgeward.yaml")).filter(|path| path.exists());
        self.config.clone().or_else(here).unwrap_or_else(|| PathBuf::from("/etc/edgeward/edgeward.yaml"))
    }
}

/// Runs the command line of the process.
pub fn main() -> ExitCode {
    log_to_stderr();
    match CommandLine::parse().command {
        Command::Run(file) => match crate::server::run(file.path()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("edgeward: {error}");
                ExitCode::FAILURE
            }
        },
        Command::Check(check) => check.run(),
        Command::Health(health) => health.run(),
        Command::Tokens(tokens) => tokens.run(),
        Command::Keys(keys) => keys.run(),
        Command::Revoke(revoke) => revoke.run(),
        Command::Clients(clients) => clients.run(),
        Command::Schema => {
            print(&format!("{:#}\n", crate::config::schema()));
            ExitCode::SUCCESS
        }
    }
}

/// Writes to standard output. A reader that has seen enough (`| head`) is no failure.
pub(crate) fn print(text: &str) {
    use std::io::Write;
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// For people on a terminal, for machines elsewhere. `RUST_LOG` chooses what is said.
fn log_to_stderr() {
    use std::io::IsTerminal;
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,pingora_core=warn,pingora_proxy=warn"));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Pingora logs through `log`; its lines take the same way. A second subscriber can only be a test's.
    let _ = if std::io::stderr().is_terminal() { subscriber.try_init() } else { subscriber.json().flatten_event(true).try_init() };
    // Beyond this Pingora quotes whole heads, credentials and all; no setting of ours may show them.
    log::set_max_level(log::max_level().min(log::LevelFilter::Info));
}
