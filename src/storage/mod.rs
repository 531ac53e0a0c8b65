//! What survives a restart: a directory with one file for each release, and the recordings.
//!
//! ```text
//! DIRECTORY/leadsman.lock                          held while the process runs: one writer
//! DIRECTORY/shop.web.json                          the state of the release web in the namespace shop
//! DIRECTORY/shop.web.json.aside-1700000000         a file that could not be used, with the time
//! DIRECTORY/spans/shop.web.json                    the counters of its long windows
//! DIRECTORY/alerts.json                            the current alerts
//! DIRECTORY/alerts/shop.web.json                   those of one release, if each has a Lease of its own
//! DIRECTORY/recordings/shop.web.v3.1700000000.jsonl
//! ```
//!
//! Invariants:
//! - a state is written to a new file, flushed to the disk and renamed: a file is complete, old or new;
//! - a file that is damaged, foreign or of a newer version is quarantined, never overwritten and never used;
//! - a failed read is not "empty": callers must retry and must not overwrite;
//! - times of another clock are shifted to ours when they are read ([`HasTimes`]);
//! - the number of recordings and of quarantined files is bounded: the newest of each are kept.

mod config_map;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

pub use config_map::ConfigMaps;
#[cfg(test)]
pub(crate) use config_map::tests as played;

use crate::core::recording::{MAX_BYTES, Recording, RecordingError, RecordingLine};
use crate::core::units::{ClockShift, HasTimes, Namespace, ReleaseName, Revision, Time};
use crate::platform::clock;
use crate::platform::files;
use crate::platform::permit::Permit;

/// The version of the state's format.
pub const VERSION: u32 = 1;

/// A larger file is not valid.
const MAX_STATE: u64 = 16 * 1024 * 1024;

/// Recordings kept for each release.
const MAX_RECORDINGS: usize = 20;

/// Quarantined files that are kept for each release.
const MAX_ASIDE: usize = 5;

/// Why the directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory cannot be made or written to.
    #[error("cannot use {} of the state: {cause}; make it writable for us alone, or set state.directory to another", .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// Another process writes there.
    #[error("the state directory {} is in use by another Leadsman; stop that one, or set state.directory to another", .path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
}

/// Kinds of stored data, each in a file of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredKind {
    /// Its phase, ledger, baselines and analysis; written whenever the phase changes.
    State,
    /// Counters of the long windows of its probes; written every minute.
    Spans,
    /// The current alerts of all releases together.
    Alerts,
    /// The alerts of one release, if each has a Lease of its own.
    ReleaseAlerts,
}

impl StoredKind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Spans => "spans",
            Self::Alerts => "alerts",
            Self::ReleaseAlerts => "release-alerts",
        }
    }
}

/// Result of reading a release's data.
#[derive(Debug, PartialEq)]
pub enum StoredState<T> {
    /// Nothing is stored.
    Nothing,
    /// This was stored.
    State(T),
    /// The data is unusable and was quarantined: we continue with less memory, never with a wrong one.
    Quarantined(String),
    /// It is unknown at the moment whether there is data, and why. A failed read is not "empty": callers must retry and
    /// must not overwrite.
    Unknown(String),
}

#[derive(Serialize)]
struct StateEnvelope<'a, T> {
    leadsman: &'static str,
    version: u32,
    namespace: &'a Namespace,
    release: &'a ReleaseName,
    saved: Time,
    state: &'a T,
}

#[derive(Deserialize)]
struct EnvelopeVersion<'a> {
    leadsman: String,
    version: u32,
    namespace: Namespace,
    release: ReleaseName,
    saved: Time,
    #[serde(borrow)]
    state: &'a RawValue,
}

#[derive(Deserialize)]
struct SavedState {
    saved: Time,
}

/// Clocks count as equal within this time: Kubernetes' timestamps have whole seconds, and a state's time is taken
/// before its write, which may take some.
const AGREES: Duration = Duration::from_secs(10);

