//! States in ConfigMaps, one for each release, for pods without a lasting disk.
//!
//! Invariants:
//! - each write names the resourceVersion that was read or written last, so a second writer is detected and never
//!   overwritten;
//! - a leader that reads a state writes its fencing token there at once: from then on an earlier leader is refused, so
//!   nothing is written after what was read;
//! - a state that this leader has not read is never replaced, nor one that a later leader wrote;
//! - each write asks for the permit immediately before, and is given up when it is lost;
//! - a ConfigMap has at most [`MAX_DATA`] bytes: a larger state is refused, and the old one stays.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read as _, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::GetParams;
use kube::core::{Request, Status};
use kube::{Api, Client};
use tokio::runtime::Handle;

use super::MAX_STATE;
use crate::kubernetes::client::{ApiWriter, WriteError};
use crate::platform::permit::Permit;

/// Kubernetes allows 1 MiB in all; some of it is taken by names and labels.
const MAX_DATA: usize = 1_000_000;

/// Maximum duration of one request.
const PATIENCE: Duration = Duration::from_secs(3);

/// Reads of a state, if an earlier leader writes meanwhile: it has at most one write in flight.
const MAX_READS: u32 = 4;

/// Quarantined states that are kept for each name; a person who has read them deletes them.
const MAX_ASIDE: u32 = 5;

/// The key of the only value, which is gzip.
const KEY: &str = "state.json.gz";

/// Annotation: the fencing token of the last leader that wrote or read it.
const FENCE: &str = "leadsman.io/fence";

/// The field manager of states. Taking a state over has another one, so that the time of the state's own write stays.
const WRITER: &str = "leadsman";
const TAKER: &str = "leadsman-goes-on";

fn fence_of(map: &ConfigMap) -> u64 {
    let annotations = map.metadata.annotations.as_ref();
    let fence = annotations.and_then(|all| all.get(FENCE)?.parse().ok());
    fence.unwrap_or(0)
}

/// The token of a leader that takes the state over: that of its permit, but also higher than one from an earlier Lease
/// of this name.
fn next_fence(map: Option<&ConfigMap>, term: Option<u64>) -> u64 {
    let before = map.map_or(0, fence_of);
    term.unwrap_or(0).max(before.saturating_add(1))
}

/// The stored bytes of a name.
pub(super) struct StoredBytes {
    pub(super) bytes: Vec<u8>,
    /// How long ago they were written, both times by the API server's clock; `None` if it does not say.
    pub(super) age: Option<Duration>,
}

/// What is known of a ConfigMap.
#[derive(Debug, Clone, PartialEq, Eq)]
struct KnownMap {
    /// The version that was read or written last; `None` if it did not exist.
    version: Option<String>,
    /// The token of the permit at that time; `None` if it was read without one.
    term: Option<u64>,
    /// The value for [`FENCE`].
    fence: u64,
}

/// ConfigMaps of one namespace with a common prefix.
pub struct ConfigMaps {
    client: Client,
    api: Api<ConfigMap>,
    name: String,
    runtime: Handle,
    /// By the ConfigMap's name.
    known: Mutex<HashMap<String, KnownMap>>,
}

impl std::fmt::Debug for ConfigMaps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConfigMaps")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// The permit is not held.
fn not_ours() -> io::Error {
    io::Error::other("another replica acts, and writes the state")
}

fn not_written(error: WriteError) -> io::Error {
    match error {
        WriteError::NotHeld => not_ours(),
        WriteError::TimedOut(limit) => timed_out(limit),
        WriteError::Refused(error) => refused(error),
    }
}

fn timed_out(limit: Duration) -> io::Error {
    let text = format!("no answer within {} s", limit.as_secs());
    io::Error::new(io::ErrorKind::TimedOut, text)
}

fn refused(error: kube::Error) -> io::Error {
    match error {
        kube::Error::Api(status) if status.code == 409 => io::Error::new(
            io::ErrorKind::AlreadyExists,
            "another Leadsman has written this state; only one may",
        ),
        error => io::Error::other(error.to_string()),
    }
}

