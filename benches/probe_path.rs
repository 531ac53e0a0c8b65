//! What one result costs: raw hyper, bare reqwest, ours; new connections and kept ones.
//!
//! The client's CPU time is that of its one thread (schedstat), allocations are counted in this process only: the
//! server is a child process on the other core. Variants run interleaved, A B C A B C; the table shows the median
//! over the rounds, and the ratio to bare reqwest within the same round.
//!
//! `cargo bench --bench probe_path [-- --rounds 15 --results 400]`

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a bench may end where it stands"
)]

use std::alloc::System;
use std::io::{BufRead, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustix::thread::{CpuSet, sched_setaffinity};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use leadsman::config::settings::{ConnectionReuse, ProbeConfig, ProbeKind};
use leadsman::config::{self, Sources, Target};
use leadsman::core::probe_result::Outcome;
use leadsman::core::probe_stats::TrackedProbe;
use leadsman::platform::clock;
use leadsman::prober::{Prober, ProberContext};

#[global_allocator]
static COUNTED: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const BODY: &str = r#"{"status": "ok"}"#;
const TIMEOUT: Duration = Duration::from_secs(5);
/// Addresses over which new connections are spread, so that none runs out of local ports.
const ADDRESSES: u8 = 16;
/// Results at a time in the rows that say so.
const IN_FLIGHT: usize = 16;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.iter().any(|argument| argument == "--serve") {
        return serve();
    }
    let number = |name: &str, default: usize| {
        let at = arguments.iter().position(|argument| argument == name);
        at.and_then(|at| arguments.get(at + 1))
            .and_then(|text| text.parse().ok())
            .unwrap_or(default)
    };
    let (rounds, results) = (number("--rounds", 15), number("--results", 400));
    let mut server = Command::new(std::env::current_exe().expect("our own path"))
        .arg("--serve")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the server starts");
    let mut line = String::new();
    BufReader::new(server.stdout.take().expect("piped"))
        .read_line(&mut line)
        .expect("the port");
    let port: u16 = line.trim().parse().expect("a port");
    pin(0);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(compare(port, rounds, results));
    drop(server.stdin.take());
    server.wait().expect("the server ends");
}

/// One way to ask, as a row of the table.
struct Row {
    name: &'static str,
    /// The row that it is compared with.
    against: usize,
    cpu: Vec<f64>,
    allocations: Vec<f64>,
}

async fn compare(port: u16, rounds: usize, results: usize) {
    let names = [
        ("new: bare reqwest", 0),
        ("new: raw hyper", 0),
        ("new: ours", 0),
        ("kept: bare reqwest", 3),
        ("kept: ours", 3),
        ("kept, 16 in flight: bare reqwest", 5),
        ("kept, 16 in flight: ours", 5),
    ];
    let mut rows: Vec<Row> = names
        .map(|(name, against)| Row {
            name,
            against,
            cpu: Vec::new(),
            allocations: Vec::new(),
        })
        .into_iter()
        .collect();
    let fresh = reqwest_client(0);
    let kept = reqwest_client(IN_FLIGHT);
    let shared = ProberContext::new(clock::now);
    let ours: Vec<_> = (1..=ADDRESSES)
        .map(|last| Ours::new(&shared, at(last, port), ConnectionReuse::New))
        .collect();
    let ours_kept = Arc::new(Ours::new(&shared, at(1, port), ConnectionReuse::KeepAlive));
    let urls: Vec<String> = (1..=ADDRESSES)
        .map(|last| format!("http://{}/api/health", at(last, port)))
        .collect();
    for round in 0..=rounds {
        for (index, row) in rows.iter_mut().enumerate() {
            let region = Region::new(COUNTED);
            let before = cpu_nanos();
            if index >= 5 {
                let mut running = JoinSet::new();
                for _ in 0..results {
                    if running.len() >= IN_FLIGHT {
                        running.join_next().await;
                    }
                    if index == 5 {
                        let (client, url) = (kept.clone(), urls[0].clone());
                        running.spawn(async move { with_reqwest(&client, &url, false).await });
                    } else {
                        let ours = Arc::clone(&ours_kept);
                        running.spawn(async move { ours.sound().await });
                    }
                }
                while running.join_next().await.is_some() {}
            }
            for number in 0..if index < 5 { results } else { 0 } {
                let one = number % usize::from(ADDRESSES);
                match index {
                    0 => with_reqwest(&fresh, &urls[one], true).await,
                    1 => with_hyper(at(u8::try_from(one + 1).expect("small"), port)).await,
                    2 => ours[one].sound().await,
                    3 => with_reqwest(&kept, &urls[0], false).await,
                    _ => ours_kept.sound().await,
                }
            }
            let cpu = cpu_nanos() - before;
            let made = region.change().allocations;
            // The first round warms up.
            if round > 0 {
                row.cpu.push(cpu as f64 / results as f64 / 1e3);
                row.allocations.push(made as f64 / results as f64);
            }
        }
    }
    println!(
        "one at a time unless said otherwise, {rounds} rounds of {results} results; median over the rounds\n"
    );
    println!(
        "{:<34} {:>12} {:>18} {:>12}",
        "", "CPU µs", "ratio to reqwest", "allocations"
    );
    let ratios: Vec<f64> = rows
        .iter()
        .map(|row| {
            median(
                row.cpu
                    .iter()
                    .zip(&rows[row.against].cpu)
                    .map(|(a, b)| a / b)
                    .collect(),
            )
        })
        .collect();
    for (row, ratio) in rows.iter().zip(ratios) {
        let (cpu, allocations) = (median(row.cpu.clone()), median(row.allocations.clone()));
        println!(
            "{:<34} {cpu:>12.1} {ratio:>18.2} {allocations:>12.1}",
            row.name
        );
    }
}

