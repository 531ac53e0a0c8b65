//! The built program and its neighbours as child processes, for tests that look from outside.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_leadsman");

/// Long enough for the slowest machine; a condition that holds is seen long before.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits for a condition. Asking takes time from what is asked, so it is asked less often after the first second.
#[track_caller]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        let waited = began.elapsed();
        assert!(waited < PATIENCE, "never came true: {what}");
        let pause = if waited < Duration::from_secs(1) {
            20
        } else {
            100
        };
        std::thread::sleep(Duration::from_millis(pause));
    }
}

/// A port of loopback where nobody listens.
pub fn unused_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// A server that accepts and never answers.
pub fn hanging_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for stream in listener.incoming() {
            kept.push(stream);
        }
    });
    address
}

/// `leadsman demo --app-only`.
pub struct App {
    child: Child,
    address: SocketAddr,
    database: String,
}

impl App {
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// The app of a history.
    pub fn of(history: &Path) -> Self {
        Self::with(&["--history", history.to_str().unwrap()])
    }

    fn with(more: &[&str]) -> Self {
        let mut child = Command::new(PROGRAM)
            .args(["demo", "--app-only", "--listen", "127.0.0.1:0"])
            .args(more)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        let mut database = String::new();
        stdout.read_line(&mut database).unwrap();
        let begins = database.find("http://").expect("its database listens");
        let database = database[begins..]
            .trim_end()
            .trim_end_matches('.')
            .to_owned();
        // Read on, so that the app can say what it likes.
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).count());
        let start = line.find("http://").expect("the app says where it listens") + 7;
        let end = start + line[start..].find('/').unwrap();
        Self {
            child,
            address: line[start..end].parse().unwrap(),
            database,
        }
    }

    /// Where its database answers.
    pub fn database(&self) -> String {
        self.database.clone()
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An answer to one of our requests.
pub struct Reply {
    pub status: u16,
    pub body: String,
    pub raw: Vec<u8>,
    head: String,
}

impl Reply {
    /// The value of a header; empty when it is not there.
    pub fn header(&self, name: &str) -> &str {
        let found = self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        });
        found.unwrap_or("")
    }
}

/// `leadsman run` with a configuration of its own.
pub struct Leadsman {
    child: Child,
    address: SocketAddr,
    folder: tempfile::TempDir,
    log: Arc<Mutex<String>>,
    more: Vec<String>,
    environment: Vec<(String, String)>,
}

impl Leadsman {
    /// Starts it and waits until it listens. The configuration should listen at `127.0.0.1:0`.
    pub fn run(config: &str, more: &[&str]) -> Self {
        Self::run_in(config, more, &[])
    }

    /// The same with variables of the environment.
    pub fn run_in(config: &str, more: &[&str], environment: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("probes.toml");
        let config = if config.contains("[serve]\nlisten") {
            config.to_owned()
        } else {
            with_listen(config)
        };
        std::fs::write(&file, config).unwrap();
        let more: Vec<String> = more.iter().map(|&argument| argument.to_owned()).collect();
        let environment: Vec<(String, String)> = environment
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let (child, address, log) = Self::spawn(&file, &more, &environment);
        Self {
            child,
            address,
            folder,
            log,
            more,
            environment,
        }
    }

    /// Ends it as the system would end it: without a word.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it anew with the same configuration, after [`Self::kill`].
    pub fn start_again(&mut self) {
        let file = self.folder.path().join("probes.toml");
        (self.child, self.address, self.log) = Self::spawn(&file, &self.more, &self.environment);
    }

    /// Waits for its end, however that comes.
    pub fn end(&mut self) {
        self.child.wait().unwrap();
    }