impl ConfigMaps {
    /// In a namespace; must be called inside a tokio runtime of several threads.
    pub fn new(client: Client, namespace: &str, name: &str) -> Self {
        Self {
            api: Api::namespaced(client.clone(), namespace),
            client,
            name: name.to_owned(),
            runtime: Handle::current(),
            known: Mutex::new(HashMap::new()),
        }
    }

    /// Waits for a request that changes nothing.
    fn wait<T>(&self, request: impl Future<Output = kube::Result<T>>) -> io::Result<T> {
        // A timer can only be made inside the runtime.
        let limited = async { tokio::time::timeout(PATIENCE, request).await };
        let answer = self.block_on(limited);
        answer.map_err(|_| timed_out(PATIENCE))?.map_err(refused)
    }

    fn create(&self, map: &ConfigMap, permit: &Permit) -> io::Result<ConfigMap> {
        let writer = ApiWriter::new(permit, PATIENCE);
        let written = self.block_on(writer.create(&self.api, Some(WRITER), map));
        written.map_err(not_written)
    }

    fn replace(
        &self,
        name: &str,
        manager: &str,
        map: &ConfigMap,
        permit: &Permit,
    ) -> io::Result<ConfigMap> {
        let writer = ApiWriter::new(permit, PATIENCE);
        let written = self.block_on(writer.replace(&self.api, name, Some(manager), map));
        written.map_err(not_written)
    }

    fn block_on<T>(&self, request: impl Future<Output = T>) -> T {
        match Handle::try_current() {
            // On a thread that carries tasks: they move to another one meanwhile.
            Ok(_) => tokio::task::block_in_place(|| self.runtime.block_on(request)),
            Err(_) => self.runtime.block_on(request),
        }
    }

    fn full_name(&self, part: &str) -> String {
        format!("{}.{part}", self.name)
    }