/// The shift of a state's times to our clock: `saved` is when it was written, by its writer's clock, and `age` how long
/// ago that was, if a third party can tell.
fn shift(saved: Time, age: Option<Duration>, now: Time) -> Option<ClockShift> {
    if let Some(age) = age {
        let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let written = Time::from_millis(now.millis().saturating_sub(age));
        let shift = ClockShift::between(saved, written);
        if shift.span() > AGREES {
            return Some(shift);
        }
    }
    // A clock that was set back: what is to come cannot have been written down.
    (saved > now).then(|| ClockShift::between(saved, now))
}

/// The permit for each write.
#[derive(Debug, Default)]
struct StorePermits {
    /// For everything without one of its own.
    of_all: Permit,
    of_each: RwLock<HashMap<(Namespace, ReleaseName), Permit>>,
}

impl StorePermits {
    fn of(&self, namespace: &Namespace, release: &ReleaseName) -> Permit {
        let of_each = self.of_each.read().unwrap_or_else(PoisonError::into_inner);
        // With one permit for all of them nobody is looked for.
        if of_each.is_empty() {
            return self.of_all.clone();
        }
        let own = of_each.get(&(namespace.clone(), release.clone()));
        own.unwrap_or(&self.of_all).clone()
    }
}

/// A directory with a single writer, this process.
#[derive(Debug)]
pub struct StateStore {
    directory: PathBuf,
    /// ConfigMaps with copies of the states, for the next pod.
    maps: Option<ConfigMaps>,
    permits: StorePermits,
    /// Held while the store lives; the system releases it when the process ends, however that happens.
    _lock: File,
}

