//! A tunnel through an HTTP proxy.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::error::ProbeError;
use super::stream::CountedTcp;
use super::timing::{ProbeStage, ProbeTiming, cut};
use crate::config::Target;
use crate::core::probe_result::Reason;

/// Maximum answer to CONNECT, which is a head without a body.
const ANSWER_LIMIT: usize = 16 * 1024;

/// Bytes of an invalid answer that are shown.
const SHOWN: usize = 60;

/// Asks the proxy at the other end of a connection for a tunnel to the target. What it returns leads to the target, and
/// nothing has come through it yet.
pub(super) async fn tunnel(
    mut tcp: CountedTcp,
    target: &Target,
    timing: &mut ProbeTiming<'_>,
) -> Result<CountedTcp, ProbeError> {
    timing.enter(ProbeStage::Proxy);
    let host = target.url().host_str().unwrap_or("");
    let authority = format!("{host}:{}", target.port());
    let refused = |why: &str| {
        let text = format!("the proxy gives no tunnel to {authority}: {why}");
        ProbeError::bad(Reason::Proxy, text).reached()
    };
    let failed =
        |error: std::io::Error| ProbeError::broken(&error, Reason::Proxy, "no tunnel").of_proxy();
    tcp.meter().request();
    let request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
    tcp.write_all(request.as_bytes()).await.map_err(failed)?;
    let mut answer = Vec::with_capacity(512);
    let end = loop {
        if let Some(at) = answer.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if answer.len() >= ANSWER_LIMIT {
            return Err(refused("its answer has no end"));
        }
        if (&mut tcp)
            .take(1024)
            .read_buf(&mut answer)
            .await
            .map_err(failed)?
            == 0
        {
            return Err(refused("it closes the connection"));
        }
    };
    match status_of(&answer) {
        Some(200..=299) => {}
        Some(status) => return Err(refused(&format!("it answers {status}"))),
        None => {
            let start = cut(&String::from_utf8_lossy(&answer), SHOWN);
            return Err(refused(&format!("it answers no HTTP: {start:?}")));
        }
    }
    if answer.len() > end {
        // In TLS it is our turn to speak.
        return Err(refused("it sends data before the target can"));
    }
    timing.note(|step| *step = format!("the proxy gives a tunnel to {authority}"));
    Ok(tcp)
}

/// The status of an answer that starts with `HTTP/1.x NNN`.
fn status_of(answer: &[u8]) -> Option<u16> {
    let rest = answer.strip_prefix(b"HTTP/1.")?;
    let (minor, rest) = rest.split_first()?;
    let code = rest.strip_prefix(b" ")?.get(..3)?;
    let known = matches!(minor, b'0' | b'1') && code.iter().all(u8::is_ascii_digit);
    let ended = matches!(rest.get(4), Some(b' ' | b'\r'));
    if !known || !ended {
        return None;
    }
    std::str::from_utf8(code).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::clock;
    use tokio::net::{TcpListener, TcpStream};

    #[test]
    fn statuses() {
        for (text, status) in [
            ("HTTP/1.1 200 OK\r\n", Some(200)),
            ("HTTP/1.0 200\r\n", Some(200)),
            ("HTTP/1.1 407 Who\r\n", Some(407)),
            ("HTTP/1.1 2000\r\n", None),
            ("HTTP/1.1 20\r\n", None),
            ("HTTP/1.1 +20 \r\n", None),
            ("HTTP/2 200 \r\n", None),
            ("HTTP/1.", None),
            ("", None),
        ] {
            assert_eq!(status_of(text.as_bytes()), status, "{text:?}");
        }
    }

    /// What the proxy answers, and what becomes of it.
    async fn check(answer: &[u8], expected: Result<(), &str>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, server) = tokio::join!(client, listener.accept());
        let (mut server, _) = server.unwrap();
        let target = Target::parse("https://[::1]:444/path?secret", "http").unwrap();
        let mut timing = ProbeTiming::start(clock::now, None);
        server.write_all(answer).await.unwrap();
        server.shutdown().await.unwrap();
        let got = tunnel(CountedTcp::new(client.unwrap()), &target, &mut timing).await;
        let shown = String::from_utf8_lossy(answer);
        match (got, expected) {
            (Ok(_), Ok(())) => {}
            (Err(probe_error), Err(text)) => {
                assert!(
                    probe_error.explanation.contains(text),
                    "{shown}: {probe_error:?}"
                );
            }
            (got, expected) => panic!("{shown}: {got:?} in place of {expected:?}"),
        }
        let mut request = vec![0; 64];
        let read = server.read(&mut request).await.unwrap();
        let request = String::from_utf8_lossy(&request[..read]);
        assert!(
            request.starts_with("CONNECT [::1]:444 HTTP/1.1\r\nHost: [::1]:444\r\n"),
            "{request}"
        );
    }

    #[tokio::test]
    async fn what_a_proxy_may_answer() {
        check(b"HTTP/1.1 200 Connection established\r\n\r\n", Ok(())).await;
        check(b"HTTP/1.0 204\r\nVia: x\r\n\r\n", Ok(())).await;
        check(b"HTTP/1.1 407 Who\r\n\r\n", Err("answers 407")).await;
        check(b"SSH-2.0-x\r\n\r\n", Err("no HTTP")).await;
        check(b"HTTP/1.1 200 OK\r\n", Err("closes")).await;
        check(b"", Err("closes")).await;
        check(b"HTTP/1.1 200 OK\r\n\r\nearly", Err("before the target")).await;
        check(&b"x".repeat(40_000), Err("no end")).await;
    }
}
