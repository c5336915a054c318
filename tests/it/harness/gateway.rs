//! The gateway as operators run it: the binary, a file, signals, and what it prints.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tempfile::TempDir;

use super::client::{self, Answer};
use super::until;

/// A folder with a configuration and what it names, before a gateway runs on it.
pub struct Folder(TempDir);

/// A running gateway. It is killed when dropped, and tells what it logged when the test failed.
pub struct Gateway {
    folder: Folder,
    child: Child,
    log: Lines,
    access_log: Lines,
    data: Vec<SocketAddr>,
    admin: SocketAddr,
}

/// The lines that a stream has given so far.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

const CONFIG: &str = "edgeward.yaml";

/// The binary with these arguments, not yet started; whatever the test's own environment says, it says nothing to it.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edgeward"));
    command.args(arguments).env_clear().stdin(Stdio::null());
    command
}

impl Folder {
    pub fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file as editors do: beside it, then renamed over it, so that no reader sees half of it.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let new = path.with_extension("new");
        std::fs::write(&new, content).unwrap();
        std::fs::rename(new, path).unwrap();
    }
}

impl Gateway {
    /// A gateway on a configuration that needs no other file. Its listeners and `admin` are at port 0.
    #[track_caller]
    pub fn start(yaml: &str) -> Self {
        Self::start_in(Folder::new(), yaml)
    }

    /// A gateway on a folder that a test has furnished.
    #[track_caller]
    pub fn start_in(folder: Folder, yaml: &str) -> Self {
        Self::start_with(folder, yaml, &[])
    }

    /// The same, with variables in its environment.
    #[track_caller]
    pub fn start_with(folder: Folder, yaml: &str, environment: &[(&str, &str)]) -> Self {
        let gateway = Self::launch(folder, yaml, environment);
        until("the gateway is ready", || client::get(gateway.admin, "/readyz", &[]).status == 200);
        gateway
    }

    /// A gateway that serves, and need not be ready: a dependency may be away.
    #[track_caller]
    pub fn launch(folder: Folder, yaml: &str, environment: &[(&str, &str)]) -> Self {
        folder.write(CONFIG, yaml);
        let mut command = command(&["run", "-c", CONFIG]);
        command.current_dir(folder.path()).envs(environment.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (log, access_log) = (Lines::of(child.stderr.take().unwrap()), Lines::of(child.stdout.take().unwrap()));
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut gateway = Self { folder, child, log, access_log, data: Vec::new(), admin: unknown };
        until("the gateway says where its administration listens", || {
            assert!(gateway.child.try_wait().unwrap().is_none(), "the gateway ended at its start");
            gateway.listening("admin").first().map(|address| gateway.admin = *address).is_some()
        });
        until("the gateway says what it serves", || {
            assert!(gateway.child.try_wait().unwrap().is_none(), "the gateway ended at its start");
            gateway.log().iter().any(|line| line["message"] == "serving") && TcpStream::connect(gateway.admin).is_ok()
        });
        gateway.data = gateway.listening("data");
        gateway
    }

    fn listening(&self, listener: &str) -> Vec<SocketAddr> {
        let lines = self.log().into_iter().filter(|line| line["message"] == "listening" && line["listener"] == listener);
        lines.map(|line| line["address"].as_str().unwrap().parse().unwrap()).collect()
    }

    /// The first listener's address.
    pub fn address(&self) -> SocketAddr {
        self.data[0]
    }

    /// Every listener's address, in the order of the configuration.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.data
    }

    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    #[track_caller]
    pub fn get(&self, target: &str, headers: &[(&str, &str)]) -> Answer {
        client::get(self.address(), target, headers)
    }

    #[track_caller]
    pub fn ask(&self, request: impl AsRef<[u8]>) -> Answer {
        client::ask(self.address(), request)
    }

    /// The log so far; a line that is not JSON is a panic's, and fails the test.
    #[track_caller]
    pub fn log(&self) -> Vec<Value> {
        self.log.json()
    }

    /// The access log so far.
    #[track_caller]
    pub fn access_log(&self) -> Vec<Value> {
        // Lines are gathered for some milliseconds before they are written.
        std::thread::sleep(std::time::Duration::from_millis(20));
        self.access_log.json()
    }

    /// Everything that was printed, to look for what must not be there.
    pub fn printed(&self) -> String {
        format!("{}\n{}", self.log.text(), self.access_log.text())
    }

    /// The sum of a metric over the series whose labels hold all of these texts, such as `code="rate_limited"`.
    #[track_caller]
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let page = client::get(self.admin, "/metrics", &[]);
        let of_name = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        let series = page.text().lines().filter(of_name).filter(|line| labels.iter().all(|label| line.contains(label)));
        series.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    /// The folder it runs in.
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Whether the process still runs.
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Writes another configuration; the gateway sees it by itself.
    pub fn rewrite(&self, yaml: &str) {
        self.folder.write(CONFIG, yaml);
    }

    /// Sends a signal by its name, such as `HUP`.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for the end of the process.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let mut ended = None;
        until("the gateway ends", || {
            ended = self.child.try_wait().unwrap();
            ended.is_some()
        });
        ended.unwrap()
    }

    /// Kills the process without a word, as a crash would, and gives its folder back for another start.
    pub fn kill(mut self) -> Folder {
        let _ = self.child.kill();
        let _ = self.child.wait();
        std::mem::replace(&mut self.folder, Folder::new())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the gateway said:\n{}", self.printed());
        }
    }
}

impl Lines {
    fn of(stream: impl Read + Send + 'static) -> Self {
        let lines = Self::default();
        let kept = lines.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                kept.0.lock().unwrap().push(line);
            }
        });
        lines
    }

    #[track_caller]
    fn json(&self) -> Vec<Value> {
        let lines = self.0.lock().unwrap().clone();
        lines.iter().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not a line of JSON: {line}"))).collect()
    }

    fn text(&self) -> String {
        self.0.lock().unwrap().join("\n")
    }
}