impl StateStore {
    /// Opens the directory, and creates it if needed.
    ///
    /// # Errors
    ///
    /// When it is unusable, or another process uses it.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let failed = |cause| StoreError::Directory {
            path: directory.to_owned(),
            cause,
        };
        files::private_directory(directory).map_err(failed)?;
        for folder in ["recordings", "spans", "alerts"] {
            let path = directory.join(folder);
            files::private_directory(&path)
                .map_err(|cause| StoreError::Directory { path, cause })?;
        }
        let path = directory.join("leadsman.lock");
        let lock = files::append(&path).map_err(|cause| StoreError::Directory { path, cause })?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                return Err(StoreError::Locked {
                    path: directory.to_owned(),
                });
            }
            Err(fs::TryLockError::Error(cause)) => return Err(failed(cause)),
        }
        Ok(Self {
            directory: directory.to_owned(),
            maps: None,
            permits: StorePermits::default(),
            _lock: lock,
        })
    }

    /// Also keeps the states in ConfigMaps, so that another pod can continue with them.
    #[must_use]
    pub fn with_maps(mut self, maps: ConfigMaps) -> Self {
        self.maps = Some(maps);
        self
    }

    /// For one of several replicas: only the leader writes states, and all read them from the ConfigMaps.
    #[must_use]
    pub fn with_permit(mut self, permit: Permit) -> Self {
        self.permits.of_all = permit;
        self
    }

    /// Uses this permit for a release from now on; `None`: the common one.
    pub fn permit_for(&self, namespace: &Namespace, release: &ReleaseName, permit: Option<Permit>) {
        let key = (namespace.clone(), release.clone());
        let of_each = self.permits.of_each.write();
        let mut of_each = of_each.unwrap_or_else(PoisonError::into_inner);
        match permit {
            Some(permit) => of_each.insert(key, permit),
            None => of_each.remove(&key),
        };
    }

    /// Reads data of a release, with its times shifted to our clock. For a leader this takes the data over: no earlier
    /// leader can write there afterwards.
    pub fn load<T: DeserializeOwned + HasTimes>(
        &self,
        kind: StoredKind,
        namespace: &Namespace,
        release: &ReleaseName,
        now: Time,
    ) -> StoredState<T> {
        let began = clock::now();
        let path = self.file(kind, namespace, release);
        let permit = self.permits.of(namespace, release);
        let mut why = None;
        if let Some(maps) = &self.maps {
            let part = part(kind, namespace, release);
            let stored = match kind {
                StoredKind::Spans => maps.get(&part, &permit),
                StoredKind::State | StoredKind::Alerts | StoredKind::ReleaseAlerts => {
                    maps.take(&part, &permit)
                }
            };
            match stored {
                Ok(Some(stored))
                    if permit.is_shared() || !is_older_than_file(&stored.bytes, &path) =>
                {
                    let now = now + clock::now().since(began);
                    return self.load_map(kind, namespace, release, &stored, now);
                }
                // Of several replicas each has its own files, of whenever it acted last: what nobody has stored for all
                // of them is not known.
                Ok(None) if permit.is_shared() && kind != StoredKind::Spans => {
                    return StoredState::Nothing;
                }
                Ok(_) => {}
                Err(error) => {
                    let unknown = format!(
                        "the ConfigMap of its {} cannot be read: {error}",
                        kind.as_str()
                    );
                    if kind != StoredKind::Spans {
                        return StoredState::Unknown(unknown);
                    }
                    // Each replica counts for itself, so its own file is not wrong.
                    why = Some(unknown);
                }
            }
        }
        match (self.load_file(kind, namespace, release, &path, now), why) {
            (StoredState::Nothing, Some(why)) => StoredState::Unknown(why),
            (found, _) => found,
        }
    }

    /// Whether it is known what is stored in the ConfigMap, so that it may be replaced; see [`StoredState::Unknown`].
    pub fn is_known(&self, kind: StoredKind, namespace: &Namespace, release: &ReleaseName) -> bool {
        let maps = self.maps.as_ref();
        maps.is_none_or(|maps| maps.is_known(&part(kind, namespace, release)))
    }

    /// The fencing token of our writes: higher than that of the writer before. 0 without ConfigMaps: the directory has
    /// a single writer.
    pub fn fence(&self, kind: StoredKind, namespace: &Namespace, release: &ReleaseName) -> u64 {
        let maps = self.maps.as_ref();
        maps.map_or(0, |maps| maps.fence(&part(kind, namespace, release)))
    }

    fn load_file<T: DeserializeOwned + HasTimes>(
        &self,
        kind: StoredKind,
        namespace: &Namespace,
        release: &ReleaseName,
        path: &Path,
        now: Time,
    ) -> StoredState<T> {
        let why = match read_bounded(path) {
            Ok(None) => return StoredState::Nothing,
            Ok(Some(bytes)) => match unwrap(&bytes, kind, namespace, release) {
                Ok((state, saved)) => {
                    return StoredState::State(moved(state, shift(saved, None, now)));
                }
                Err(why) => why,
            },
            Err(error) => format!("cannot be read: {error}"),
        };
        let folder = path.parent().unwrap_or(&self.directory);
        let to = put_aside(folder, path, now);
        StoredState::Quarantined(format!("{} {why}; {to}", path.display()))
    }

    fn load_map<T: DeserializeOwned + HasTimes>(
        &self,
        kind: StoredKind,
        namespace: &Namespace,
        release: &ReleaseName,
        stored: &config_map::StoredBytes,
        now: Time,
    ) -> StoredState<T> {
        let why = match unwrap(&stored.bytes, kind, namespace, release) {
            Ok((state, saved)) => {
                let shift = shift(saved, stored.age, now);
                if let Some(shift) = shift {
                    tracing::warn!(%release, kind = kind.as_str(), seconds = shift.seconds(),
                        "What is stored was written by another clock; its times are moved");
                }
                return StoredState::State(moved(state, shift));
            }
            Err(why) => why,
        };
        let excluded = self.maps.as_ref().filter(|_| kind != StoredKind::Spans);
        let permit = self.permits.of(namespace, release);
        match excluded.map(|maps| maps.keep_aside(&part(kind, namespace, release), &permit)) {
            Some(Ok(name)) => StoredState::Quarantined(format!(
                "the ConfigMap {why}; it is kept as {name}, and the release is followed anew"
            )),
            Some(Err(error)) => {
                if let Some(maps) = excluded {
                    maps.forget(&part(kind, namespace, release));
                }
                StoredState::Unknown(format!(
                    "the ConfigMap {why}; it cannot be set aside: {error}"
                ))
            }
            None => {
                StoredState::Quarantined(format!("the ConfigMap {why}; its counters begin anew"))
            }
        }
    }

    /// Stores data of a release; when it returns, the data is on the disk.
    ///
    /// # Errors
    ///
    /// When it cannot be written, for example on a full disk; the old data is still there. Also when another replica
    /// leads: then only the counters of the long windows are written, and only to the disk.
    pub fn save<T: Serialize>(
        &self,
        kind: StoredKind,
        namespace: &Namespace,
        release: &ReleaseName,
        state: &T,
        now: Time,
    ) -> io::Result<()> {
        let permit = self.permits.of(namespace, release);
        let fence = permit.fence();
        if fence.is_none() && kind != StoredKind::Spans {
            return Err(io::Error::other(
                "another replica acts, and writes the state",
            ));
        }
        let path = self.file(kind, namespace, release);
        let envelope = StateEnvelope {
            leadsman: kind.as_str(),
            version: VERSION,
            namespace,
            release,
            saved: now,
            state,
        };
        let maps = self.maps.as_ref().filter(|_| fence.is_some());
        let new = path.with_extension("json.new");
        let written = (|| {
            let mut file = files::create(&new)?;
            // As it is written, since a state of ten thousand alerts has some megabytes.
            let mut to = BufWriter::new(&mut file);
            serde_json::to_writer(&mut to, &envelope)?;
            to.flush()?;
            drop(to);
            file.sync_all()?;
            fs::rename(&new, &path)?;
            path.parent()
                .map_or(Ok(()), |folder| File::open(folder)?.sync_all())
        })();
        if written.is_err() {
            // On a full disk the half-written file would take the room that it lacks.
            let _ = fs::remove_file(&new);
        }
        match maps {
            Some(maps) => {
                let bytes = serde_json::to_vec(&envelope)?;
                let is_own = kind == StoredKind::Spans;
                maps.put(&part(kind, namespace, release), &bytes, &permit, is_own)
                    .and(written)
            }
            None => written,
        }
    }

    /// Starts the recording of an analysis, or continues it after a restart.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened.
    pub fn recorder(
        &self,
        namespace: &Namespace,
        release: &ReleaseName,
        revision: Revision,
        began: Time,
    ) -> io::Result<RecordingWriter> {
        let folder = self.directory.join("recordings");
        let start = stem(namespace, release);
        keep_newest(&folder, &format!("{start}.v"), MAX_RECORDINGS - 1);
        let seconds = began.millis() / 1000;
        let path = folder.join(format!("{start}.v{revision}.{seconds}.jsonl"));
        RecordingWriter::open(path)
    }

    /// Copies the recording of an analysis to a ConfigMap, if states are there: the newest of each release. Another pod
    /// finds it there.
    ///
    /// # Errors
    ///
    /// When it cannot be read or is too large, another replica leads, or the API server refuses it.
    pub fn keep_recording(
        &self,
        namespace: &Namespace,
        release: &ReleaseName,
        path: &Path,
    ) -> io::Result<()> {
        let Some(maps) = &self.maps else {
            return Ok(());
        };
        let part = recording_part(namespace, release);
        let permit = self.permits.of(namespace, release);
        if !maps.is_known(&part) {
            maps.get(&part, &permit)?;
        }
        let bytes = read_bounded(path)?.unwrap_or_default();
        maps.put(&part, &bytes, &permit, true)
    }

    /// The recording of a revision: from our disk, or the copy in a ConfigMap if ours is missing or starts in the
    /// middle; `None` if there is none.
    ///
    /// # Errors
    ///
    /// When there is one and it cannot be read, or the API server does not answer.
    pub fn recording(
        &self,
        namespace: &Namespace,
        release: &ReleaseName,
        revision: Revision,
    ) -> io::Result<Option<Vec<u8>>> {
        let found = recording(&self.directory, namespace, release, revision)?;
        let is_whole = |bytes: &Vec<u8>| first_of(bytes).is_some_and(|first| !first.goes_on());
        let Some(maps) = self
            .maps
            .as_ref()
            .filter(|_| !found.as_ref().is_some_and(is_whole))
        else {
            return Ok(found);
        };
        let part = recording_part(namespace, release);
        let permit = self.permits.of(namespace, release);
        let kept = match maps.get(&part, &permit) {
            Ok(kept) => kept.map(|stored| stored.bytes),
            // A part of it is better than nothing.
            Err(error) => return found.map_or(Err(error), |found| Ok(Some(found))),
        };
        let kept =
            kept.filter(|bytes| first_of(bytes).is_some_and(|first| first.revision == revision));
        Ok(kept.or(found))
    }

    fn file(&self, kind: StoredKind, namespace: &Namespace, release: &ReleaseName) -> PathBuf {
        let name = format!("{}.json", stem(namespace, release));
        match kind {
            StoredKind::State => self.directory.join(name),
            StoredKind::Spans => self.directory.join("spans").join(name),
            StoredKind::Alerts => self.directory.join("alerts.json"),
            StoredKind::ReleaseAlerts => self.directory.join("alerts").join(name),
        }
    }
}