    /// Its folder: the configuration is there, and whatever that places beside itself.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// All that it has logged since it was started.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    fn spawn(
        file: &Path,
        more: &[String],
        environment: &[(String, String)],
    ) -> (Child, SocketAddr, Arc<Mutex<String>>) {
        let mut child = Command::new(PROGRAM)
            .arg("run")
            .arg("--config")
            .arg(file)
            .args(["--log-format", "json"])
            .args(more)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .current_dir(file.parent().unwrap())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let kept = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let mut kept = kept.lock().unwrap();
                kept.push_str(&line);
                kept.push('\n');
            }
        });
        let mut address = None;
        until("leadsman listens", || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("leadsman ended with {status}:\n{}", log.lock().unwrap());
            }
            let text = log.lock().unwrap();
            address = text
                .lines()
                .filter(|line| line.contains("\"Listening\""))
                .find_map(|line| {
                    let line: serde_json::Value = serde_json::from_str(line).ok()?;
                    line["address"].as_str()?.parse().ok()
                });
            address.is_some()
        });
        (child, address.unwrap(), log)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn get(&self, path: &str) -> Reply {
        self.request("GET", path, &[])
    }

    pub fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Reply {
        self.request("GET", path, headers)
    }

    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Reply {
        request(self.address, method, path, headers)
    }

    /// Gives it another configuration, to be read at the next signal.
    pub fn rewrite(&self, config: &str) {
        std::fs::write(self.folder.path().join("probes.toml"), config).unwrap();
    }

    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .arg(format!("-{name}"))
            .arg(self.child.id().to_string())
            .status();
        assert!(sent.unwrap().success());
    }

    /// Whether a text stands in the log.
    pub fn said(&self, text: &str) -> bool {
        self.log.lock().unwrap().contains(text)
    }

    /// Waits for its end.
    pub fn exit_code(&mut self, patience: Duration) -> Option<i32> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(
                Instant::now() < deadline,
                "leadsman does not end; its log:\n{}",
                self.log.lock().unwrap()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Leadsman {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command to its end with this configuration; gives the exit code and what it said.
pub fn run_to_end(config: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let (code, stdout, stderr) = run_apart(config, arguments);
    (code, stdout + &stderr)
}

/// The same; what it printed, and what it said beside that.
pub fn run_apart(config: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("probes.toml");
    std::fs::write(&file, config).unwrap();
    let output = Command::new(PROGRAM)
        .args(arguments)
        .arg("--config")
        .arg(&file)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

fn with_listen(config: &str) -> String {
    if config.contains("[serve]\n") {
        config.replacen("[serve]\n", "[serve]\nlisten = \"127.0.0.1:0\"\n", 1)
    } else {
        format!("[serve]\nlisten = \"127.0.0.1:0\"\n{config}")
    }
}

/// One HTTP/1.1 request on a connection of its own.
pub fn request(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)]) -> Reply {
    ask(address, method, path, headers, b"")
}

/// One with a body.
pub fn post(address: SocketAddr, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    let length = body.len().to_string();
    let mut headers = headers.to_vec();
    headers.push(("Content-Length", &length));
    ask(address, "POST", path, &headers, body)
}

fn ask(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Reply {
    converse(
        TcpStream::connect(address).unwrap(),
        method,
        path,
        headers,
        body,
    )
}

/// What is answered with 200; nothing when nobody is there, or it is answered otherwise.
pub fn try_get(address: SocketAddr, path: &str) -> Option<String> {
    let stream = TcpStream::connect(address).ok()?;
    let reply = converse(stream, "GET", path, &[], b"");
    (reply.status == 200).then_some(reply.body)
}

fn converse(
    mut stream: TcpStream,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Reply {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    text += "\r\n";
    // A server that refuses a long head may close before it has read all of it.
    let _ = stream.write_all(text.as_bytes());
    let _ = stream.write_all(body);
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    let end = bytes
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap_or(bytes.len());
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut raw = bytes.get(end + 4..).unwrap_or(&[]).to_vec();
    if head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked")
    {
        raw = unchunked(&raw);
    }
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap_or(0);
    Reply {
        status,
        body: String::from_utf8_lossy(&raw).into_owned(),
        raw,
        head,
    }
}

fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    while let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
        let size =
            usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap().trim(), 16).unwrap();
        if size == 0 {
            break;
        }
        whole.extend_from_slice(&rest[end + 2..end + 2 + size]);
        rest = &rest[end + 4 + size..];
    }
    whole
}

/// Runs a command to its end in an empty folder, without any configuration.
pub fn run_bare(arguments: &[&str]) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(PROGRAM)
        .args(arguments)
        .current_dir(folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text)
}
