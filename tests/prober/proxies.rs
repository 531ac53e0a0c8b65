//! Through a proxy.

use std::time::Duration;

use leadsman::config::Target;
use leadsman::config::settings::{HttpProbeConfig, HttpVersions};
use leadsman::core::probe_result::{HttpVersion, Reason};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::ask::{GOOD, SHORT, bad, check, check_within, target};
use crate::support::pki::{Pki, certificate};
use crate::support::script::{Step, answer};
use crate::support::server::Server;

/// A proxy that gives each tunnel that is asked for. It ends when this is dropped.
struct Tunnels {
    url: String,
    task: tokio::task::JoinHandle<()>,
}

impl Tunnels {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let task = tokio::spawn(async move {
            let mut tunnels = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                tunnels.spawn(dig(stream));
            }
        });
        Self { url, task }
    }
}

impl Drop for Tunnels {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn dig(mut client: TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    let wanted = head.strip_prefix("CONNECT ").unwrap();
    let (authority, _) = wanted.split_once(' ').unwrap();
    let mut server = TcpStream::connect(authority).await.unwrap();
    // In pieces, as networks do it.
    for part in ["HTTP/1.1 200 Conn", "ected\r\nVia: test\r\n\r", "\n"] {
        client.write_all(part.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
}

fn through(
    proxy: Target,
    change: impl FnOnce(&mut HttpProbeConfig),
) -> impl FnOnce(&mut HttpProbeConfig) {
    move |q| {
        q.proxy = Some(proxy);
        q.proxy_resolves = true;
        change(q);
    }
}

#[tokio::test]
async fn a_tunnel_leads_to_the_target_and_its_certificate() {
    let pki = Pki::new();
    let proxy = Tunnels::new().await;
    for (http, version) in [
        (HttpVersions::Http1, HttpVersion::V11),
        (HttpVersions::Auto, HttpVersion::V20),
    ] {
        let config = pki.server(&certificate(&["localhost"]).http2());
        let server = Server::tls(config, |_| answer(200).body("ok")).await;
        let change = |q: &mut HttpProbeConfig| {
            q.connect.tls.ca_file = Some(pki.ca_file());
            q.http = http;
        };
        let url = server.url_of("localhost", "/x");
        let result = check("tunnel", url, through(target(&proxy.url), change), GOOD).await;
        assert_eq!(result.answer.http_version, Some(version));
        assert!(!result.answer.resolved, "the proxy resolves");
        assert!(result.answer.tls.is_some());
        let request = server.request();
        assert_eq!(request.path, "/x");
        assert_eq!(request.sni.as_deref(), Some("localhost"));
    }
}

#[tokio::test]
async fn a_proxy_that_fails_is_told_apart_from_the_target() {
    for (rule, steps) in [
        ("hangs", vec![Step::Hang]),
        (
            "breaks off",
            vec![Step::Bytes("HTTP/1.1 2".into()), Step::Close],
        ),
        ("resets", vec![Step::Reset]),
        (
            "is none",
            vec![Step::Bytes("220 mail\r\n\r\n".into()), Step::Hang],
        ),
        ("has no end", vec![Step::Forever(vec![b'x'; 1000])]),
        (
            "speaks for the target",
            vec![
                Step::Bytes("HTTP/1.1 200 OK\r\n\r\nearly".into()),
                Step::Hang,
            ],
        ),
    ] {
        let server = Server::connections_only(steps).await;
        let change = through(target(server.url("/")), |_| {});
        let url = "https://localhost:1/";
        check_within(rule, SHORT, url, change, bad(Reason::Proxy)).await;
    }
    let unknown = through(target("http://no-such-proxy.invalid:1/"), |_| {});
    let result = check("name", "http://127.0.0.1:1/", unknown, bad(Reason::Proxy)).await;
    assert!(!result.answer.resolved && result.phases.resolve.is_zero());
}
