//! The daemon's listener answers every request, above all what claims to be a notification of Alertmanager.

#![no_main]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::OnceLock;
use std::time::Duration;

use leadsman::config::{self, Sources};
use leadsman::daemon::Daemon;
use libfuzzer_sys::fuzz_target;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

const PROBES: &str = r#"
[serve]
listen = "127.0.0.1:0"
token_file = "TOKEN"
[[release]]
name = "mykadoo"
namespace = "shop"
base_url = "http://127.0.0.1:9"
interval = "1h"
[[release.alert]]
match = { alertname = "Errors.*" }
weight = "inconclusive"
[[release.probe]]
name = "api"
path = "/"
"#;

/// A daemon in this process, so that what it goes through is counted.
fn daemon() -> SocketAddr {
    static STARTED: OnceLock<(SocketAddr, tempfile::TempDir)> = OnceLock::new();
    let (address, _) = STARTED.get_or_init(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("probes.toml");
        let token = folder.path().join("token");
        std::fs::write(&token, TOKEN).expect("written");
        let probes = PROBES.replace("TOKEN", token.to_str().expect("a name"));
        std::fs::write(&file, probes).expect("written");
        let sources = Sources {
            files: vec![file],
            environment: Vec::new(),
            flags: Vec::new(),
            discovered: Vec::new(),
        };
        let loaded = config::load(&sources).unwrap_or_else(|diagnostics| panic!("{diagnostics}"));
        let (send, receive) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let daemon = Daemon::start(loaded.settings).await.expect("it starts");
                send.send(daemon.address()).expect("somebody waits");
                std::future::pending::<()>().await;
            });
        });
        (receive.recv().expect("it starts"), folder)
    });
    *address
}

fuzz_target!(|data: &[u8]| {
    let Some((how, data)) = data.split_first() else {
        return;
    };
    let mut stream = TcpStream::connect(daemon()).expect("it listens");
    let is_raw = how % 4 == 0;
    // What is no whole request is waited for; that is tested elsewhere.
    let patience = Duration::from_millis(if is_raw { 20 } else { 20_000 });
    stream.set_read_timeout(Some(patience)).expect("a limit");
    if !is_raw {
        let head = format!(
            "POST /api/v1/alerts HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            data.len()
        );
        stream.write_all(head.as_bytes()).expect("written");
    }
    // It may have answered and closed before it has read all.
    let _ = stream.write_all(data);
    let mut answer = Vec::new();
    let end = if is_raw {
        stream.read(&mut [0; 4096])
    } else {
        stream.read_to_end(&mut answer)
    };
    if !is_raw {
        let status = answer.get(9..12).unwrap_or(b"");
        let known: [&[u8]; 5] = [b"202", b"400", b"413", b"422", b"503"];
        assert!(
            known.contains(&status),
            "{end:?} {}",
            String::from_utf8_lossy(&answer)
        );
    }
});