/// The whole way of a result, from the prober to the record.
struct Ours {
    prober: Prober,
    tracked_probe: TrackedProbe,
}

impl Ours {
    fn new(shared: &Arc<ProberContext>, address: SocketAddr, connection: ConnectionReuse) -> Self {
        let url = format!("http://{address}/api/health");
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        write!(
            file,
            "[[release]]\nname='a'\nnamespace='b'\n[[release.probe]]\nname='c'\nurl='{url}'\nexpect={{status=200}}\n"
        )
        .expect("written");
        let sources = Sources {
            discovered: Vec::new(),
            files: vec![file.path().into()],
            environment: Vec::new(),
            flags: Vec::new(),
        };
        let Ok(loaded) = config::load(&sources) else {
            panic!("the bench's configuration is good")
        };
        let probe: ProbeConfig = loaded
            .settings
            .probes()
            .next()
            .map(|p| (**p).clone())
            .expect("one probe");
        let mut kind = probe.kind.clone();
        if let ProbeKind::Http(http) = &mut kind {
            http.connection = connection;
        }
        let target = Target::parse(&url, "http").expect("a URL");
        Self {
            prober: Prober::new(shared, target, kind),
            tracked_probe: TrackedProbe::new(Arc::new(probe), clock::now()),
        }
    }

    async fn sound(&self) {
        let result = self.prober.sound(clock::now(), TIMEOUT, None).await;
        assert_eq!(result.outcome, Outcome::Success, "{:?}", result.explanation);
        self.tracked_probe.lock().record(&result, 0.0);
    }
}

fn reqwest_client(idle: usize) -> reqwest::Client {
    reqwest::Client::builder()
        .pool_max_idle_per_host(idle)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .no_proxy()
        .timeout(TIMEOUT)
        .build()
        .expect("a client")
}

async fn with_reqwest(client: &reqwest::Client, url: &str, close: bool) {
    let mut request = client.get(url);
    if close {
        request = request.header("connection", "close");
    }
    let answer = request.send().await.expect("an answer");
    assert!(answer.status().is_success());
    assert_eq!(answer.bytes().await.expect("a body").len(), BODY.len());
}

async fn with_hyper(address: SocketAddr) {
    let stream = TcpStream::connect(address).await.expect("connected");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .expect("a handshake");
    let driver = tokio::spawn(connection);
    let request = hyper::Request::get("/api/health")
        .header("host", "test")
        .header("connection", "close")
        .body(Empty::<Bytes>::new())
        .expect("a request");
    let answer = sender.send_request(request).await.expect("an answer");
    assert!(answer.status().is_success());
    assert_eq!(
        answer
            .into_body()
            .collect()
            .await
            .expect("a body")
            .to_bytes()
            .len(),
        BODY.len()
    );
    drop(sender);
    let _ = driver.await;
}

fn serve() {
    pin(1);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))
            .await
            .expect("a port");
        println!("{}", listener.local_addr().expect("an address").port());
        std::thread::spawn(|| {
            // The end of our standard input is the end of the bench.
            let _ = std::io::stdin().read_line(&mut String::new());
            std::process::exit(0);
        });
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            let answer = service_fn(|_| async {
                Ok::<_, std::convert::Infallible>(hyper::Response::new(Full::new(
                    Bytes::from_static(BODY.as_bytes()),
                )))
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), answer),
            );
        }
    });
}

fn at(last: u8, port: u16) -> SocketAddr {
    (Ipv4Addr::new(127, 1, 0, last), port).into()
}

fn cpu_nanos() -> u64 {
    let text =
        std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux with schedstat");
    text.split(' ')
        .next()
        .and_then(|field| field.parse().ok())
        .expect("nanoseconds on the CPU")
}

fn pin(core: usize) {
    let mut set = CpuSet::new();
    set.set(core);
    // With one core there is nothing to pin to; the figures are then less quiet.
    let _ = sched_setaffinity(None, &set);
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
