//! A real Chromium, driven by WebDriver, before a small server that hands it the page and one state after another.

#![allow(unreachable_pub, reason = "a part of one test binary")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::http::{StatusCode, header};
use base64::Engine as _;
use serde_json::{Value, json};

/// What the browser gets at `/`.
pub const PAGE: &str = include_str!("../../src/http/page.html");

/// What the server says of the page; the page has to keep within it.
const CSP: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:";

const PATIENCE: Duration = Duration::from_secs(30);

/// The state that the server hands out, and when it was asked for it.
struct Stage {
    status: StatusCode,
    body: String,
    asked: Vec<Instant>,
}

/// The browser with the page in it.
pub struct Page {
    driver: Child,
    driver_address: SocketAddr,
    session: String,
    server: SocketAddr,
    stage: Arc<Mutex<Stage>>,
}

/// Gives the test a page; keeps a screenshot when it fails, and lets nothing pass that stands on the console.
///
/// Without Debian's packages `chromium` and `chromium-driver` the test is left out, unless `LEADSMAN_TEST_ALL` is set.
pub fn with_page(test: impl FnOnce(&Page)) {
    let found = ["chromium", "chromedriver"].map(present);
    if found != [true, true] {
        assert!(
            std::env::var_os("LEADSMAN_TEST_ALL").is_none(),
            "chromium or chromium-driver is missing"
        );
        eprintln!("left out: chromium or chromium-driver is not installed");
        return;
    }
    let page = Page::start();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        test(&page);
        let said = page.console();
        assert!(said.is_empty(), "on the console: {said:#?}");
    }));
    if let Err(panic) = outcome {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("page").replace("::", "-");
        // The first failure counts, not one of the screenshot.
        let _ = catch_unwind(AssertUnwindSafe(|| page.screenshot(&name)));
        resume_unwind(panic);
    }
}

/// A driver and the port on which it listens.
///
/// It takes a free port of IPv4, and gives up where another program has that port of IPv6 just then.
fn driver() -> (Child, u16) {
    let mut said = Vec::new();
    for _ in 0..20 {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        for line in lines.by_ref().map_while(Result::ok) {
            let port = line.split_once("successfully on port ");
            if let Some(port) = port.and_then(|(_, port)| port.trim_end_matches('.').parse().ok()) {
                std::thread::spawn(move || lines.map_while(Result::ok).count());
                return (driver, port);
            }
            said.push(line);
        }
        driver.wait().unwrap();
    }
    panic!("chromedriver does not start: {said:#?}");
}

impl Page {
    fn start() -> Self {
        let stage = Arc::new(Mutex::new(Stage {
            status: StatusCode::OK,
            body: String::new(),
            asked: Vec::new(),
        }));
        let server = serve(Arc::clone(&stage));
        let (driver, port) = driver();
        let mut page = Self {
            driver,
            driver_address: SocketAddr::from(([127, 0, 0, 1], port)),
            session: String::new(),
            server,
            stage,
        };
        let mut arguments = vec![
            "--headless=new",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        ];
        if is_root() {
            // Chromium's own sandbox does not start for root.
            arguments.push("--no-sandbox");
        }
        let answer = page.driver(
            "POST",
            "/session",
            &json!({"capabilities": {"alwaysMatch": {
                "goog:chromeOptions": {"args": arguments},
                "goog:loggingPrefs": {"browser": "ALL"},
            }}}),
        );
        page.session = format!("/session/{}", answer["sessionId"].as_str().unwrap());
        page
    }

    /// Loads the page in a window of this width, `light` or `dark`, and waits for the first state.
    pub fn open(&self, width: u32, scheme: &str) {
        self.open_before_data(width, scheme);
        self.until("the first state is shown", "$('heard').textContent !== ''");
    }

