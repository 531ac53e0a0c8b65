//! What alerts cost: looking at 10 000 conditions, and writing all of them for a round of resending; and how long one
//! takes to three receivers while a fourth hangs.
//!
//! `cargo bench --bench alerting -- --quick`

#![allow(clippy::unwrap_used, reason = "a bench may end where it stands")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a place in a short list"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use url::Url;

use leadsman::config::settings::{AlertmanagerConfig, TlsConfig};
use leadsman::core::alerts::{AlertKind, AlertStore, Condition, Labels};
use leadsman::core::slo::{BurnTier, Objective};
use leadsman::core::units::Time;
use leadsman::core::window::Counts;
use leadsman::notify::{AlertPayload, AlertStyle, AlertmanagerObserver, AlertmanagerPeer, wires};
use leadsman::platform::permit::Permit;

const ALERTS: usize = 10_000;

fn conditions() -> Vec<Condition> {
    (0..ALERTS)
        .map(|number| Condition {
            kind: AlertKind::ReleaseRegressed,
            place: Labels::from([
                ("namespace".to_owned(), "mykadoo-production".to_owned()),
                ("release".to_owned(), format!("release-{number:05}")),
                ("revision".to_owned(), "42".to_owned()),
            ]),
            text: "Revision 42: api failed 16 times in a row. Rolling back to revision 41."
                .to_owned(),
            fragment: format!("release/mykadoo-production/release-{number:05}"),
        })
        .collect()
}

fn alerting(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("10 000 firing alerts");
    group
        .measurement_time(Duration::from_secs(5))
        .sample_size(10);
    let now = Time::from_millis(1_800_000_000_000);
    let mut alert_store = AlertStore::default();
    let all = conditions();
    alert_store.observe(all.clone(), |_| true, now);
    group.bench_function("a look", |bencher| {
        bencher.iter_batched(
            || all.clone(),
            |all| alert_store.observe(all, |_| true, now),
            criterion::BatchSize::LargeInput,
        );
    });
    let page = Url::parse("https://leadsman.example.com/").ok();
    let style = AlertStyle {
        external: Labels::from([("cluster".to_owned(), "production".to_owned())]),
        page,
    };
    group.bench_function("a round of resending", |bencher| {
        bencher.iter(|| {
            let wires = wires(&alert_store, Duration::from_secs(60), now);
            let batches = wires.chunks(256);
            batches
                .map(|batch| {
                    style
                        .body(batch.iter().map(AsRef::<AlertPayload>::as_ref))
                        .len()
                })
                .sum::<usize>()
        });
    });
    group.finish();

    let objective = Objective {
        target: 0.999,
        days: 30,
        tiers: BurnTier::ALL.to_vec(),
    };
    let counts = Counts {
        success: 3000,
        failure: 2,
        unknown: 0,
    };
    criterion.bench_function("the four tiers of 1000 objectives", |bencher| {
        bencher.iter(|| {
            (0..1000)
                .filter(|_| {
                    BurnTier::ALL
                        .iter()
                        .any(|tier| objective.fires(*tier, |_| counts, 1.0))
                })
                .count()
        });
    });
}

/// Counts nothing.
struct Silent;

impl AlertmanagerObserver for Silent {
    fn appears(&self, _: &str) {}
    fn is_gone(&self, _: &str) {}
    fn sent(&self, _: &str, _: usize, _: Duration) {}
    fn failed(&self, _: &str, _: usize) {}
    fn dropped(&self, _: &str, _: usize) {}
    fn waiting(&self, _: &str, _: usize) {}
    fn confirmed(&self, _: &str, _: usize, _: usize) {}
}

/// Alerts that are told, one after the other.
const EVENTS: usize = 500;

/// From the event to the last byte of the request, at each of the receivers that answer.
fn on_the_wire(_: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let mut took = runtime.block_on(async {
        let hanging = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (told, mut arrivals) = mpsc::unbounded_channel();
        let mut addresses = vec![hanging.local_addr().unwrap()];
        for _ in 0..3 {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            addresses.push(listener.local_addr().unwrap());
            tokio::spawn(receive(listener, told.clone()));
        }
        let peers: Vec<_> = addresses.into_iter().map(peer).collect();
        let stop = CancellationToken::new();
        for peer in &peers {
            let (peer, stop) = (Arc::clone(peer), stop.clone());
            tokio::spawn(async move { peer.run(stop).await });
        }
        let mut alert_store = AlertStore::default();
        let mut took = Vec::new();
        for condition in conditions().into_iter().take(EVENTS) {
            let began = Instant::now();
            let now = Time::from_millis(1_800_000_000_000);
            let mut look = alert_store.look(now);
            look.holds(condition);
            look.end(|_| false);
            let wires = wires(&alert_store, Duration::from_secs(60), now);
            for peer in &peers {
                peer.offer(&wires[wires.len() - 1..]);
            }
            for _ in 0..3 {
                let arrived: Instant = arrivals.recv().await.unwrap();
                took.push(arrived.duration_since(began));
            }
        }
        stop.cancel();
        took
    });
    runtime.shutdown_background();
    took.sort();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
    println!(
        "an alert on the wire, one receiver of four hanging: p50 {:?}, p99 {:?}, most {:?}",
        at(0.5),
        at(0.99),
        at(1.0)
    );
}

fn peer(address: SocketAddr) -> Arc<AlertmanagerPeer> {
    let url = Url::parse(&format!("http://{address}/")).unwrap();
    let settings = AlertmanagerConfig {
        urls: vec![url.clone()],
        auth: None,
        tls: TlsConfig::default(),
        labels: Labels::new(),
        resend: Duration::from_secs(60),
        timeout: Duration::from_secs(10),
        watchdog: false,
    };
    let style = AlertStyle {
        external: Labels::new(),
        page: Url::parse("https://leadsman.example.com/").ok(),
    };
    AlertmanagerPeer::new(
        &url,
        address,
        Arc::new(settings),
        Arc::new(style),
        Arc::new(Silent),
        Permit::always(),
    )
}

/// A server that answers everything with 200, and tells when a POST has come.
async fn receive(listener: TcpListener, told: mpsc::UnboundedSender<Instant>) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else {
            return;
        };
        let told = told.clone();
        tokio::spawn(async move {
            let mut bytes = Vec::new();
            let mut buffer = [0; 16 * 1024];
            loop {
                let count = stream.read(&mut buffer).await.unwrap_or(0);
                if count == 0 {
                    return;
                }
                bytes.extend_from_slice(&buffer[..count]);
                let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
                let Some((head, body)) = text.split_once("\r\n\r\n") else {
                    continue;
                };
                let length = head.split("content-length: ").nth(1);
                let length = length.and_then(|rest| rest.split("\r\n").next()?.parse().ok());
                if body.len() < length.unwrap_or(0) {
                    continue;
                }
                if head.starts_with("post") {
                    let _ = told.send(Instant::now());
                }
                bytes.clear();
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]";
                if stream.write_all(answer).await.is_err() {
                    return;
                }
            }
        });
    }
}

criterion_group!(benches, on_the_wire, alerting);
criterion_main!(benches);
