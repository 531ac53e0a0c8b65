//! The state in ConfigMaps, for pods that keep no disk: one for each release.
//!
//! Invariants:
//! - what was read or written last is named by its resourceVersion, so a second writer is seen and never overwritten;
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
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => Err(io::Error::other(
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

    /// Stores bytes under this name.
    ///
    /// # Errors
    /// When they are too large, another has written there, or the API server does not answer.
    pub(super) fn put(&self, part: &str, bytes: &[u8]) -> io::Result<()> {
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
        let map = ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                resource_version: known.clone(),
                labels: Some(BTreeMap::from([(
                    "app.kubernetes.io/managed-by".into(),
                    "leadsman".into(),
                )])),
                ..ObjectMeta::default()
            },
            binary_data: Some(BTreeMap::from([(KEY.to_owned(), ByteString(packed))])),
            ..ConfigMap::default()
        };
        let params = PostParams::default();
        let written = match known {
            Some(_) => self.wait(self.api.replace(&name, &params, &map)),
            None => self.wait(self.api.create(&params, &map)),
        }?;
        self.note(&name, &written.metadata);
        Ok(())
    }
}
