//! Our own files and directories.
//!
//! Invariants:
//! - they are accessible to our user alone: directories 0700, files 0600;
//! - no foreign symbolic link is followed, and no existing file is overwritten: a file is created anew and renamed to
//!   its place;
//! - nothing blocks: only regular files are opened for reading.

pub mod named;

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, OFlags, StatxAttributes, StatxFlags};

const OWNER_ONLY_DIRECTORY: u32 = 0o700;
const OWNER_ONLY_FILE: u32 = 0o600;

/// Of a directory that hands its group on (as the volumes of a pod with `fsGroup` do) the group keeps its rights.
const SET_GROUP: u32 = 0o2000;
const OTHERS_MAY_WRITE: u32 = 0o002;
const STICKY: u32 = 0o1000;

/// What we make from now on, and what helm makes, is for our user alone.
pub fn keep_to_ourselves() {
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
}

/// Creates a directory, or checks an existing one; missing parents are created too. If others may enter our own
/// directory, it is closed to them.
///
/// # Errors
///
/// When it cannot be created, or another user could place files or links there; the text names the reason and the way
/// out.
pub fn private_directory(path: &Path) -> io::Result<()> {
    let mut made = DirBuilder::new();
    made.recursive(true).mode(OWNER_ONLY_DIRECTORY);
    let refused = |why: String| io::Error::new(io::ErrorKind::PermissionDenied, why);
    match fs::symlink_metadata(path) {
        Ok(facts) if facts.is_symlink() => {
            return Err(refused(
                "it is a symbolic link, which somebody else may have laid; name the directory that it leads to, or remove it"
                    .into(),
            ));
        }
        Ok(facts) if !facts.is_dir() => {
            return Err(io::Error::new(
                io::ErrorKind::NotADirectory,
                "it is not a directory",
            ));
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => made.create(path)?,
        Err(error) => return Err(error),
    }
    // From here on one and the same directory is looked at, whatever is put in its place.
    let directory = OpenOptions::new()
        .read(true)
        .custom_flags(flags(OFlags::DIRECTORY | OFlags::NOFOLLOW))
        .open(path)?;
    let facts = directory.metadata()?;
    if facts.uid() == our_user() {
        return close_to_others(&directory, &facts);
    }
    let above = above(path)?;
    if facts.uid() != 0 && above.mode() & OTHERS_MAY_WRITE != 0 {
        return Err(refused(format!(
            "it belongs to another user (uid {}), who may have laid it there; remove it, or name a directory of your own",
            facts.uid()
        )));
    }
    let is_open = facts.mode() & OTHERS_MAY_WRITE != 0 && facts.mode() & STICKY == 0;
    if is_open && !is_mounted(&directory, &facts, &above) {
        return Err(refused(
            "everybody may write there; take that right away (chmod o-w), or name a directory of your own".into(),
        ));
    }
    Ok(())
}

fn close_to_others(directory: &File, facts: &Metadata) -> io::Result<()> {
    let mode = facts.mode() & 0o7777;
    let kept = if mode & SET_GROUP == 0 {
        OWNER_ONLY_DIRECTORY
    } else {
        SET_GROUP | 0o770
    };
    // None of the nine bits of rights beyond what it keeps.
    if (mode & !kept).trailing_zeros() >= 9 {
        return Ok(());
    }
    directory.set_permissions(Permissions::from_mode(mode & kept | OWNER_ONLY_DIRECTORY))
}

fn above(path: &Path) -> io::Result<Metadata> {
    let whole = fs::canonicalize(path)?;
    fs::metadata(whole.parent().unwrap_or(&whole))
}

/// Whether a directory is a mounted volume: the kubelet makes those accessible to everybody in the pod.
fn is_mounted(directory: &File, facts: &Metadata, above: &Metadata) -> bool {
    if facts.dev() != above.dev() {
        return true;
    }
    let looked = rustix::fs::statx(directory, "", AtFlags::EMPTY_PATH, StatxFlags::MODE);
    looked.is_ok_and(|looked| looked.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

fn our_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn flags(flags: OFlags) -> i32 {
    // The flags of `open` are small numbers.
    i32::try_from(flags.bits()).unwrap_or(0)
}

/// Makes a file anew. What is there under its name is removed first, and not written to.
///
/// # Errors
/// When it cannot be made.
pub fn create(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(OWNER_ONLY_FILE)
        .custom_flags(flags(OFlags::NOFOLLOW))
        .open(path)
}

/// Opens a file to write at its end, and makes it where it is not there.
///
/// # Errors
/// When it cannot be opened, or is no file with this one name.
pub fn append(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(OWNER_ONLY_FILE)
        .custom_flags(flags(OFlags::NOFOLLOW | OFlags::NONBLOCK))
        .open(path)
        .map_err(of_a_link)?;
    let facts = file.metadata()?;
    if !facts.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    if facts.nlink() != 1 {
        return Err(io::Error::other(
            "it has another name as well, which somebody else may have given it; remove it",
        ));
    }
    Ok(file)
}

/// Opens a file of our own for reading.
///
/// # Errors
/// When it cannot be read, or is no regular file.
pub fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags(OFlags::NOFOLLOW | OFlags::NONBLOCK))
        .open(path)
        .map_err(of_a_link)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other("it is not a regular file"))
    }
}

/// Opens a file that the configuration names, such as a token or a certificate. It may be a link, as the files of a
/// Secret are.
///
/// # Errors
///
/// When it cannot be read, or is not a regular file: reading a pipe would block.
pub fn open_theirs(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags(OFlags::NONBLOCK))
        .open(path)?;
    let facts = file.metadata()?;
    if facts.is_dir() {
        return Err(io::Error::new(
            io::ErrorKind::IsADirectory,
            "it is a directory",
        ));
    }
    if !facts.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    Ok(file)
}

/// The same, and reads all of it.
///
/// # Errors
/// Also when it is larger than `most` bytes.
pub fn read_theirs(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_theirs(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::other(format!("it is larger than {most} bytes")));
    }
    Ok(bytes)
}

fn of_a_link(error: io::Error) -> io::Error {
    if rustix::io::Errno::from_io_error(&error) == Some(rustix::io::Errno::LOOP) {
        return io::Error::other(
            "it is a symbolic link, which somebody else may have laid; remove it",
        );
    }
    error
}

/// Puts a whole file in a place that a person has named: one that is there is replaced, and a link is not followed. What is
/// no regular file, as `/dev/stdout`, is written to.
///
/// # Errors
/// When it cannot be written.
pub fn put(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let is_special = fs::symlink_metadata(path).is_ok_and(|facts| {
        let kind = facts.file_type();
        !kind.is_file() && !kind.is_symlink()
    });
    if is_special || path.starts_with("/dev") {
        return OpenOptions::new().write(true).open(path)?.write_all(bytes);
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{:08x}.new", fastrand::u32(..)));
    let new = PathBuf::from(name);
    let written = create(&new)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}

/// A directory of our own that is gone with us.
#[derive(Debug)]
pub struct TemporaryDir(PathBuf);

impl TemporaryDir {
    /// Below the system's directory for temporary files.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new() -> io::Result<Self> {
        Self::below(&std::env::temp_dir())
    }

    /// Below another one.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn below(directory: &Path) -> io::Result<Self> {
        let name = format!("leadsman-{}-{:016x}", std::process::id(), fastrand::u64(..));
        let path = directory.join(name);
        // Fails where there is one already, so nobody else's directory is taken for ours.
        DirBuilder::new().mode(OWNER_ONLY_DIRECTORY).create(&path)?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TemporaryDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests;
