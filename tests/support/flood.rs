//! Servers that send without an end.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The settings that begin HTTP/2.
pub const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

/// The status 103 as HTTP/2 has it, written out.
pub const EARLY_HINTS: &[u8] = &[0x08, 3, b'1', b'0', b'3'];

/// A frame of HTTP/2.
pub fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let [.., high, low] = payload.len().to_be_bytes();
    let mut frame = vec![0, high, low, kind, flags, 0, 0, 0, stream];
    frame.extend(payload);
    frame
}

/// Whether the head of a request is among what came: of HTTP/1, or of HTTP/2 behind the preface.
pub fn has_request(seen: &[u8]) -> bool {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let Some(mut rest) = seen.strip_prefix(PREFACE) else {
        let may_be_preface = PREFACE.starts_with(seen) || seen.starts_with(PREFACE);
        return !may_be_preface && seen.windows(4).any(|four| four == b"\r\n\r\n");
    };
    while let [a, b, c, kind, _, _, _, _, _, ..] = rest {
        if *kind == 1 {
            return true;
        }
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        rest = rest.get(9 + length..).unwrap_or_default();
    }
    false
}

/// A server that sends `greeting` to each connection and, once a request came, `once` and then `flood` without an end.
pub struct Flood {
    address: SocketAddr,
    taken: Arc<AtomicUsize>,
}

impl Flood {
    pub fn start(greeting: &[u8], once: &[u8], flood: &[u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let taken = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&taken);
        let greeting = greeting.to_vec();
        let once = once.to_vec();
        let flood = flood.repeat(16_384 / flood.len() + 1);
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let script = [&greeting, &once, &flood].map(Clone::clone);
                let counter = Arc::clone(&counter);
                std::thread::spawn(move || pour(stream, &script, &counter));
            }
        });
        Self { address, taken }
    }

    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// Bytes of the flood that somebody, or the system on the way, has taken.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }
}

fn pour(mut stream: TcpStream, script: &[Vec<u8>; 3], taken: &AtomicUsize) -> Option<()> {
    let [greeting, once, flood] = script;
    stream.write_all(greeting).ok()?;
    let mut seen = Vec::new();
    let mut some = vec![0; 65536];
    while !has_request(&seen) {
        let read = stream.read(&mut some).ok().filter(|read| *read > 0)?;
        seen.extend_from_slice(&some[..read]);
    }
    // What is answered is read, so that nobody waits for us.
    let mut answers = stream.try_clone().ok()?;
    std::thread::spawn(move || while answers.read(&mut some).is_ok_and(|read| read > 0) {});
    stream.write_all(once).ok()?;
    while stream.write_all(flood).is_ok() {
        taken.fetch_add(flood.len(), Ordering::Relaxed);
    }
    Some(())
}
