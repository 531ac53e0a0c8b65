//! Checks whether the files that a configuration names are usable now.

use std::path::Path;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::read_theirs;
use crate::config::{FileContent, NamedFile};

/// The largest file with a token or a password. A token has a few kilobytes.
pub const MAX_SECRET: u64 = 64 * 1024;

/// The largest file with certificates, or with the body of a request.
pub const MAX_FILE: u64 = 1024 * 1024;

/// Why a file cannot be used, in words that follow its name, without any of its contents.
pub fn trouble(file: &NamedFile) -> Option<String> {
    look(&file.path, file.holds).err()
}

fn look(path: &Path, holds: FileContent) -> Result<(), String> {
    let most = match holds {
        FileContent::Secret => MAX_SECRET,
        FileContent::Certificates | FileContent::PrivateKey | FileContent::Anything => MAX_FILE,
    };
    let bytes = read_theirs(path, most).map_err(|error| format!("cannot be read: {error}"))?;
    match holds {
        FileContent::Anything => Ok(()),
        FileContent::Secret => match str::from_utf8(&bytes) {
            Err(_) => Err("is not a text".into()),
            Ok(text) if text.trim().is_empty() => Err("is empty".into()),
            Ok(_) => Ok(()),
        },
        FileContent::Certificates => {
            let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
            match certificates {
                Ok(certificates) if !certificates.is_empty() => Ok(()),
                Ok(_) | Err(_) => Err("holds no certificate as PEM".into()),
            }
        }
        FileContent::PrivateKey => PrivateKeyDer::from_pem_slice(&bytes)
            .map(|_| ())
            .map_err(|_| "holds no private key as PEM".into()),
    }
}