/// Whether the file is newer than the ConfigMap, which can happen with a single replica.
fn is_older_than_file(stored: &[u8], path: &Path) -> bool {
    let saved = |bytes: &[u8]| {
        let envelope: Option<SavedState> = serde_json::from_slice(bytes).ok();
        envelope.map(|envelope| envelope.saved)
    };
    let file = read_bounded(path).ok().flatten();
    let of_file = file.and_then(|bytes| saved(&bytes));
    of_file.is_some() && of_file >= saved(stored)
}

/// The fields of a recording's first line that give its revision, and whether it starts in the middle.
#[derive(Deserialize)]
struct RecordingStart {
    revision: Revision,
    goes_on: Option<serde::de::IgnoredAny>,
}

impl RecordingStart {
    const fn goes_on(&self) -> bool {
        self.goes_on.is_some()
    }
}

fn first_of(recording: &[u8]) -> Option<RecordingStart> {
    let first = recording.split(|byte| *byte == b'\n').next()?;
    serde_json::from_slice(first).ok()
}

/// Name of the ConfigMap of a release's recording, without its prefix.
fn recording_part(namespace: &Namespace, release: &ReleaseName) -> String {
    format!("recording.{namespace}.{release}")
}

/// Name of the ConfigMap of a kind and release, without its prefix.
fn part(kind: StoredKind, namespace: &Namespace, release: &ReleaseName) -> String {
    format!("{}.{namespace}.{release}", kind.as_str())
}

