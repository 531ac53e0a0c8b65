//! The state in ConfigMaps, for pods that keep no disk: one for each release.
//!
//! Invariants:
//! - what was read or written last is named by its resourceVersion, so a second writer is seen and never overwritten;
//! - of several replicas the one with the higher number may write over what an earlier one left, and no other;
//! - a ConfigMap holds at most [`MAX_DATA`] bytes: a state that is larger is refused, and the old one stays.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read as _, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::runtime::Handle;

use super::MAX_STATE;

/// Kubernetes allows 1 MiB in all; some of it is taken by names and labels.
const MAX_DATA: usize = 1_000_000;

/// The longest that one request may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// The key of the only value, which is gzip.
const KEY: &str = "state.json.gz";

/// The annotation with the number of who wrote it.
const FENCE: &str = "leadsman.io/fence";

fn fence_of(map: &ConfigMap) -> u64 {
    let annotations = map.metadata.annotations.as_ref();
    let fence = annotations.and_then(|all| all.get(FENCE)?.parse().ok());
    fence.unwrap_or(0)
}

/// ConfigMaps of one namespace whose names begin alike.
pub struct ConfigMaps {
    api: Api<ConfigMap>,
    name: String,
    runtime: Handle,
    /// By the ConfigMap's name: the version that was read or written last.
    versions: Mutex<HashMap<String, String>>,
}

impl std::fmt::Debug for ConfigMaps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConfigMaps")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl ConfigMaps {
    /// In a namespace; must be called inside a tokio runtime of several threads.
    pub fn new(client: Client, namespace: &str, name: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            runtime: Handle::current(),
            versions: Mutex::new(HashMap::new()),
        }
    }

    fn wait<T>(&self, request: impl Future<Output = kube::Result<T>>) -> io::Result<T> {
        let limited = tokio::time::timeout(PATIENCE, request);
        let answer = match Handle::try_current() {
            // On a thread that carries tasks: they move to another one meanwhile.
            Ok(_) => tokio::task::block_in_place(|| self.runtime.block_on(limited)),
            Err(_) => self.runtime.block_on(limited),
        };
        match answer {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "another Leadsman has written this state; only one may",
            )),
            Ok(Err(error)) => Err(io::Error::other(error.to_string())),
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no answer within {} s", PATIENCE.as_secs()),
            )),
        }
    }

    fn full_name(&self, part: &str) -> String {
        format!("{}.{part}", self.name)
    }

    fn note(&self, name: &str, meta: &ObjectMeta) {
        let version = meta.resource_version.clone().unwrap_or_default();
        let mut versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        versions.insert(name.to_owned(), version);
    }

    /// What is stored under this name; `None` when nothing is.
    ///
    /// # Errors
    /// When the API server does not answer, or what it has is no state.
    pub(super) fn get(&self, part: &str) -> io::Result<Option<Vec<u8>>> {
        let name = self.full_name(part);
        let Some(mut map) = self.wait(self.api.get_opt(&name))? else {
            return Ok(None);
        };
        self.note(&name, &map.metadata);
        let packed = map.binary_data.as_mut().and_then(|data| data.remove(KEY));
        let Some(packed) = packed else {
            return Err(io::Error::other(format!(
                "the ConfigMap {name} has no {KEY}"
            )));
        };
        let mut bytes = Vec::new();
        GzDecoder::new(packed.0.as_slice())
            .take(MAX_STATE)
            .read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    /// Keeps what is stored under this name under another one as well, where nothing is yet; that name.
    ///
    /// # Errors
    /// When the API server does not answer, or refuses it.
    pub(super) fn keep_aside(&self, part: &str) -> io::Result<String> {
        let name = self.full_name(part);
        let aside = format!("{name}.aside");
        let Some(map) = self.wait(self.api.get_opt(&name))? else {
            return Ok(aside);
        };
        let copy = ConfigMap {
            metadata: ObjectMeta {
                name: Some(aside.clone()),
                labels: map.metadata.labels,
                ..ObjectMeta::default()
            },
            binary_data: map.binary_data,
            ..ConfigMap::default()
        };
        match self.wait(self.api.create(&PostParams::default(), &copy)) {
            // It was set aside before, and perhaps looked at by nobody.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(aside),
            created => created.map(|_| aside),
        }
    }

    /// Stores bytes under this name.
    ///
    /// # Errors
    /// When they are too large, another has written there, or the API server does not answer.
    pub(super) fn put(&self, part: &str, bytes: &[u8], fence: u64) -> io::Result<()> {
        let name = self.full_name(part);
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(bytes)?;
        let packed = gzip.finish()?;
        if packed.len() > MAX_DATA {
            return Err(io::Error::other(format!(
                "the state has {} bytes, and a ConfigMap holds {MAX_DATA}; use a directory",
                packed.len()
            )));
        }
        let versions = || self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        let known = versions().get(&name).cloned();
        let mut map = ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                resource_version: known.clone(),
                labels: Some(BTreeMap::from([(
                    "app.kubernetes.io/managed-by".into(),
                    "leadsman".into(),
                )])),
                annotations: (fence > 0)
                    .then(|| BTreeMap::from([(FENCE.to_owned(), fence.to_string())])),
                ..ObjectMeta::default()
            },
            binary_data: Some(BTreeMap::from([(KEY.to_owned(), ByteString(packed))])),
            ..ConfigMap::default()
        };
        let params = PostParams::default();
        let write = |map: &ConfigMap| match map.metadata.resource_version {
            Some(_) => self.wait(self.api.replace(&name, &params, map)),
            None => self.wait(self.api.create(&params, map)),
        };
        let mut written = write(&map);
        if written.is_err() && fence > 0 {
            // The last word of whoever acted before us may have come after we read it.
            let there = self.wait(self.api.get_opt(&name))?;
            let is_ours = there.as_ref().is_none_or(|there| fence_of(there) <= fence);
            if is_ours {
                map.metadata.resource_version =
                    there.and_then(|there| there.metadata.resource_version);
                written = write(&map);
            }
        }
        let written = written?;
        self.note(&name, &written.metadata);
        Ok(())
    }
}
