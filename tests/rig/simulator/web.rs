//! The HTTP server of a pod: HTTP/1.1, GET only, with the answers that it is told to give.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::behaviour::Answer;
use crate::pods::Running;

const MAX_REQUEST: usize = 16 * 1024;

/// Serves one connection to its end.
pub(crate) async fn serve(mut stream: TcpStream, pod: Arc<Running>) {
    let mut buffer = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if buffer.len() > MAX_REQUEST || !matches!(stream.read_buf(&mut buffer).await, Ok(1..))
            {
                return;
            }
        };
        let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
        buffer.drain(..end);
        let path = head.split(' ').nth(1).unwrap_or("/").to_owned();
        let path = path.split('?').next().unwrap_or("/");
        let Some((status, body)) = respond(&pod, path, &stream).await else {
            return;
        };
        pod.log(&format!("GET {path} {status}"));
        let kind = if body.starts_with('{') {
            "application/json"
        } else {
            "text/plain"
        };
        let text = format!(
            "HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        if stream.write_all(text.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Status and body; `None` ends the connection.
async fn respond(pod: &Running, path: &str, stream: &TcpStream) -> Option<(u16, String)> {
    match pod.answer(path) {
        Answer::Hang => {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            None
        }
        Answer::Reset => {
            let _ = stream.set_zero_linger();
            None
        }
        Answer::Slow(delay) => {
            tokio::time::sleep(delay).await;
            Some(good(path))
        }
        answer => Some(at_once(pod, path, &answer)),
    }
}

/// What an answer that takes no time is, at this moment.
pub(crate) fn at_once(pod: &Running, path: &str, answer: &Answer) -> (u16, String) {
    let bad = |status: u16| (status, format!("{{\"status\":\"error {status}\"}}"));
    match answer {
        Answer::Status(status) => bad(*status),
        Answer::Flap(share) if fastrand::f64() < *share => bad(503),
        Answer::Cold(span) if pod.ready_for().is_none_or(|ready| ready < *span) => bad(503),
        Answer::Body(text) => (200, text.clone()),
        _ => good(path),
    }
}

fn good(path: &str) -> (u16, String) {
    match path {
        "/" => (200, "mykadoo".into()),
        "/ready" => (200, "ready".into()),
        path if path.starts_with("/api/health") => (200, "{\"status\":\"ok\"}".into()),
        _ => (404, "not found".into()),
    }
}

/// Whether whatever listens there answers a readiness probe well.
pub(crate) async fn is_well(address: std::net::SocketAddr, path: &str) -> bool {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let asked = async {
        let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut head = [0; 12];
        stream.read_exact(&mut head).await.ok()?;
        Some(head.starts_with(b"HTTP/1.1 2"))
    };
    let asked = tokio::time::timeout(std::time::Duration::from_secs(1), asked).await;
    asked.ok().flatten().unwrap_or(false)
}
