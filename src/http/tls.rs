//! TLS of the listener, from files that are read again when they change.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use crate::config::settings::ServeTlsConfig;
use crate::platform::files::named::MAX_FILE;
use crate::platform::files::read_theirs;

/// Minimum time between two checks of the files; a new connection triggers them.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The certificate that the listener shows.
pub struct ListenerTls {
    files: ServeTlsConfig,
    state: Mutex<TlsState>,
}

struct TlsState {
    looked: Instant,
    /// What is in use, and a digest of the files it was made from; `None` while they have never been usable.
    shown: Option<([u8; 32], TlsAcceptor)>,
}

impl ListenerTls {
    /// Reads the files. While they are unusable every handshake fails, and they are read again: they may appear later.
    /// There is never a fallback to plain HTTP.
    pub fn read(files: &ServeTlsConfig) -> Self {
        let shown = read(files).inspect_err(|why| {
            tracing::error!(
                why,
                "The listener's certificate cannot be used, so nobody can connect until it can"
            );
        });
        Self {
            files: files.clone(),
            state: Mutex::new(TlsState {
                looked: Instant::now(),
                shown: shown.ok(),
            }),
        }
    }

    /// Accepts the next connection, if there is a certificate. Files that have become unusable change nothing.
    pub(super) fn acceptor(&self) -> Option<TlsAcceptor> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked.elapsed() >= LOOK_EVERY {
            state.looked = Instant::now();
            match read(&self.files) {
                Ok(new) => {
                    let is_known = state.shown.as_ref().is_some_and(|(old, _)| *old == new.0);
                    if !is_known {
                        tracing::info!("The listener shows a new certificate");
                        state.shown = Some(new);
                    }
                }
                Err(why) if state.shown.is_some() => {
                    tracing::warn!(
                        why,
                        "The listener's certificate cannot be read; the old one is shown"
                    );
                }
                Err(why) => {
                    tracing::warn!(why, "The listener's certificate still cannot be used");
                }
            }
        }
        state.shown.as_ref().map(|(_, acceptor)| acceptor.clone())
    }
}

fn read(files: &ServeTlsConfig) -> Result<([u8; 32], TlsAcceptor), String> {
    let mut digest = Sha256::new();
    let mut load = |path: &Path| {
        let bytes = bounded(path)?;
        digest.update((bytes.len() as u64).to_le_bytes());
        digest.update(&bytes);
        Ok::<_, String>(bytes)
    };
    let chain = certificates(&files.cert_file, &load(&files.cert_file)?)?;
    let key = PrivateKeyDer::from_pem_slice(&load(&files.key_file)?)
        .map_err(|_| format!("{} holds no private key", files.key_file.display()))?;
    let builder =
        ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
    let builder = match &files.client_ca_file {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for authority in certificates(path, &load(path)?)? {
                roots
                    .add(authority)
                    .map_err(|error| format!("{}: {error}", path.display()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(
                Arc::new(roots),
                Arc::new(rustls::crypto::ring::default_provider()),
            )
            .build()
            .map_err(|error| format!("{}: {error}", path.display()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| {
        format!(
            "{} and {} do not belong together: {error}",
            files.cert_file.display(),
            files.key_file.display()
        )
    })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((
        digest.finalize().into(),
        TlsAcceptor::from(Arc::new(config)),
    ))
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) | Err(_) => Err(format!("{} holds no certificate", path.display())),
    }
}

fn bounded(path: &Path) -> Result<Vec<u8>, String> {
    let said = |error: std::io::Error| format!("{}: {error}", path.display());
    read_theirs(path, MAX_FILE).map_err(said)
}
