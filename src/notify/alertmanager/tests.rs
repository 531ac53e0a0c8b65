#![allow(clippy::unwrap_used, reason = "a test may end where it stands")]

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::config::settings::TlsConfig;
use crate::core::alerts::{AlertKind, AlertStore, Condition, Labels};
use crate::core::units::Time;
use crate::notify::wires;
use crate::platform::permit::Permit;

/// So many alerts, as they are sent.
fn alerts(count: usize) -> Vec<Arc<AlertPayload>> {
    let mut alert_store = AlertStore::default();
    let conditions = (0..count).map(|number| Condition {
        kind: AlertKind::ReleaseRegressed,
        place: Labels::from([
            ("release".to_owned(), format!("r{number:05}")),
            ("revision".to_owned(), "7".to_owned()),
        ]),
        text: "because".into(),
        fragment: String::new(),
    });
    alert_store.observe(conditions, |_| true, Time::from_millis(1_767_607_200_000));
    wires(
        &alert_store,
        Duration::from_secs(60),
        Time::from_millis(1_767_607_200_000),
    )
}

/// The same alert with a label that tells it from all others.
fn named(payload: &Arc<AlertPayload>, name: &str) -> Arc<AlertPayload> {
    let labels = Labels::from([("alertname".to_owned(), name.to_owned())]);
    Arc::new(AlertPayload {
        labels: LabelSet::from(&labels),
        ..AlertPayload::clone(payload)
    })
}

#[derive(Default)]
struct Counted {
    dropped: AtomicUsize,
    failed: AtomicUsize,
    gone: AtomicUsize,
}

impl AlertmanagerObserver for Counted {
    fn appears(&self, _: &str) {}
    fn is_gone(&self, _: &str) {
        self.gone.fetch_add(1, Ordering::Relaxed);
    }
    fn sent(&self, _: &str, _: usize, _: Duration) {}
    fn failed(&self, _: &str, count: usize) {
        self.failed.fetch_add(count, Ordering::Relaxed);
    }
    fn dropped(&self, _: &str, count: usize) {
        self.dropped.fetch_add(count, Ordering::Relaxed);
    }
    fn waiting(&self, _: &str, _: usize) {}
    fn confirmed(&self, _: &str, _: usize, _: usize) {}
}

fn peer(address: SocketAddr, meter: &Arc<Counted>) -> Arc<AlertmanagerPeer> {
    peer_of(&address.ip().to_string(), address, meter)
}

/// One of the addresses of a name.
fn peer_of(name: &str, address: SocketAddr, meter: &Arc<Counted>) -> Arc<AlertmanagerPeer> {
    let url = Url::parse(&format!("http://{name}:{}", address.port())).unwrap();
    let settings = Arc::new(AlertmanagerConfig {
        urls: vec![url.clone()],
        auth: None,
        tls: TlsConfig::default(),
        labels: Labels::new(),
        resend: Duration::from_secs(3600),
        timeout: Duration::from_secs(10),
        watchdog: false,
    });
    let style = Arc::new(AlertStyle {
        external: Labels::new(),
        page: None,
    });
    let meter: Arc<dyn AlertmanagerObserver> = Arc::clone(meter) as _;
    AlertmanagerPeer::new(&url, address, settings, style, meter, Permit::always())
}

/// The head and the body of the next request.
async fn request(stream: &mut TcpStream) -> (String, String) {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(": ")?;
                let is_it = name.eq_ignore_ascii_case("content-length");
                is_it.then(|| value.parse::<usize>().unwrap())
            });
            if body.len() >= length.unwrap_or(0) {
                return (head.to_owned(), body.to_owned());
            }
        }
        let mut buffer = [0; 8192];
        let count = stream.read(&mut buffer).await.unwrap();
        assert!(count > 0, "it ended before the request did");
        bytes.extend_from_slice(&buffer[..count]);
    }
}

const FINE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]";

#[test]
fn the_oldest_makes_room_and_the_newest_of_an_alert_counts() {
    let mut queue = AlertQueue::default();
    let one = &alerts(1)[0];
    let of = |number: usize| named(one, &number.to_string());
    let dropped: usize = (0..CAPACITY + 3)
        .map(|number| queue.offer(&of(number)))
        .sum();
    assert_eq!((dropped, queue.order.len()), (3, CAPACITY));
    // One that waits already takes no more room.
    assert_eq!(queue.offer(&of(10)), 0);
    let batch = queue.take();
    assert_eq!(batch.len(), BATCH);
    assert_eq!(batch[0].labels, of(3).labels);
    // What did not arrive goes back to the front, as far as there is room for it.
    for number in 0..10 {
        queue.offer(&of(CAPACITY + 100 + number));
    }
    assert_eq!(queue.put_back(batch), 10);
    assert_eq!(queue.order.len(), CAPACITY);
    assert_eq!(queue.take()[0].labels, of(13).labels, "the oldest went");
}

