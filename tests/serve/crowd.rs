//! Strangers who hold connections and ask nothing: whoever has a question is answered all the same.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tokio::net::TcpSocket;

use crate::program::{Leadsman, until};
use crate::serve::replica::{LONG, Made, Replica};
use crate::support::pki::Pki;

/// More than `serve.max_connections` by default.
const CROWD: usize = 640;

/// For so long the crowd stays.
const SIEGE: Duration = Duration::from_secs(25);

/// A thousand times what an answer takes.
const PATIENCE: Duration = Duration::from_secs(10);

const QUIET: &str = "[serve]\nlisten = \"127.0.0.1:0\"\n";
const RELEASE: &str = "[[release]]\nname = \"a\"\nnamespace = \"b\"\n[[release.probe]]\nname = \"c\"\nurl = \"tcp://127.0.0.1:1\"\n";

/// Connections that are held, and opened again when they have been closed.
struct Crowd {
    stop: Arc<AtomicBool>,
    held: Arc<AtomicUsize>,
    holding: Option<JoinHandle<()>>,
}

/// A third of the crowd comes from one address, the rest from addresses of their own.
fn source(number: usize) -> Ipv4Addr {
    let [_, _, high, low] = u32::try_from(number).unwrap().to_be_bytes();
    if number.is_multiple_of(3) {
        Ipv4Addr::LOCALHOST
    } else {
        Ipv4Addr::new(127, 1, high, low)
    }
}

async fn connect(number: usize, to: SocketAddr) -> Option<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    let from = SocketAddr::new(IpAddr::V4(source(number)), 0);
    socket.bind(from).unwrap();
    // Who is at the end of the listener's queue tries again.
    let connecting = tokio::time::timeout(Duration::from_secs(1), socket.connect(to));
    let mut stream = connecting.await.ok()?.ok()?.into_std().unwrap();
    stream.set_nonblocking(true).unwrap();
    let _ = stream.write(greeting(number));
    Some(stream)
}

/// What one says at first: nothing, a part of a head (or of a TLS record), and the preface of HTTP/2.
fn greeting(number: usize) -> &'static [u8] {
    match number % 8 {
        0..=4 => b"",
        5 | 6 => b"\x16",
        // It is refused at once, so it comes again and again.
        _ => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    }
}

impl Crowd {
    fn around(address: SocketAddr, size: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let held = Arc::new(AtomicUsize::new(0));
        let (stopped, holding) = (Arc::clone(&stop), Arc::clone(&held));
        let holding = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let mut streams: Vec<Option<TcpStream>> = (0..size).map(|_| None).collect();
            let mut dribbled = Instant::now();
            while !stopped.load(Ordering::SeqCst) {
                let is_time = dribbled.elapsed() >= Duration::from_secs(5);
                if is_time {
                    dribbled = Instant::now();
                }
                let mut gone = Vec::new();
                for (number, slot) in streams.iter_mut().enumerate() {
                    let is_open = slot.as_ref().is_some_and(|stream| {
                        let read = stream.peek(&mut [0; 1]);
                        read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
                    });
                    if !is_open {
                        gone.push(number);
                    } else if let Some(stream) = slot
                        && is_time
                        && matches!(number % 8, 5 | 6)
                    {
                        let _ = stream.write(b"\x03");
                    }
                }
                // All at once.
                let coming = gone.iter().map(|number| connect(*number, address));
                let came = runtime.block_on(futures::future::join_all(coming));
                for (number, stream) in gone.into_iter().zip(came) {
                    streams[number] = stream;
                }
                holding.store(streams.iter().flatten().count(), Ordering::SeqCst);
                // Who is closed comes again a second later.
                std::thread::sleep(Duration::from_secs(1));
            }
        });
        let crowd = Self {
            stop,
            held,
            holding: Some(holding),
        };
        until("the crowd is there", || crowd.size() == size);
        crowd
    }

    fn size(&self) -> usize {
        self.held.load(Ordering::SeqCst)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(holding) = self.holding.take() {
            let _ = holding.join();
        }
    }
}

