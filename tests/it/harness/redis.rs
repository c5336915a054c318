//! A Redis of the test's own: stopped, paused, filled up or emptied as the test likes.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use redis::FromRedisValue;
use tempfile::TempDir;

use super::certificates::Certificate;
use super::until;

/// A redis-server on a port of its own; it keeps nothing on disk.
pub struct Redis {
    folder: TempDir,
    /// Where its certificate is.
    certificate: Option<TempDir>,
    port: u16,
    options: Vec<String>,
    child: Child,
}

impl Redis {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// With more options, as `--maxmemory 10mb`.
    #[track_caller]
    pub fn start_with(options: &[&str]) -> Self {
        let options: Vec<_> = options.iter().map(ToString::to_string).collect();
        // Somebody else may take the free port before Redis does.
        for _ in 0..10 {
            let folder = TempDir::new().unwrap();
            let port = free_port();
            let mut redis = Self { child: spawn(&folder, port, &options), folder, certificate: None, port, options: options.clone() };
            if redis.comes_up() {
                return redis;
            }
        }
        panic!("redis-server does not start");
    }

    /// Over TLS, with this certificate; its other port is without.
    pub fn start_tls(certificate: &Certificate) -> (Self, u16) {
        let folder = TempDir::new().unwrap();
        std::fs::write(folder.path().join("chain.pem"), &certificate.chain).unwrap();
        std::fs::write(folder.path().join("key.pem"), &certificate.key).unwrap();
        let port = free_port();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let options =
            format!("--tls-port {port} --tls-cert-file {} --tls-key-file {} --tls-auth-clients no", path("chain.pem"), path("key.pem"));
        let mut redis = Self::start_with(&options.split(' ').collect::<Vec<_>>());
        redis.certificate = Some(folder);
        (redis, port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The answer to a command.
    #[track_caller]
    pub fn ask<T: FromRedisValue>(&self, arguments: &[&str]) -> T {
        let client = redis::Client::open(self.url()).unwrap();
        let mut command = redis::cmd(arguments[0]);
        command.arg(&arguments[1..]).query(&mut client.get_connection().unwrap()).unwrap()
    }

    /// Tells it to do something.
    #[track_caller]
    pub fn tell(&self, arguments: &[&str]) {
        self.ask::<redis::Value>(arguments);
    }

    /// Every key with the milliseconds it has left; -1 is for ever.
    pub fn keys(&self) -> Vec<(Vec<u8>, i64)> {
        let mut connection = redis::Client::open(self.url()).unwrap().get_connection().unwrap();
        let keys: Vec<Vec<u8>> = redis::cmd("KEYS").arg("*").query(&mut connection).unwrap();
        let left = |key: Vec<u8>| {
            let left = redis::cmd("PTTL").arg(&key).query(&mut connection).unwrap();
            (key, left)
        };
        keys.into_iter().map(left).collect()
    }

    /// Stands still, and keeps its connections: what a machine that swaps looks like.
    pub fn pause(&self) {
        signal(&self.child, "STOP");
    }

    pub fn resume(&self) {
        signal(&self.child, "CONT");
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Begins again, empty, where it was.
    #[track_caller]
    pub fn restart(&mut self) {
        self.child = spawn(&self.folder, self.port, &self.options);
        assert!(self.comes_up(), "redis-server does not come back");
    }

    fn comes_up(&mut self) -> bool {
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        let mut ended = false;
        until("redis-server listens", || {
            ended = self.child.try_wait().unwrap().is_some();
            ended || TcpStream::connect_timeout(&address, Duration::from_millis(100)).is_ok()
        });
        !ended
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn spawn(folder: &TempDir, port: u16, options: &[String]) -> Child {
    Command::new("redis-server")
        .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "no", "--dir"])
        .arg(folder.path())
        .args(options)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server is missing: scripts/prepare installs it")
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}
