//! Files that a probe needs (credentials, bodies, certificates), read again when they change.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use super::error::ProbeError;
use crate::core::probe_result::UnknownReason;

/// The largest that a credential may be. A token has a few kilobytes.
pub(super) const CREDENTIAL_LIMIT: u64 = 64 * 1024;

/// The largest that a request body or a bundle of certificates may be.
pub(super) const FILE_LIMIT: u64 = 1024 * 1024;

/// What tells one state of a file from another. A ConfigMap's or Secret's update swaps a link, so the inode changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileStamp {
    inode: u64,
    length: u64,
    seconds: i64,
    nanos: i64,
}

impl FileStamp {
    /// Of the current file. Only regular files are allowed: opening a pipe would block.
    pub(super) fn of(path: &Path) -> std::io::Result<Self> {
        let facts = std::fs::metadata(path)?;
        if !facts.is_file() {
            return Err(std::io::Error::other("it is not a regular file"));
        }
        Ok(Self {
            inode: facts.ino(),
            length: facts.len(),
            seconds: facts.mtime(),
            nanos: facts.mtime_nsec(),
        })
    }
}

/// One file and its last content.
#[derive(Debug)]
pub(super) struct CachedFile {
    path: PathBuf,
    limit: u64,
    last: Mutex<Option<(FileStamp, Bytes)>>,
}

impl CachedFile {
    pub(super) fn new(path: PathBuf, limit: u64) -> Self {
        Self {
            path,
            limit,
            last: Mutex::new(None),
        }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The content of now. Looks at the file's facts each time, at its content only when they changed.
    pub(super) fn read(&self) -> Result<Bytes, ProbeError> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = FileStamp::of(&self.path).map_err(|error| cannot_read(&self.path, error));
        if let (Ok(stamp), Some((known, bytes))) = (&stamp, &*last)
            && known == stamp
        {
            return Ok(bytes.clone());
        }
        // What was read before is not to be used, whatever comes now.
        *last = None;
        // The stamp is older than the content, so that a change in between is seen the next time.
        let stamp = stamp?;
        let bytes = Bytes::from(read_bounded(&self.path, self.limit)?);
        *last = Some((stamp, bytes.clone()));
        Ok(bytes)
    }
}

/// Reads a file that must not be larger than `limit`.
pub(super) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, ProbeError> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    FileStamp::of(path).map_err(|error| cannot_read(path, error))?;
    let file = std::fs::File::open(path).map_err(|error| cannot_read(path, error))?;
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| cannot_read(path, error))?;
    if bytes.len() as u64 > limit {
        let text = format!("{} is larger than {limit} bytes", path.display());
        return Err(ProbeError::unknown(UnknownReason::File, text));
    }
    Ok(bytes)
}

#[expect(clippy::needless_pass_by_value, reason = "fits map_err")]
fn cannot_read(path: &Path, error: std::io::Error) -> ProbeError {
    ProbeError::unknown(
        UnknownReason::File,
        format!("cannot read {}: {error}", path.display()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::probe_result::Outcome;

    #[test]
    fn a_file_is_read_again_when_it_changes_and_only_then() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let kept = CachedFile::new(path.clone(), 10);
        let unknown = |kept: &CachedFile| {
            let probe_error = kept.read().unwrap_err();
            assert_eq!(probe_error.outcome, Outcome::Unknown(UnknownReason::File));
            assert!(probe_error.explanation.contains("token"), "{probe_error:?}");
            assert!(
                !probe_error.explanation.contains("secret"),
                "{probe_error:?}"
            );
        };
        unknown(&kept);
        std::fs::write(&path, "secret").unwrap();
        let first = kept.read().unwrap();
        assert_eq!(first, "secret");
        assert_eq!(kept.read().unwrap().as_ptr(), first.as_ptr(), "not again");
        // As a Secret's update does it: another file in its place, of the same size.
        std::fs::write(folder.path().join("new"), "Secret").unwrap();
        std::fs::rename(folder.path().join("new"), &path).unwrap();
        assert_eq!(kept.read().unwrap(), "Secret");
        std::fs::write(&path, "secret secret").unwrap();
        unknown(&kept);
        std::fs::remove_file(&path).unwrap();
        unknown(&kept);
        std::fs::create_dir(&path).unwrap();
        unknown(&kept);
    }
}
