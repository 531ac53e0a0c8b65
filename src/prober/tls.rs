//! TLS: one client configuration for each distinct setting, the handshake and its errors, and the certificates that it
//! shows.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, ClientConfig, DigitallySignedStruct, ProtocolVersion, RootCertStore,
    SignatureScheme, SupportedCipherSuite,
};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::error::{ProbeError, tls_error};
use super::files::{FILE_LIMIT, FileStamp, read_bounded};
use super::stream::CountedTcp;
use super::timing::{ProbeStage, ProbeTiming, cut};
use crate::config::settings::TlsConfig;
use crate::core::probe_result::{Outcome, Reason, TlsInfo, UnknownReason};

/// Distinct TLS settings that are kept. A configuration with more makes clients anew, which is slow and works.
const MAX_CLIENTS: usize = 1024;

/// Certificates of a chain that are read.
const MAX_CHAIN: usize = 16;

/// Bytes of the list of names of a certificate that are shown.
const MAX_NAMES: usize = 1024;

/// The clients, by what makes them differ.
#[derive(Debug, Default)]
pub(super) struct TlsClients {
    made: Mutex<HashMap<(TlsConfig, Alpn), TlsClient>>,
}

/// Which protocols are offered inside TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Alpn {
    None,
    Http1,
    Http2,
    Both,
}

#[derive(Debug)]
struct TlsClient {
    stamps: Vec<(PathBuf, Option<FileStamp>)>,
    config: Arc<ClientConfig>,
}

impl TlsClients {
    /// The client of a setting; made anew when one of its files changed.
    pub(super) fn client(
        &self,
        tls: &TlsConfig,
        alpn: Alpn,
    ) -> Result<Arc<ClientConfig>, ProbeError> {
        let stamps: Vec<_> = files_of(tls)
            .map(|path| (path.to_owned(), FileStamp::of(path).ok()))
            .collect();
        let key = (
            TlsConfig {
                server_name: None,
                ..tls.clone()
            },
            alpn,
        );
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = made.get(&key)
            && client.stamps == stamps
        {
            return Ok(Arc::clone(&client.config));
        }
        let config = Arc::new(build(tls, alpn)?);
        if made.len() >= MAX_CLIENTS {
            made.clear();
        }
        made.insert(
            key,
            TlsClient {
                stamps,
                config: Arc::clone(&config),
            },
        );
        Ok(config)
    }
}

fn files_of(tls: &TlsConfig) -> impl Iterator<Item = &Path> {
    let own = tls
        .client_certificate
        .iter()
        .flat_map(|(certificate, key)| [certificate, key]);
    tls.ca_file.iter().chain(own).map(PathBuf::as_path)
}

fn build(tls: &TlsConfig, alpn: Alpn) -> Result<ClientConfig, ProbeError> {
    let provider = Arc::new(ring::default_provider());
    let versions: &[_] = if tls.only_tls13 {
        &[&rustls::version::TLS13]
    } else {
        rustls::ALL_VERSIONS
    };
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .map_err(|error| {
            ProbeError::unknown(UnknownReason::File, format!("cannot set up TLS: {error}"))
        })?;
    let builder = if tls.insecure_skip_verify {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AcceptAnyCertificate(provider)))
    } else {
        let roots = match &tls.ca_file {
            Some(file) => Arc::new(roots_in(file)?),
            None => system_roots()?,
        };
        builder.with_root_certificates(roots)
    };
    let mut config = match &tls.client_certificate {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = certificates_in(certificate)?;
            let key_bytes = read_bounded(key, FILE_LIMIT)?;
            let private = PrivateKeyDer::from_pem_slice(&key_bytes).map_err(|_| {
                ProbeError::unknown(
                    UnknownReason::File,
                    format!("{} holds no private key in PEM", key.display()),
                )
            })?;
            builder
                .with_client_auth_cert(chain, private)
                .map_err(|error| {
                    let pair = format!("{} and {}", certificate.display(), key.display());
                    ProbeError::unknown(
                        UnknownReason::File,
                        format!("cannot use {pair} together: {error}"),
                    )
                })?
        }
    };
    config.alpn_protocols = match alpn {
        Alpn::None => Vec::new(),
        Alpn::Http1 => vec![b"http/1.1".to_vec()],
        Alpn::Http2 => vec![b"h2".to_vec()],
        Alpn::Both => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
    };
    if !tls.resume {
        config.resumption = Resumption::disabled();
    }
    Ok(config)
}

fn certificates_in(file: &Path) -> Result<Vec<CertificateDer<'static>>, ProbeError> {
    let bytes = read_bounded(file, FILE_LIMIT)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) | Err(_) => Err(ProbeError::unknown(
            UnknownReason::File,
            format!("{} holds no certificates in PEM", file.display()),
        )),
    }
}

fn roots_in(file: &Path) -> Result<RootCertStore, ProbeError> {
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(certificates_in(file)?);
    if added == 0 {
        return Err(ProbeError::unknown(
            UnknownReason::File,
            format!("{} holds no usable authority", file.display()),
        ));
    }
    Ok(roots)
}

/// The system's authorities, read once.
fn system_roots() -> Result<Arc<RootCertStore>, ProbeError> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let roots = ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Arc::new(roots)
    });
    if roots.is_empty() {
        let text = "the system has no certificate authorities; install ca-certificates, or set tls.ca_file";
        return Err(ProbeError::unknown(UnknownReason::File, text));
    }
    Ok(Arc::clone(roots))
}

