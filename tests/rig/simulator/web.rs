//! The HTTP server of a pod: HTTP/1.1, GET only, with the answers that it is told to give; and the probes of real ones.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
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
        Answer::Limit(most) if !pod.lets_through(*most) => bad(429),
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

/// A readiness probe by HTTP.
pub(crate) struct Probe {
    pub(crate) address: std::net::SocketAddr,
    pub(crate) path: String,
    /// `scheme: HTTPS`.
    pub(crate) by_tls: bool,
}

impl Probe {
    /// Whether whatever listens there answers well: 200 to 399, within a second.
    pub(crate) async fn is_well(&self) -> bool {
        let asked = async {
            let stream = TcpStream::connect(self.address).await.ok()?;
            if self.by_tls {
                let connector = tokio_rustls::TlsConnector::from(unverified());
                let name = self.address.ip().into();
                self.ask(connector.connect(name, stream).await.ok()?).await
            } else {
                self.ask(stream).await
            }
        };
        let asked = tokio::time::timeout(Duration::from_secs(1), asked).await;
        asked.ok().flatten().unwrap_or(false)
    }

    async fn ask(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Option<bool> {
        let path = &self.path;
        let request = format!("GET {path} HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut head = [0; 10];
        stream.read_exact(&mut head).await.ok()?;
        Some(matches!(&head, b"HTTP/1.1 2" | b"HTTP/1.1 3"))
    }
}

/// TLS as a kubelet's probes speak it: with whatever certificate there is.
fn unverified() -> Arc<ClientConfig> {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    let config = CONFIG.get_or_init(|| {
        let config = ClientConfig::builder()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody));
        Arc::new(config.with_no_client_auth())
    });
    Arc::clone(config)
}

#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let provider = rustls::crypto::ring::default_provider();
        provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