fn put_aside(directory: &Path, path: &Path, now: Time) -> String {
    let excluded = format!("{}.aside-{}", path.display(), now.millis() / 1000);
    let said = match fs::rename(path, &excluded) {
        Ok(()) => format!("it was set aside as {excluded}, and the release is followed anew"),
        Err(error) => {
            format!("the release is followed anew; it could not be set aside: {error}")
        }
    };
    let start = format!("{}.aside-", file_name(path));
    keep_newest(directory, &start, MAX_ASIDE);
    said
}

/// Removes all but the newest files with this prefix. A failure does no harm: the next call tries again.
fn keep_newest(folder: &Path, start: &str, count: usize) {
    let mut files = files_of(folder, start);
    let surplus = files.len().saturating_sub(count);
    for (_, path) in files.drain(..surplus) {
        let _ = fs::remove_file(path);
    }
}

/// Recordings in a state directory, the oldest first; only those of `of` if given.
pub fn recordings(directory: &Path, of: Option<(&Namespace, &ReleaseName)>) -> Vec<PathBuf> {
    let start = of.map_or_else(String::new, |(namespace, release)| {
        format!("{}.v", stem(namespace, release))
    });
    let files = files_of(&directory.join("recordings"), &start);
    files.into_iter().map(|(_, path)| path).collect()
}

/// The newest recording of a revision in a state directory; `None` if there is none.
///
/// # Errors
///
/// When there is one and it cannot be read.
pub fn recording(
    directory: &Path,
    namespace: &Namespace,
    release: &ReleaseName,
    revision: Revision,
) -> io::Result<Option<Vec<u8>>> {
    let start = format!("{}.v{revision}.", stem(namespace, release));
    let files = files_of(&directory.join("recordings"), &start);
    // A release may be called as another one's recordings begin: a dot divides, and names may have dots.
    let is_of_it = |path: &&PathBuf| {
        let name = file_name(path);
        name.strip_prefix(&start)
            .and_then(|rest| rest.strip_suffix(".jsonl"))
            .is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let newest = files.iter().map(|(_, path)| path).rfind(is_of_it);
    newest.map_or(Ok(None), |path| read_bounded(path))
}

/// Files with this prefix, the one changed longest ago first.
fn files_of(folder: &Path, start: &str) -> Vec<(std::time::SystemTime, PathBuf)> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut files: Vec<_> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(start))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    files.sort();
    files
}

