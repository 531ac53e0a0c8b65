//! What becomes of the bytes of a write that is given up, seen from the other end of the connection.

#![allow(clippy::unwrap_used, reason = "a test may end where it stands")]

use std::collections::BTreeMap;
use std::io::ErrorKind;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

use super::*;
use crate::platform::clock;
use crate::platform::permit::{HeldLease, Permit};

/// The longest that the other end waits for what it expects.
const PATIENCE: Duration = Duration::from_secs(30);

/// An API server that answers nothing by itself, and takes few bytes before they are read.
fn server() -> (TcpListener, Client) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(8).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let client = client(Config::new(url.parse().unwrap())).unwrap();
    (listener, client)
}

fn map(bytes: usize) -> ConfigMap {
    let mut map = ConfigMap::default();
    map.metadata.name = Some("state".into());
    map.binary_data = Some(BTreeMap::from([(
        "state".into(),
        ByteString(vec![7; bytes]),
    )]));
    map
}

/// A write under a permit, which ends when `lease` says so.
struct Writing {
    lease: watch::Sender<Option<HeldLease>>,
    written: tokio::task::JoinHandle<Result<ConfigMap, WriteError>>,
}

impl Writing {
    fn begin(client: &Client, bytes: usize) -> Self {
        let held = HeldLease {
            until: clock::now() + Duration::from_secs(3600),
            fence: 1,
        };
        let (lease, permit) = watch::channel(Some(held));
        let api: Api<ConfigMap> = Api::namespaced(client.clone(), "ours");
        let written = tokio::spawn(async move {
            let permit = Permit::of(permit);
            let writer = ApiWriter::new(&permit, PATIENCE);
            writer.create(&api, None, &map(bytes)).await
        });
        Self { lease, written }
    }

    /// The permit ends; so does the write.
    async fn loses_the_permit(self) {
        self.lease.send_replace(None);
        let written = self.written.await.unwrap();
        assert!(matches!(written, Err(WriteError::NotHeld)), "{written:?}");
    }
}

/// Reads to the end of a connection: how many bytes came, and how it ended; `None` is in order.
async fn drained(mut stream: TcpStream) -> (usize, Option<ErrorKind>) {
    let mut buffer = vec![0; 64 * 1024];
    let mut count = 0;
    loop {
        let read = tokio::time::timeout(PATIENCE, stream.read(&mut buffer));
        match read.await.unwrap() {
            Ok(0) => return (count, None),
            Ok(more) => count += more,
            Err(error) => return (count, Some(error.kind())),
        }
    }
}

#[tokio::test]
async fn a_write_that_waits_for_its_answer_ends_with_the_permit_and_resets_its_connection() {
    let (listener, client) = server();
    let writing = Writing::begin(&client, 10);
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut buffer = [0; 4096];
    assert!(stream.read(&mut buffer).await.unwrap() > 0);
    writing.loses_the_permit().await;
    let (_, end) = drained(stream).await;
    let reset = Some(ErrorKind::ConnectionReset);
    assert_eq!(end, reset, "closed in order, the kernel goes on sending");
}

#[tokio::test]
async fn what_of_a_write_was_not_sent_when_the_permit_ended_is_never_sent() {
    const BYTES: usize = 900_000;
    let (listener, client) = server();
    let writing = Writing::begin(&client, BYTES);
    // Its first bytes have come; the others wait in buffers: ours, and those of the kernel.
    let (stream, _) = listener.accept().await.unwrap();
    assert!(stream.peek(&mut [0]).await.unwrap() > 0);
    writing.loses_the_permit().await;
    let (count, end) = drained(stream).await;
    assert!(count < BYTES, "all of it came: {count} bytes");
    assert_eq!(end, Some(ErrorKind::ConnectionReset), "{count} bytes");
}

#[tokio::test]
async fn an_answered_write_keeps_its_connection() {
    let (listener, client) = server();
    let mut connection = None;
    for _ in 0..2 {
        let writing = Writing::begin(&client, 10);
        if connection.is_none() {
            connection = Some(listener.accept().await.unwrap().0);
        }
        let stream = connection.as_mut().unwrap();
        let mut seen = Vec::new();
        let mut buffer = [0; 4096];
        while !seen.ends_with(b"}") {
            let read = tokio::time::timeout(PATIENCE, stream.read(&mut buffer));
            let count = read.await.unwrap().unwrap();
            assert!(count > 0, "the connection was closed");
            seen.extend_from_slice(&buffer[..count]);
        }
        let body = serde_json::to_string(&map(10)).unwrap();
        let answer = format!(
            "HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(answer.as_bytes()).await.unwrap();
        assert!(writing.written.await.unwrap().is_ok());
        // It ends after the answer, which changes nothing any more.
        writing.lease.send_replace(None);
    }
}
