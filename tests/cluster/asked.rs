//! A target that notes when it is asked, and so how long nobody probed.

#![allow(unreachable_pub, reason = "shared by the tests of one binary")]

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The name of its probe. It has no pods.
pub const PROBE: &str = "counted";

/// A target of our own that notes when it is asked.
pub struct Asked {
    port: u16,
    at: Arc<Mutex<Vec<Instant>>>,
}

impl Asked {
    pub fn listen() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let at = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&at);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let noted = Arc::clone(&noted);
                std::thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    // A probe's request comes in one piece.
                    while let Ok(1..) = stream.read(&mut buffer) {
                        noted.lock().unwrap().push(Instant::now());
                        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                        if stream.write_all(answer).is_err() {
                            break;
                        }
                    }
                });
            }
        });
        Self { port, at }
    }

    /// The probe of it, as the last one of a release.
    pub fn probe(&self) -> String {
        format!(
            "[[release.probe]]\nname = \"{PROBE}\"\nurl = \"http://127.0.0.1:{}/\"\n",
            self.port
        )
    }

    /// The longest time between two questions since a moment.
    pub fn longest_pause(&self, since: Instant) -> Duration {
        let at = self.at.lock().unwrap();
        let at: Vec<_> = at.iter().filter(|at| **at >= since).collect();
        assert!(at.len() > 10, "{}", at.len());
        at.windows(2)
            .map(|two| two[1].duration_since(*two[0]))
            .max()
            .unwrap()
    }
}
