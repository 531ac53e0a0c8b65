//! People who use the app while it is deployed: steady requests through its Service.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// 50 a second.
const EVERY: Duration = Duration::from_millis(20);

/// Requests one after the other at a steady pace, whether or not the last ones were answered, until dropped.
pub(crate) struct Users {
    began: Instant,
    asked: Arc<AtomicU32>,
    failed: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Users {
    pub(crate) fn of(service: &str) -> Self {
        Self::asking(service, "/api/health")
    }

    /// The same of another path.
    pub(crate) fn asking(service: &str, path: &'static str) -> Self {
        let address = format!("{}:80", service.trim_start_matches("http://"));
        let (asked, failed) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (asked, failed, stop) =
                (Arc::clone(&asked), Arc::clone(&failed), Arc::clone(&stop));
            move || {
                // Whoever has to wait keeps nobody else from coming.
                let mut due = Instant::now();
                while !stop.load(Ordering::Relaxed) {
                    let (address, asked, failed) =
                        (address.clone(), Arc::clone(&asked), Arc::clone(&failed));
                    std::thread::spawn(move || {
                        let served = is_served(&address, path);
                        asked.fetch_add(1, Ordering::Relaxed);
                        failed.fetch_add(u32::from(!served), Ordering::Relaxed);
                    });
                    due += EVERY;
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                }
            }
        });
        Self {
            began: Instant::now(),
            asked,
            failed,
            stop,
            thread: Some(thread),
        }
    }

    /// Failed requests of all.
    pub(crate) fn counts(&self) -> (u32, u32) {
        (
            self.failed.load(Ordering::Relaxed),
            self.asked.load(Ordering::Relaxed),
        )
    }

    /// Percent of the requests of five minutes, the time that the runbook looks at, that have failed so far.
    pub(crate) fn failed_percent_of_five_minutes(&self) -> f64 {
        let long_windows = self.began.elapsed().as_secs_f64() / 300.0;
        self.failed_percent() * long_windows.min(1.0)
    }

    /// Percent of requests that failed.
    pub(crate) fn failed_percent(&self) -> f64 {
        let (failed, asked) = self.counts();
        100.0 * f64::from(failed) / f64::from(asked.max(1))
    }
}

impl Drop for Users {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn is_served(address: &str, path: &str) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else {
        return false;
    };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
    let request = format!("GET {path} HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n");
    let _ = stream.write_all(request.as_bytes());
    let mut head = [0; 12];
    stream.read_exact(&mut head).is_ok() && &head == b"HTTP/1.1 200"
}
