//! The HTTP client for servers that we work with (Alertmanager, Prometheus, Slack): its own trust, no redirects,
//! bounded answers, secrets read when they are used. Targets are probed by `prober` instead.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use reqwest::{
    Certificate, Client, ClientBuilder, Identity, RequestBuilder, Response, redirect, tls,
};
use sha2::{Digest as _, Sha256};
use url::Url;

use crate::config::settings::{Auth, Secret, TlsConfig};
use crate::platform::files::named::MAX_FILE;
use crate::platform::files::read_theirs;

/// The most that is read of an answer that only says how it went.
const MAX_EXCERPT: usize = 2048;

/// How long another of us may take to accept a connection. It is on the same network, so one that takes longer is gone.
const CONNECT: Duration = Duration::from_secs(2);

/// What was sent and not received within this time is given up, also by a connection that was closed meanwhile: otherwise
/// the kernel sends it again for minutes, long after another replica acts.
const UNRECEIVED: Duration = Duration::from_secs(3);

/// A client for another of us, whose host is bound to one address: no proxy stands in between.
pub(crate) fn direct_client(
    settings: &TlsConfig,
    timeout: Duration,
    url: &Url,
    address: SocketAddr,
) -> Result<Client, String> {
    let builder = builder(settings, timeout, Some((url, address)))?;
    let builder = builder.no_proxy().connect_timeout(CONNECT);
    builder.build().map_err(|error| cause(&error))
}

/// What the files of such a client hold now, in short.
pub(crate) fn contents(settings: &TlsConfig) -> Result<[u8; 32], String> {
    let own = settings.client_certificate.iter();
    let own = own.flat_map(|(certificate, key)| [certificate, key]);
    let mut digest = Sha256::new();
    for path in settings.ca_file.iter().chain(own) {
        let bytes = read(path)?;
        digest.update((bytes.len() as u64).to_le_bytes());
        digest.update(&bytes);
    }
    Ok(digest.finalize().into())
}

/// A client for one receiver; `to` binds its host to one address.
pub(crate) fn client(
    settings: &TlsConfig,
    timeout: Duration,
    to: Option<(&Url, SocketAddr)>,
) -> Result<Client, String> {
    let builder = builder(settings, timeout, to)?;
    builder.build().map_err(|error| cause(&error))
}

fn builder(
    settings: &TlsConfig,
    timeout: Duration,
    to: Option<(&Url, SocketAddr)>,
) -> Result<ClientBuilder, String> {
    // reqwest wants one for the whole process; one that is installed already is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = Client::builder()
        .user_agent(concat!("leadsman/", env!("CARGO_PKG_VERSION")))
        .timeout(timeout)
        .tcp_user_timeout(UNRECEIVED)
        .redirect(redirect::Policy::none())
        .retry(reqwest::retry::never())
        .tls_danger_accept_invalid_certs(settings.insecure_skip_verify);
    if settings.only_tls13 {
        builder = builder.tls_version_min(tls::Version::TLS_1_3);
    }
    if let Some(path) = &settings.ca_file {
        let pem = read(path)?;
        let authorities = Certificate::from_pem_bundle(&pem)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        builder = builder.tls_certs_only(authorities);
    }
    if let Some((certificate, key)) = &settings.client_certificate {
        let mut pem = read(certificate)?;
        pem.push(b'\n');
        pem.extend(read(key)?);
        let identity = Identity::from_pem(&pem)
            .map_err(|error| format!("{} and {}: {error}", certificate.display(), key.display()))?;
        builder = builder.identity(identity);
    }
    if let Some((url, address)) = to {
        builder = builder.resolve(url.host_str().unwrap_or_default(), address);
    }
    Ok(builder)
}

/// The same request with credentials.
pub(crate) fn authorized(
    request: RequestBuilder,
    auth: Option<&Auth>,
) -> Result<RequestBuilder, String> {
    Ok(match auth {
        None => request,
        Some(Auth::Bearer(token)) => request.bearer_auth(reveal(token)?),
        Some(Auth::Basic { username, password }) => {
            request.basic_auth(username, Some(reveal(password)?))
        }
    })
}

/// The text of a secret. The error names the file, never the text.
pub(crate) fn reveal(secret: &Secret) -> Result<String, String> {
    match secret {
        Secret::Value(text) => Ok(text.clone()),
        Secret::File(path) => {
            let text = String::from_utf8(read(path)?)
                .map_err(|_| format!("{} is no text", path.display()))?;
            Ok(text.trim_end().to_owned())
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    read_theirs(path, MAX_FILE).map_err(|error| format!("{}: {error}", path.display()))
}

/// The beginning of an answer, on one line.
pub(crate) async fn excerpt(mut response: Response) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < MAX_EXCERPT {
        match response.chunk().await {
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
            Ok(None) | Err(_) => break,
        }
    }
    bytes.truncate(MAX_EXCERPT);
    let text = String::from_utf8_lossy(&bytes);
    let plain: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    plain.trim().to_owned()
}

/// An answer of at most `most` bytes.
pub(crate) async fn whole(mut response: Response, most: usize) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| cause(&error))? {
        if bytes.len() + chunk.len() > most {
            return Err(format!("the answer is larger than {most} bytes"));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// Why a request failed: the innermost reason, without the URL, which may hold a secret.
pub(crate) fn cause(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".into();
    }
    let mut inner: &dyn std::error::Error = error;
    while let Some(next) = inner.source() {
        inner = next;
    }
    if std::ptr::eq(
        std::ptr::from_ref(inner).cast::<()>(),
        std::ptr::from_ref(error).cast::<()>(),
    ) {
        return if error.is_builder() {
            "the request cannot be made".into()
        } else {
            "the connection failed".into()
        };
    }
    inner.to_string()
}