/// One request on a connection of its own, over TLS where there is an authority.
fn ask(address: SocketAddr, path: &str, authority: Option<&Arc<ClientConfig>>) -> String {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let mut text = Vec::new();
    let read = match authority {
        None => {
            let mut stream = stream;
            let written = stream.write_all(request.as_bytes());
            written.and_then(|()| stream.read_to_end(&mut text))
        }
        Some(config) => {
            let name = ServerName::try_from("localhost").unwrap();
            let connection = ClientConnection::new(Arc::clone(config), name).unwrap();
            let mut stream = StreamOwned::new(connection, stream);
            let written = stream.write_all(request.as_bytes());
            written.and_then(|()| stream.read_to_end(&mut text))
        }
    };
    let text = String::from_utf8_lossy(&text).into_owned();
    read.unwrap_or_else(|error| panic!("no answer to {path}: {error}; {text:?}"));
    text
}

/// As the kubelet and Prometheus ask.
fn withstand(leadsman: &Leadsman, authority: Option<&Arc<ClientConfig>>) {
    let address = leadsman.address();
    let crowd = Crowd::around(address, CROWD);
    until("there are too many", || {
        leadsman.said("Too many connections")
    });
    let began = Instant::now();
    let mut turn = 0;
    while began.elapsed() < SIEGE {
        let healthy = ask(address, "/-/healthy", authority);
        assert!(healthy.starts_with("HTTP/1.1 200 "), "{healthy}");
        if turn % 5 == 0 {
            let page = ask(address, "/metrics", authority);
            assert!(page.starts_with("HTTP/1.1 200 "), "{page}");
            assert!(page.contains("leadsman_build_info{"), "{page}");
            assert!(crowd.size() > CROWD / 2, "the crowd has gone");
        }
        turn += 1;
        // The pace at which they ask.
        std::thread::sleep(Duration::from_secs(1));
    }
}

#[test]
fn while_640_hold_connections_and_ask_nothing_others_are_answered() {
    let leadsman = Leadsman::run(&format!("{QUIET}{RELEASE}"), &[]);
    withstand(&leadsman, None);
    let log = leadsman.log();
    let said = log.matches("Too many connections").count();
    assert!(said <= 3, "not each time: {log}");
}

#[test]
fn while_640_never_shake_hands_others_are_answered() {
    let pki = Pki::new();
    let (cert, key) = pki.server_files(&["localhost"]);
    let tls = format!("[serve.tls]\ncert_file = {cert:?}\nkey_file = {key:?}\n");
    let leadsman = Leadsman::run(&format!("{QUIET}{tls}{RELEASE}"), &[]);
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_file_iter(pki.ca_file()).unwrap() {
        roots.add(authority.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    withstand(&leadsman, Some(&Arc::new(config)));
}

/// Fewer file descriptors than connections: one of an idle client is taken back for whoever comes next.
#[test]
fn without_file_descriptors_others_are_answered() {
    let leadsman = Leadsman::run(&format!("{QUIET}{RELEASE}"), &[]);
    let pid = leadsman.pid().to_string();
    let limited = Command::new("prlimit")
        .args(["--pid", &pid, "--nofile=100:100"])
        .status();
    assert!(limited.unwrap().success());
    let _crowd = Crowd::around(leadsman.address(), 200);
    until("there were no file descriptors", || {
        leadsman.said("Could not accept a connection")
    });
    for _ in 0..10 {
        let healthy = ask(leadsman.address(), "/-/healthy", None);
        assert!(healthy.starts_with("HTTP/1.1 200 "), "{healthy}");
    }
    let log = leadsman.log();
    let said = log.matches("Could not accept a connection").count();
    assert!(said <= 3, "not each time: {log}");
}

#[test]
fn a_head_that_comes_byte_by_byte_is_given_up() {
    let replica = Replica::start(Made::default());
    let mut stream = TcpStream::connect(replica.address).unwrap();
    // The next head, after a request that was answered, has no more time than the first.
    let whole = b"GET /-/ready HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut another = TcpStream::connect(replica.address).unwrap();
    another.write_all(whole).unwrap();
    assert!(another.read(&mut [0; 4096]).unwrap() > 0);
    let began = Instant::now();
    let mut open = [true; 2];
    while open != [false; 2] {
        assert!(began.elapsed() < LONG, "still open: {open:?}");
        for (stream, open) in [&mut stream, &mut another].into_iter().zip(&mut open) {
            *open = *open && stream.write_all(b"G").is_ok();
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}