    fn known(&self, name: &str) -> Option<KnownMap> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(name).cloned()
    }

    fn note(&self, name: &str, known: KnownMap) {
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(name.to_owned(), known);
    }

    /// The fencing token of our writes; 0 before the first read.
    pub(super) fn fence(&self, part: &str) -> u64 {
        self.known(&self.full_name(part))
            .map_or(0, |known| known.fence)
    }

    /// Whether the stored state is known, so that it may be replaced.
    pub(super) fn is_known(&self, part: &str) -> bool {
        self.known(&self.full_name(part)).is_some()
    }

    /// The stored bytes of this name; `None` if there are none.
    ///
    /// # Errors
    ///
    /// When the API server does not answer.
    pub(super) fn get(&self, part: &str, permit: &Permit) -> io::Result<Option<StoredBytes>> {
        let name = self.full_name(part);
        let found = self.wait(self.fetch(&name))?;
        let (map, age) = found.map_or((None, None), |(map, age)| (Some(map), age));
        self.note_read(&name, map.as_ref(), permit.fence());
        Ok(map.map(|map| unpacked(map, age)))
    }

    /// Reads the bytes to continue with them: an earlier leader cannot write there once this has returned.
    ///
    /// # Errors
    ///
    /// When the API server does not answer, or the permit is lost.
    pub(super) fn take(&self, part: &str, permit: &Permit) -> io::Result<Option<StoredBytes>> {
        let name = self.full_name(part);
        let term = Some(permit.fence().ok_or_else(not_ours)?);
        let mut reads = 0;
        loop {
            reads += 1;
            // As long as it is not ours it may not be replaced either.
            self.forget(part);
            let found = self.wait(self.fetch(&name))?;
            let Some((map, age)) = found else {
                self.note_read(&name, None, term);
                return Ok(None);
            };
            let mut ours = map.clone();
            let fence = next_fence(Some(&map), term);
            let annotations = ours.metadata.annotations.get_or_insert_default();
            annotations.insert(FENCE.to_owned(), fence.to_string());
            ours.metadata.managed_fields = None;
            match self.replace(&name, TAKER, &ours, permit) {
                Ok(written) => {
                    let version = written.metadata.resource_version;
                    let known = KnownMap {
                        version,
                        term,
                        fence,
                    };
                    self.note(&name, known);
                }
                // The last word of whoever acted before came in between.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && reads < MAX_READS => {
                    continue;
                }
                // Where there is nobody else, nothing can come in between; that it cannot be written is told later.
                Err(error) if !permit.is_shared() => {
                    tracing::warn!(map = name, %error, "The ConfigMap of the state cannot be written");
                    self.note_read(&name, Some(&map), term);
                }
                Err(error) => return Err(error),
            }
            return Ok(Some(unpacked(map, age)));
        }
    }

    /// Forgets what is known of the stored state.
    pub(super) fn forget(&self, part: &str) {
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(&self.full_name(part));
    }

    fn note_read(&self, name: &str, map: Option<&ConfigMap>, term: Option<u64>) {
        let known = KnownMap {
            version: map.and_then(|map| map.metadata.resource_version.clone()),
            term,
            fence: next_fence(map, term),
        };
        self.note(name, known);
    }

    /// Reads a ConfigMap and the age of its state. The client returns only the object, and this needs a header as well.
    async fn fetch(&self, name: &str) -> kube::Result<Option<(ConfigMap, Option<Duration>)>> {
        let request = Request::new(self.api.resource_url());
        let request = request
            .get(name, &GetParams::default())
            .map_err(kube::Error::BuildRequest)?;
        let request = request.map(kube::client::Body::from);
        let answer = self.client.send(request).await?;
        let code = answer.status();
        let date = answer.headers().get(http::header::DATE);
        let date = date.and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
        let bytes = answer.into_body().collect_bytes().await?;
        if code == http::StatusCode::NOT_FOUND {
            return Ok(None);
        }
        if !code.is_success() {
            let status = serde_json::from_slice::<Status>(&bytes).unwrap_or_else(|_| {
                let text: String = String::from_utf8_lossy(&bytes).chars().take(200).collect();
                Status::failure(&text, "no answer of an API server").with_code(code.as_u16())
            });
            return Err(kube::Error::Api(Box::new(status)));
        }
        let map: ConfigMap = serde_json::from_slice(&bytes).map_err(kube::Error::SerdeError)?;
        let now = date.and_then(|date| Timestamp::try_from(date).ok());
        let age = now.zip(written_at(&map)).map(|(now, written)| {
            let seconds = now.as_second().saturating_sub(written.as_second());
            Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
        });
        Ok(Some((map, age)))
    }

    /// Copies the bytes of this name to another one that is unused, and returns it.
    ///
    /// # Errors
    ///
    /// When the API server does not answer or refuses it, the permit is lost, or too many copies wait for a person.
    pub(super) fn keep_aside(&self, part: &str, permit: &Permit) -> io::Result<String> {
        let name = self.full_name(part);
        let fence = self.fence(part);
        let Some(map) = self.wait(self.api.get_opt(&name))? else {
            return Err(io::Error::other(format!("the ConfigMap {name} is gone")));
        };
        for number in 1..=MAX_ASIDE {
            let excluded = match number {
                1 => format!("{name}.aside"),
                _ => format!("{name}.aside-{number}"),
            };
            let copy = ConfigMap {
                metadata: ObjectMeta {
                    name: Some(excluded.clone()),
                    labels: map.metadata.labels.clone(),
                    annotations: Some(BTreeMap::from([(FENCE.to_owned(), fence.to_string())])),
                    ..ObjectMeta::default()
                },
                data: map.data.clone(),
                binary_data: map.binary_data.clone(),
                ..ConfigMap::default()
            };
            match self.create(&copy, permit) {
                Ok(_) => return Ok(excluded),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    // The same may have been set aside by one that was killed before it wrote a state of its own.
                    let there = self.wait(self.api.get_opt(&excluded))?;
                    if there.is_some_and(|there| {
                        there.binary_data == map.binary_data && there.data == map.data
                    }) {
                        return Ok(excluded);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other(format!(
            "{MAX_ASIDE} others are kept already, as {name}.aside and following; look at them, and delete them"
        )))
    }

    /// Stores bytes under this name. `is_own` for data that each replica keeps for itself, such as counters: then it is
    /// enough that the stored bytes were read once.
    ///
    /// # Errors
    ///
    /// When they are too large, another replica has written there, the stored bytes were not read, or the API server
    /// does not answer.
    pub(super) fn put(
        &self,
        part: &str,
        bytes: &[u8],
        permit: &Permit,
        is_own: bool,
    ) -> io::Result<()> {
        let name = self.full_name(part);
        let packed = packed(bytes)?;
        let term = permit.fence().ok_or_else(not_ours)?;
        let known = self
            .known(&name)
            .filter(|known| is_own || known.term == Some(term));
        let KnownMap { version, fence, .. } = match known {
            Some(known) => known,
            None if self.wait(self.api.get_opt(&name))?.is_none() => KnownMap {
                version: None,
                term: Some(term),
                fence: term.max(1),
            },
            None => {
                return Err(io::Error::other(format!(
                    "the ConfigMap {name} was not read since this replica acts, and is not replaced"
                )));
            }
        };
        let fence = fence.max(term);
        let mut map = ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                resource_version: version,
                labels: Some(BTreeMap::from([(
                    "app.kubernetes.io/managed-by".into(),
                    WRITER.into(),
                )])),
                annotations: Some(BTreeMap::from([(FENCE.to_owned(), fence.to_string())])),
                ..ObjectMeta::default()
            },
            binary_data: Some(BTreeMap::from([(KEY.to_owned(), ByteString(packed))])),
            ..ConfigMap::default()
        };
        let write = |map: &ConfigMap| match map.metadata.resource_version {
            Some(_) => self.replace(&name, WRITER, map, permit),
            None => self.create(map, permit),
        };
        let mut written = write(&map);
        if written.is_err() && permit.holds() {
            // It may be there although no answer came; or somebody has edited it by hand.
            let there = self.wait(self.api.get_opt(&name))?;
            let is_ours = there
                .as_ref()
                .is_none_or(|there| is_own || fence_of(there) == fence);
            if is_ours {
                map.metadata.resource_version =
                    there.and_then(|there| there.metadata.resource_version);
                written = write(&map);
            }
        }
        let version = written?.metadata.resource_version;
        let term = Some(term);
        self.note(
            &name,
            KnownMap {
                version,
                term,
                fence,
            },
        );
        Ok(())
    }
}