    /// As [`Self::open`], for a page that gets nothing to show.
    pub fn open_before_data(&self, width: u32, scheme: &str) {
        self.cdp(
            "Emulation.setDeviceMetricsOverride",
            &json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false}),
        );
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.cdp("Emulation.setEmulatedMedia", &json!({"features": features}));
        let url = format!("http://{}/", self.server);
        self.command("/url", &json!({"url": url}));
    }

    /// The state from now on.
    pub fn put(&self, body: impl Into<String>) {
        let mut stage = self.stage.lock().unwrap();
        stage.status = StatusCode::OK;
        stage.body = body.into();
    }

    /// From now on there is none.
    pub fn break_down(&self) {
        self.stage.lock().unwrap().status = StatusCode::SERVICE_UNAVAILABLE;
    }

    /// When the page has asked so far.
    pub fn asked(&self) -> Vec<Instant> {
        self.stage.lock().unwrap().asked.clone()
    }

    /// Waits until the page has asked so often again, and has shown all answers but the last.
    pub fn wait_for_polls(&self, polls: usize) {
        let goal = self.asked().len() + polls;
        wait("the page asks again", || self.asked().len() >= goal);
    }

    /// The value of an expression on the page.
    pub fn js(&self, expression: &str) -> Value {
        let script = format!("return ({expression});");
        self.command("/execute/sync", &json!({"script": script, "args": []}))
    }

    /// As [`Self::js`], for a text.
    pub fn text(&self, expression: &str) -> String {
        self.js(expression).as_str().unwrap_or("").to_owned()
    }

    /// Runs statements on the page.
    pub fn run(&self, statements: &str) {
        self.command("/execute/sync", &json!({"script": statements, "args": []}));
    }

    /// Waits until an expression on the page is true.
    #[track_caller]
    pub fn until(&self, what: &str, expression: &str) {
        wait(what, || self.js(expression) == true);
    }

    /// All that can be read on the page.
    pub fn words(&self) -> String {
        self.text("document.body.innerText")
    }

    /// Presses one key, as WebDriver names it; U+E004 is the tabulator.
    pub fn press(&self, key: char) {
        let keys = json!([{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]);
        let actions = json!({"actions": [{"type": "key", "id": "keyboard", "actions": keys}]});
        self.command("/actions", &actions);
    }

    /// Keeps the whole page as `target/page-screenshots/NAME.png`.
    pub fn screenshot(&self, name: &str) {
        let size = self.cdp("Page.getLayoutMetrics", &json!({}))["cssContentSize"].clone();
        let height = size["height"].as_f64().unwrap_or(900.0).min(6000.0);
        let shot = self.cdp(
            "Page.captureScreenshot",
            &json!({"captureBeyondViewport": true,
                "clip": {"x": 0, "y": 0, "width": self.js("innerWidth"), "height": height, "scale": 1}}),
        );
        let png = base64::prelude::BASE64_STANDARD
            .decode(shot["data"].as_str().unwrap())
            .unwrap();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/page-screenshots");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(format!("{name}.png")), png).unwrap();
    }

    /// What stands on the console, but for the browser's own word on a state that was refused on purpose.
    fn console(&self) -> Vec<String> {
        let log = self.command("/se/log", &json!({"type": "browser"}));
        let entries = log.as_array().unwrap().iter();
        entries
            .map(|entry| format!("{} {}", entry["level"], entry["message"]))
            .filter(|line| !(line.contains("/api/v1/status") && line.contains("503")))
            .collect()
    }

    fn cdp(&self, command: &str, parameters: &Value) -> Value {
        let body = json!({"cmd": command, "params": parameters});
        self.command("/goog/cdp/execute", &body)
    }

    fn command(&self, path: &str, body: &Value) -> Value {
        self.driver("POST", &format!("{}{path}", self.session), body)
    }

    /// One request to the driver; WebDriver is JSON over HTTP, one answer for each command.
    fn driver(&self, method: &str, path: &str, body: &Value) -> Value {
        let mut stream = TcpStream::connect(self.driver_address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let body = body.to_string();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            self.driver_address,
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).unwrap();
        // The driver may keep the connection: the answer ends where its length says.
        let mut stream = BufReader::new(stream);
        let mut length = 0;
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).unwrap();
            let Some((name, value)) = line.split_once(':') else {
                if line.trim().is_empty() {
                    break;
                }
                continue;
            };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut answer = vec![0; length];
        stream.read_exact(&mut answer).unwrap();
        let value = serde_json::from_slice::<Value>(&answer).unwrap()["value"].take();
        assert!(value["error"].is_null(), "{path}: {value:#}");
        value
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            // Only the driver can close the browser.
            let _ = catch_unwind(AssertUnwindSafe(|| {
                self.driver("DELETE", &self.session, &json!({}))
            }));
        }
        // The driver's group, with whatever the browser has left behind.
        let group = format!("-{}", self.driver.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
        let _ = self.driver.wait();
    }
}

/// Serves the page and the stage's state on loopback until the process ends.
fn serve(stage: Arc<Mutex<Stage>>) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let answer_state = move || {
        let mut stage = stage.lock().unwrap();
        stage.asked.push(Instant::now());
        let body = stage.body.clone();
        let answer = (
            stage.status,
            [(header::CONTENT_TYPE, "application/json")],
            body,
        );
        async { answer }
    };
    let page = || async {
        let headers = [
            (header::CONTENT_TYPE, "text/html; charset=utf-8"),
            (header::CONTENT_SECURITY_POLICY, CSP),
        ];
        (headers, PAGE)
    };
    let router = axum::Router::new()
        .route("/", axum::routing::get(page))
        .route("/api/v1/status", axum::routing::get(answer_state));
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, router).await.unwrap();
        });
    });
    address
}

/// Waits for a condition.
#[track_caller]
pub fn wait(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn present(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok()
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output();
    id.is_ok_and(|id| id.stdout.starts_with(b"0\n"))
}