#[tokio::test]
async fn alerts_come_in_batches_and_what_is_on_its_way_at_the_stop_arrives() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let meter = Arc::new(Counted::default());
    let peer = peer(listener.local_addr().unwrap(), &meter);
    peer.offer(&alerts(2 * BATCH + 1));
    let stop = CancellationToken::new();
    let running = tokio::spawn({
        let (peer, stop) = (Arc::clone(&peer), stop.clone());
        async move { peer.run(stop).await }
    });
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut counts = Vec::new();
    for at in 0..3 {
        let (head, body) = request(&mut stream).await;
        assert!(head.starts_with("POST /api/v2/alerts "), "{head}");
        let all: Vec<serde_json::Value> = serde_json::from_str(&body).unwrap();
        counts.push(all.len());
        if at == 0 {
            // It has arrived, and its answer is late.
            stop.cancel();
            tokio::task::yield_now().await;
        }
        stream.write_all(FINE).await.unwrap();
    }
    running.await.unwrap();
    assert_eq!(counts, [BATCH, BATCH, 1]);
    assert_eq!(meter.failed.load(Ordering::Relaxed), 0);
    assert!(peer.is_tried() && peer.failing_since().is_none());
    drop(peer);
    assert_eq!(meter.gone.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn what_is_refused_as_it_is_is_not_sent_again() {
    for status in [400, 413, 415, 422] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let meter = Arc::new(Counted::default());
        let peer = peer(listener.local_addr().unwrap(), &meter);
        peer.offer(&alerts(1));
        let stop = CancellationToken::new();
        let running = tokio::spawn({
            let (peer, stop) = (Arc::clone(&peer), stop.clone());
            async move { peer.run(stop).await }
        });
        let (mut stream, _) = listener.accept().await.unwrap();
        request(&mut stream).await;
        let answer = format!("HTTP/1.1 {status} x\r\nContent-Length: 0\r\n\r\n");
        stream.write_all(answer.as_bytes()).await.unwrap();
        while meter.dropped.load(Ordering::Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // The next that is sent is another one.
        let other = named(&alerts(1)[0], "Other");
        peer.offer(&[other]);
        let (mut stream, _) = listener.accept().await.unwrap();
        let (_, body) = request(&mut stream).await;
        assert!(body.contains("Other") && !body.contains("r00000"), "{body}");
        stream.write_all(FINE).await.unwrap();
        stop.cancel();
        running.await.unwrap();
        assert_eq!(meter.dropped.load(Ordering::Relaxed), 1, "{status}");
    }
}

#[tokio::test]
async fn a_name_is_all_of_its_addresses_once() {
    let url = Url::parse("http://localhost:9093/prefix").unwrap();
    let found = addresses(&url).await.unwrap();
    assert!(
        found.contains(&"127.0.0.1:9093".parse().unwrap()),
        "{found:?}"
    );
    let mut sorted = found.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(found, sorted);
    let literal = Url::parse("http://[::1]:9093/").unwrap();
    assert_eq!(
        addresses(&literal).await,
        Ok(vec!["[::1]:9093".parse().unwrap()])
    );
}

/// Both addresses of a name are told all, under that name.
#[tokio::test]
async fn each_address_of_a_name_is_told_everything() {
    let one = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = one.local_addr().unwrap().port();
    let two = TcpListener::bind(("127.0.0.2", port)).await.unwrap();
    let meter = Arc::new(Counted::default());
    let stop = CancellationToken::new();
    for listener in [one, two] {
        let address = listener.local_addr().unwrap();
        let peer = peer_of("alertmanager.example.com", address, &meter);
        assert!(
            peer.name()
                .starts_with(&format!("http://{address}/api/v2/")),
            "{}",
            peer.name()
        );
        peer.offer(&alerts(2));
        let running = tokio::spawn({
            let (peer, stop) = (Arc::clone(&peer), stop.clone());
            async move { peer.run(stop).await }
        });
        let (mut stream, _) = listener.accept().await.unwrap();
        let (head, body) = request(&mut stream).await;
        let host = format!("host: alertmanager.example.com:{port}");
        assert!(head.to_ascii_lowercase().contains(&host), "{head}");
        assert!(body.contains("r00000") && body.contains("r00001"), "{body}");
        stream.write_all(FINE).await.unwrap();
        running.abort();
    }
}