fn packed(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(bytes)?;
    let packed = gzip.finish()?;
    if packed.len() > MAX_DATA {
        return Err(io::Error::other(format!(
            "the state has {} bytes, and a ConfigMap holds {MAX_DATA}; use a directory",
            packed.len()
        )));
    }
    Ok(packed)
}

/// Bytes that cannot be unpacked count as empty, which is not a valid state, and are quarantined like a damaged one.
fn unpacked(mut map: ConfigMap, age: Option<Duration>) -> StoredBytes {
    let packed = map.binary_data.as_mut().and_then(|data| data.remove(KEY));
    let mut bytes = Vec::new();
    if let Some(packed) = packed
        && let Err(error) = GzDecoder::new(packed.0.as_slice())
            .take(MAX_STATE)
            .read_to_end(&mut bytes)
    {
        tracing::warn!(%error, "The ConfigMap of a state is no gzip");
        bytes.clear();
    }
    StoredBytes { bytes, age }
}

/// When the API server accepted the current state, by its own clock.
fn written_at(map: &ConfigMap) -> Option<Timestamp> {
    let entries = map.metadata.managed_fields.iter().flatten();
    let of_state = entries.filter(|entry| {
        let fields = entry.fields_v1.as_ref();
        fields.is_some_and(|fields| fields.0.get("f:binaryData").is_some())
    });
    of_state
        .filter_map(|entry| entry.time.as_ref().map(|time| time.0))
        .max()
}

#[cfg(test)]
pub(crate) mod tests;