/// The handshake.
pub(super) async fn handshake(
    config: Arc<ClientConfig>,
    name: &str,
    stream: CountedTcp,
    timing: &mut ProbeTiming<'_>,
) -> Result<TlsStream<CountedTcp>, ProbeError> {
    timing.enter(ProbeStage::Tls);
    stream.meter().request();
    let meter = Arc::clone(stream.meter());
    let server = ServerName::try_from(name.to_owned()).map_err(|_| {
        ProbeError::bad(
            Reason::Tls,
            format!("{name:?} cannot be a server's name in TLS"),
        )
    })?;
    let done = TlsConnector::from(config).connect(server, stream).await;
    let stream = done.map_err(|error| {
        meter
            .probe_error()
            .unwrap_or_else(|| probe_error_of(&error))
    })?;
    timing.note(|step| *step = format!("TLS with {name} stands"));
    Ok(stream)
}

fn probe_error_of(error: &std::io::Error) -> ProbeError {
    match tls_error(error) {
        Some(rustls::Error::InvalidCertificate(why)) => ProbeError::bad(
            Reason::Certificate,
            format!("the certificate is not accepted: {why}"),
        ),
        Some(rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => {
            ProbeError::bad(
                Reason::Version,
                "the target speaks none of the versions of HTTP that are offered",
            )
        }
        Some(other) => {
            ProbeError::bad(Reason::Tls, format!("the TLS handshake failed: {other}")).reached()
        }
        None => {
            let probe_error = ProbeError::broken(error, Reason::Tls, "the TLS handshake failed");
            match probe_error.outcome {
                // However the connection broke, it was the handshake that did not come about.
                Outcome::Failure(_) => ProbeError {
                    outcome: Outcome::Failure(Reason::Tls),
                    ..probe_error
                },
                Outcome::Success | Outcome::Unknown(_) => probe_error,
            }
        }
    }
}

/// The last chain, so that the same one is not parsed for each probe.
#[derive(Debug, Default)]
pub(super) struct CertificateCache(Mutex<Option<(Vec<CertificateDer<'static>>, Arc<TlsInfo>)>>);

impl CertificateCache {
    pub(super) fn look(&self, stream: &TlsStream<CountedTcp>) -> Option<Arc<TlsInfo>> {
        let (_, session) = stream.get_ref();
        let chain = session.peer_certificates()?;
        let version = match session.protocol_version()? {
            ProtocolVersion::TLSv1_3 => "TLS 1.3",
            ProtocolVersion::TLSv1_2 => "TLS 1.2",
            _ => "unknown",
        };
        let cipher = session
            .negotiated_cipher_suite()
            .map_or("unknown", cipher_name);
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, seen)) = &*last
            && known == chain
            && seen.version == version
            && seen.cipher == cipher
        {
            return Some(Arc::clone(seen));
        }
        let seen = Arc::new(read_chain(chain, version, cipher)?);
        *last = Some((
            chain.iter().take(MAX_CHAIN).cloned().collect(),
            Arc::clone(&seen),
        ));
        Some(seen)
    }
}

fn cipher_name(suite: SupportedCipherSuite) -> &'static str {
    suite.suite().as_str().unwrap_or("unknown")
}

fn read_chain(
    chain: &[CertificateDer<'_>],
    version: &'static str,
    cipher: &'static str,
) -> Option<TlsInfo> {
    let leaf_der = chain.first()?;
    let (_, leaf) = X509Certificate::from_der(leaf_der).ok()?;
    let ends = chain.iter().take(MAX_CHAIN).filter_map(|der| {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        Some(certificate.validity().not_after.timestamp())
    });
    let leaf_expiry = leaf.validity().not_after.timestamp();
    let names = leaf.subject_alternative_name().ok().flatten();
    let dns = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(dns) => Some((*dns).to_owned()),
        _ => None,
    };
    let names: Vec<String> = names.map_or_else(Vec::new, |names| {
        names.value.general_names.iter().filter_map(dns).collect()
    });
    Some(TlsInfo {
        version,
        cipher,
        earliest_expiry: ends.min().unwrap_or(leaf_expiry),
        leaf_expiry,
        fingerprint_sha256: sha256_hex(leaf_der),
        subject: cut(&leaf.subject().to_string(), MAX_NAMES),
        issuer: cut(&leaf.issuer().to_string(), MAX_NAMES),
        subject_alternative: cut(&names.join(","), MAX_NAMES),
        serial: hexadecimal(serial_of(&leaf)),
    })
}

/// The bytes of the serial number, without the zero byte that only marks it as positive. The standard allows 20 bytes;
/// of longer ones 64 are enough to recognize it.
fn serial_of<'a>(leaf: &'a X509Certificate<'_>) -> &'a [u8] {
    let bytes = leaf.raw_serial();
    let bytes = match bytes {
        [0, rest @ ..] if rest.first().is_some_and(|first| *first >= 0x80) => rest,
        _ => bytes,
    };
    bytes.get(..64).unwrap_or(bytes)
}

fn sha256_hex(bytes: &[u8]) -> String {
    // The provider's own hash: one implementation of cryptography in the program.
    let provider = rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
    let SupportedCipherSuite::Tls13(suite) = provider else {
        return String::new();
    };
    let hash = suite.common.hash_provider.hash(bytes);
    hexadecimal(hash.as_ref())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Accepts any certificate, but not a signature that does not fit it.
#[derive(Debug)]
struct AcceptAnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAnyCertificate {
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
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
