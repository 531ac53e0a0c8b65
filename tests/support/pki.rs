//! Certificates for tests, made on the spot: an authority, servers, a client.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tempfile::TempDir;

/// An authority, and a directory for the files that a question names.
pub struct Pki {
    authority: CertifiedIssuer<'static, KeyPair>,
    directory: TempDir,
}

/// What a server's certificate is to be like.
#[derive(Debug, Clone)]
pub struct Wanted {
    names: Vec<String>,
    hours_left: i64,
    self_signed: bool,
    serial: Option<Vec<u8>>,
    alpn: Vec<Vec<u8>>,
    client_certificate: bool,
}

/// Valid for a day, for these names or addresses, and HTTP/1.1 only.
pub fn certificate(names: &[&str]) -> Wanted {
    Wanted {
        names: names.iter().map(ToString::to_string).collect(),
        hours_left: 24,
        self_signed: false,
        serial: None,
        alpn: vec![b"http/1.1".to_vec()],
        client_certificate: false,
    }
}

impl Wanted {
    /// Ends so many hours from now; it began two days ago.
    pub fn hours_left(mut self, hours: i64) -> Self {
        self.hours_left = hours;
        self
    }

    pub fn self_signed(mut self) -> Self {
        self.self_signed = true;
        self
    }

    pub fn serial(mut self, serial: &[u8]) -> Self {
        self.serial = Some(serial.to_vec());
        self
    }

    /// Speaks HTTP/2 as well.
    pub fn http2(mut self) -> Self {
        self.alpn.insert(0, b"h2".to_vec());
        self
    }

    /// Takes only clients with a certificate of the authority.
    pub fn asks_for_client_certificate(mut self) -> Self {
        self.client_certificate = true;
        self
    }
}

impl Pki {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
            .distinguished_name
            .push(DnType::CommonName, "Test Authority");
        let key = KeyPair::generate().unwrap();
        let pki = Self {
            authority: CertifiedIssuer::self_signed(params, key).unwrap(),
            directory: TempDir::new().unwrap(),
        };
        pki.file("ca.pem", &pki.authority.pem());
        pki
    }

    /// The authority's own certificate as a file.
    pub fn ca_file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// Writes a file and names its path.
    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// The directory of the files.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A client's certificate and its key, as files.
    pub fn client_files(&self) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "client");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        (
            self.file("client.pem", &certificate.pem()),
            self.file("client.key", &key.serialize_pem()),
        )
    }

    /// A server's certificate and its key, as files.
    pub fn server_files(&self, names: &[&str]) -> (PathBuf, PathBuf) {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        (
            self.file("server.pem", &certificate.pem()),
            self.file("server.key", &key.serialize_pem()),
        )
    }

    /// A server's side of TLS.
    pub fn server(&self, wanted: &Wanted) -> Arc<ServerConfig> {
        let mut params = CertificateParams::new(wanted.names.clone()).unwrap();
        let now = SystemTime::now();
        let hour = std::time::Duration::from_secs(3600);
        let hours = u32::try_from(wanted.hours_left.unsigned_abs()).unwrap();
        params.not_before = (now - 48 * hour).into();
        params.not_after = if wanted.hours_left < 0 {
            now - hours * hour
        } else {
            now + hours * hour
        }
        .into();
        params
            .distinguished_name
            .push(DnType::CommonName, "Test Server");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.serial_number = wanted.serial.as_deref().map(SerialNumber::from_slice);
        let key = KeyPair::generate().unwrap();
        let certificate = if wanted.self_signed {
            params.self_signed(&key).unwrap()
        } else {
            params.signed_by(&key, &self.authority).unwrap()
        };
        let private = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if wanted.client_certificate {
            let mut roots = RootCertStore::empty();
            let ca: CertificateDer<'static> = self.authority.der().clone();
            roots.add(ca).unwrap();
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build();
            builder.with_client_cert_verifier(verifier.unwrap())
        } else {
            builder.with_no_client_auth()
        };
        let mut config = builder
            .with_single_cert(vec![certificate.der().clone()], private)
            .unwrap();
        config.alpn_protocols.clone_from(&wanted.alpn);
        Arc::new(config)
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
