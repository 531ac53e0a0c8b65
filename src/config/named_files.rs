//! The files that a configuration names. They are read when they are used, so they may appear and change later.

use std::path::PathBuf;

use super::source_location::SourceLocation;

/// A file that a key names: every key whose name ends in `_file`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedFile {
    /// The key, as `serve.token_file`.
    pub key: String,
    /// The file; a relative path begins in the working directory.
    pub path: PathBuf,
    /// What is in it.
    pub holds: FileContent,
    /// Where the key was written.
    pub location: SourceLocation,
}

/// What a named file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileContent {
    /// A token, a password, an address with a secret in it: one text.
    Secret,
    /// One or more certificates, as PEM.
    Certificates,
    /// A private key, as PEM.
    PrivateKey,
    /// Anything, as the body of a request.
    Anything,
}

impl NamedFile {
    pub(super) fn of(key: String, path: &str, location: SourceLocation) -> Self {
        let name = key.rsplit('.').next().unwrap_or("");
        let holds = match name {
            "key_file" => FileContent::PrivateKey,
            "body_file" => FileContent::Anything,
            _ if name.ends_with("ca_file") || name.ends_with("cert_file") => {
                FileContent::Certificates
            }
            _ => FileContent::Secret,
        };
        Self {
            path: PathBuf::from(path),
            key,
            holds,
            location,
        }
    }
}
