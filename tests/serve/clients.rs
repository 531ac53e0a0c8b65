//! Clients that are slow, or stuck, or many.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use leadsman::config::settings::TlsConfig as LeaseTls;

use crate::program::until;
use crate::serve::replica::{LONG, Made, Replica, token};

const RECORDING: &str = "/api/v1/releases/shop/mykadoo/rollouts/2/recording";

/// More than the buffers of two sockets hold.
const LARGE: usize = 32 * 1024 * 1024;

/// Says something, and then nothing.
fn begin(address: SocketAddr, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    stream
}

/// Reads the beginning of a recording, and nothing more.
fn reads_no_further(address: SocketAddr) -> TcpStream {
    let head =
        format!("GET {RECORDING} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer tok-right\r\n\r\n");
    let mut stream = begin(address, &head);
    let mut status = [0; 12];
    stream.read_exact(&mut status).unwrap();
    assert_eq!(&status, b"HTTP/1.1 200");
    stream
}

fn sends_half_a_body(address: SocketAddr) -> TcpStream {
    let path = "/api/v1/releases/shop/mykadoo/rollback";
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer tok-right\r\nContent-Length: 100\r\n\r\n{{\"re"
    );
    begin(address, &head)
}

fn large(file: std::path::PathBuf) -> Replica {
    Replica::start(Made {
        token_file: Some(file),
        recording: vec![b'x'; LARGE],
        ..Made::default()
    })
}

#[test]
fn the_stop_waits_for_nobody_for_long() {
    let (_folder, file) = token();
    let replica = large(file);
    let mut clients = vec![
        reads_no_further(replica.address),
        reads_no_further(replica.address),
    ];
    clients.extend((0..3).map(|_| sends_half_a_body(replica.address)));
    clients.extend((0..3).map(|_| begin(replica.address, "GET /metrics HTT")));
    let whole = "GET /-/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let _late = begin(replica.address, whole);
    replica.stop();
    replica.ends();
}

#[test]
fn a_body_that_does_not_come_is_given_up() {
    let (_folder, file) = token();
    let replica = large(file);
    // Whoever passes it on does not wait any longer.
    let follower = Replica::follower(&replica.url(), &LeaseTls::default());
    let both = [replica.address, follower.address].map(sends_half_a_body);
    for mut stream in both {
        stream.set_read_timeout(Some(LONG)).unwrap();
        let mut text = String::new();
        // The rest of the connection is of no use to anybody, and is closed.
        stream.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("HTTP/1.1 408 "), "{text}");
    }
    assert_eq!(replica.done(), 0);
}

#[test]
fn large_answers_count_until_they_have_been_taken() {
    let (_folder, file) = token();
    let replica = large(file);
    let first = reads_no_further(replica.address);
    let second = reads_no_further(replica.address);
    let third = || replica.get(RECORDING, Some("tok-right"));
    let refused = third();
    assert_eq!(refused.status, 503);
    assert!(refused.body.contains("too many recordings"));
    assert_eq!(replica.get("/metrics", None).status, 200, "others go on");
    drop(first);
    until("one has gone", || third().raw.len() == LARGE);
    drop(second);
}