/// Reads a recording from a file.
///
/// # Errors
///
/// When it is invalid, or cannot be read.
pub fn read_recording(path: &Path) -> Result<Recording, RecordingError> {
    Recording::read(BufReader::new(File::open(path)?))
}

/// The file of a running recording.
#[derive(Debug)]
pub struct RecordingWriter {
    path: PathBuf,
    file: File,
    written: u64,
    full: bool,
}

impl RecordingWriter {
    fn open(path: PathBuf) -> io::Result<Self> {
        let file = files::append(&path)?;
        let written = file.metadata()?.len();
        Ok(Self {
            path,
            file,
            written,
            full: false,
        })
    }

    /// Where it is written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether nothing was written yet.
    pub const fn is_empty(&self) -> bool {
        self.written == 0
    }

    /// Appends lines. They reach the system at once, so they survive the end of this process, but not that of the
    /// machine.
    ///
    /// # Errors
    ///
    /// When they cannot be written. After that, and beyond the size limit, nothing more is written: a recording with a
    /// gap would replay wrongly. Also when the first line is not a head, because such a file could not be read.
    pub fn write(&mut self, lines: &[RecordingLine]) -> io::Result<()> {
        if self.full || lines.is_empty() {
            return Ok(());
        }
        if self.is_empty() && !matches!(lines[0], RecordingLine::Head(_)) {
            self.full = true;
            let _ = fs::remove_file(&self.path);
            return Err(io::Error::other(
                "the beginning of the recording is not here",
            ));
        }
        let mut bytes = Vec::new();
        for line in lines {
            serde_json::to_writer(&mut bytes, line)?;
            bytes.push(b'\n');
        }
        self.written += bytes.len() as u64;
        if self.written > MAX_BYTES {
            self.full = true;
            return Err(io::Error::other(format!(
                "the recording has reached its bound of {MAX_BYTES} bytes"
            )));
        }
        let written = self.file.write_all(&bytes);
        self.full = written.is_err();
        written
    }

    /// Reads back what was written so far, after a restart; an incomplete last line is cut off.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn read_back(&mut self) -> Result<Recording, RecordingError> {
        let bytes = read_bounded(&self.path)?.unwrap_or_default();
        let whole = bytes
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        if whole < bytes.len() {
            self.file.set_len(whole as u64)?;
            self.written = whole as u64;
        }
        Recording::read(&bytes[..whole])
    }
}

/// Reads a file within our size limit; `None` if there is none.
fn read_bounded(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match files::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let most = MAX_STATE.max(MAX_BYTES);
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::other(format!("it is larger than {most} bytes")));
    }
    Ok(Some(bytes))
}

fn unwrap<T: DeserializeOwned>(
    bytes: &[u8],
    kind: StoredKind,
    namespace: &Namespace,
    release: &ReleaseName,
) -> Result<(T, Time), String> {
    let read: EnvelopeVersion<'_> =
        serde_json::from_slice(bytes).map_err(|error| format!("is damaged: {error}"))?;
    if read.leadsman != kind.as_str() {
        return Err(format!("is no {} file of Leadsman", kind.as_str()));
    }
    if read.version > VERSION {
        return Err(format!(
            "was written by a newer Leadsman (format {}, this one reads up to {VERSION})",
            read.version
        ));
    }
    if read.namespace != *namespace || read.release != *release {
        return Err(format!("belongs to {}/{}", read.namespace, read.release));
    }
    let state = serde_json::from_str(read.state.get());
    let state = state.map_err(|error| format!("is damaged: {error}"))?;
    Ok((state, read.saved))
}

fn moved<T: HasTimes>(mut state: T, shift: Option<ClockShift>) -> T {
    if let Some(shift) = shift {
        state.shift(shift);
    }
    state
}

/// Prefix of a release's files. A namespace has no dot, so the first one separates them.
fn stem(namespace: &Namespace, release: &ReleaseName) -> String {
    let plain = |text: &str| -> String {
        let keep = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
        text.chars()
            .map(|c| if keep(c) { c } else { '_' })
            .collect()
    };
    format!("{}.{}", plain(namespace.as_str()), plain(release.as_str()))
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests;
