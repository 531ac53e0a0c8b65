//! Payloads of records: fetched one at a time, decoded, and written back for repairs.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::ListParams;
use kube::{Api, Client};
use tokio::sync::Semaphore;

use super::HelmDriver;
use super::api::{ApiError, PATIENCE, ask};
use super::objects::RecordSummaryRow;
use super::record_patch::{self, RecordChange};
use crate::core::units::{Namespace, ReleaseName};
use crate::helm::record::{self, HelmRecord};
use crate::kubernetes::client::ApiWriter;
use crate::platform::permit::Permit;

/// Payloads in memory at a time, over all releases: each takes a MiB or two from its request until it is decoded. A
/// hanging request delays those of other releases, for at most the duration of a request.
static FETCHING: Semaphore = Semaphore::const_new(2);

/// Payloads that are decoded at a time: each takes some MiB more.
static DECODING: Semaphore = Semaphore::const_new(1);

/// Revisions per page of a list.
const PAGE: u32 = 500;

/// Revisions that are listed. Helm itself reads each of them whole, and gives up far earlier.
const MAX_ROWS: usize = 20_000;

/// A fetched record: its version, and its contents or why they cannot be read. `None` if it is gone.
pub(super) type FetchedRecord<T = HelmRecord> = Option<(Box<str>, Result<T, String>)>;

/// Sizes of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct UnpackedSize {
    /// As stored, in bytes.
    pub(super) stored: u64,
    /// Unpacked, in bytes.
    pub(super) size: u64,
}

/// The records of one namespace.
#[derive(Clone)]
pub(super) struct Records {
    client: Client,
    namespace: Arc<str>,
    driver: HelmDriver,
}

impl Records {
    pub(super) fn new(client: Client, namespace: &Namespace, driver: HelmDriver) -> Self {
        Self {
            client,
            namespace: namespace.as_str().into(),
            driver,
        }
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn config_maps(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The object's version and payload.
    async fn payload(&self, object: &str) -> Result<Option<(Box<str>, Vec<u8>)>, ApiError> {
        let version = |version: Option<String>| version.unwrap_or_default().into_boxed_str();
        Ok(match self.driver {
            HelmDriver::Secret => ask(self.secrets().get_opt(object)).await?.map(|secret| {
                let payload = secret.data.and_then(|mut data| data.remove("release"));
                let payload = payload.map_or_else(Vec::new, |bytes| bytes.0);
                (version(secret.metadata.resource_version), payload)
            }),
            HelmDriver::ConfigMap => ask(self.config_maps().get_opt(object)).await?.map(|map| {
                let payload = map.data.and_then(|mut data| data.remove("release"));
                let payload = payload.map_or_else(Vec::new, String::into_bytes);
                (version(map.metadata.resource_version), payload)
            }),
        })
    }

    /// Fetches and decodes a record.
    ///
    /// # Errors
    ///
    /// When the API server fails. An unreadable payload is part of the result.
    pub(super) async fn fetch(&self, object: &str) -> Result<FetchedRecord, ApiError> {
        self.fetch_as(object, Ok).await
    }

    /// Fetches and decodes a record, and keeps only what `make` extracts, because manifests have megabytes.
    ///
    /// # Errors
    ///
    /// As [`Self::fetch`].
    pub(super) async fn fetch_as<T: Send + 'static>(
        &self,
        object: &str,
        read: impl FnOnce(HelmRecord) -> Result<T, String> + Send + 'static,
    ) -> Result<FetchedRecord<T>, ApiError> {
        // The semaphores are never closed; without a permit it would only take more memory.
        let _fetching = FETCHING.acquire().await;
        let fetched = self.payload(object).await?;
        let Some((version, payload)) = fetched else {
            return Ok(None);
        };
        let permit = DECODING.acquire().await;
        let name = object.to_owned();
        let read = tokio::task::spawn_blocking(move || {
            let record = record::decode(&name, &payload).map_err(|error| error.to_string());
            drop(payload);
            record.and_then(read)
        });
        let read = read.await.unwrap_or_else(|error| Err(error.to_string()));
        drop(permit);
        Ok(Some((version, read)))
    }

    /// Version and unpacked size of a record; counting stops one byte beyond `most`. `None` if it is gone.
    ///
    /// # Errors
    ///
    /// When the API server fails.
    pub(super) async fn unpacked_size(
        &self,
        object: &str,
        most: u64,
    ) -> Result<Option<(Box<str>, UnpackedSize)>, ApiError> {
        let _fetching = FETCHING.acquire().await;
        let Some((version, payload)) = self.payload(object).await? else {
            return Ok(None);
        };
        let permit = DECODING.acquire().await;
        let counted = tokio::task::spawn_blocking(move || UnpackedSize {
            stored: payload.len() as u64,
            size: record::unpacked_size(&payload, most),
        });
        let counted = counted.await;
        drop(permit);
        let counted = counted.map_err(|error| ApiError::Unreadable(error.to_string()))?;
        Ok(Some((version, counted)))
    }

    /// Name and version of each object that helm reads as a record of a release: it selects by labels alone, whatever
    /// the object's type and name.
    ///
    /// # Errors
    ///
    /// When the API server fails.
    pub(super) async fn read_by_helm(
        &self,
        release: &ReleaseName,
    ) -> Result<Vec<(Box<str>, Box<str>)>, ApiError> {
        let params = ListParams::default().labels(&format!("owner=helm,name={release}"));
        let named = |meta: &ObjectMeta| {
            let version = meta.resource_version.as_deref().unwrap_or_default();
            Some((meta.name.as_deref()?.into(), version.into()))
        };
        self.each(params, named).await
    }

    /// Current metadata of all records of a release, ascending. It is read page by page, so that a history of ten
    /// thousand works as well.
    pub(super) async fn list(
        &self,
        release: &ReleaseName,
    ) -> Result<Vec<RecordSummaryRow>, ApiError> {
        let mut rows = self.rows(&format!("owner=helm,name={release}")).await?;
        rows.sort_by_key(|row| row.revision);
        Ok(rows)
    }

    /// Current metadata of the newest record of each release of the namespace.
    pub(super) async fn newest(&self) -> Result<Vec<RecordSummaryRow>, ApiError> {
        let mut newest: BTreeMap<Box<str>, RecordSummaryRow> = BTreeMap::new();
        for row in self.rows("owner=helm").await? {
            let known = newest.get(&row.release);
            if known.is_none_or(|known| known.revision < row.revision) {
                newest.insert(row.release.clone(), row);
            }
        }
        Ok(newest.into_values().collect())
    }

    async fn rows(&self, labels: &str) -> Result<Vec<RecordSummaryRow>, ApiError> {
        let mut params = ListParams::default().labels(labels);
        if matches!(self.driver, HelmDriver::Secret) {
            params = params.fields("type=helm.sh/release.v1");
        }
        self.each(params, RecordSummaryRow::of).await
    }

    async fn each<T>(
        &self,
        params: ListParams,
        row: impl Fn(&ObjectMeta) -> Option<T>,
    ) -> Result<Vec<T>, ApiError> {
        let mut params = params.limit(PAGE);
        let mut rows: Vec<T> = Vec::new();
        loop {
            let (metas, next): (Vec<ObjectMeta>, _) = match self.driver {
                HelmDriver::Secret => {
                    let list = ask(self.secrets().list_metadata(&params)).await?;
                    let metas = list.items.into_iter().map(|item| item.metadata);
                    (metas.collect(), list.metadata.continue_)
                }
                HelmDriver::ConfigMap => {
                    let list = ask(self.config_maps().list_metadata(&params)).await?;
                    let metas = list.items.into_iter().map(|item| item.metadata);
                    (metas.collect(), list.metadata.continue_)
                }
            };
            rows.extend(metas.iter().filter_map(&row));
            match next.filter(|token| !token.is_empty()) {
                None => break,
                Some(_) if rows.len() >= MAX_ROWS => {
                    let labels = params.label_selector.as_deref().unwrap_or_default();
                    let why = format!(
                        "more than {MAX_ROWS} stored revisions ({labels}), so which one is the newest is not known; remove old ones with helm's --history-max"
                    );
                    tracing::warn!(namespace = %self.namespace, "There are {why}");
                    return Err(ApiError::Unreadable(why));
                }
                Some(token) => params.continue_token = Some(token),
            }
        }
        Ok(rows)
    }

    /// Changes a record if it still has the version that was read, and adds our fencing token. Everything else in it
    /// stays.
    ///
    /// # Errors
    ///
    /// Also if another writer changed it (409), or the permit is lost.
    pub(super) async fn patch_record(
        &self,
        row: &RecordSummaryRow,
        change: &RecordChange,
        turn: &FencingToken<'_>,
    ) -> Result<(), ApiError> {
        let unreadable = |why: String| ApiError::Unreadable(format!("{}: {why}", row.object));
        let gone = || unreadable("it is gone".into());
        let writer = ApiWriter::new(turn.permit, PATIENCE);
        match self.driver {
            HelmDriver::Secret => {
                let secrets = self.secrets();
                let secret = ask(secrets.get_opt(&row.object)).await?;
                let mut secret = secret.ok_or_else(gone)?;
                is_as_read(&secret.metadata, row)?;
                let data = secret.data.get_or_insert_default();
                let payload = data.get("release").map_or(&[][..], |bytes| &bytes.0);
                let payload = record_patch::payload(payload, change).map_err(unreadable)?;
                data.insert("release".into(), k8s_openapi::ByteString(payload));
                record_patch::labels(
                    secret.metadata.labels.get_or_insert_default(),
                    change,
                    turn.fence,
                );
                writer.replace(&secrets, &row.object, None, &secret).await?;
            }
            HelmDriver::ConfigMap => {
                let maps = self.config_maps();
                let map = ask(maps.get_opt(&row.object)).await?;
                let mut map = map.ok_or_else(gone)?;
                is_as_read(&map.metadata, row)?;
                let data = map.data.get_or_insert_default();
                let payload = data.get("release").map_or("", String::as_str);
                let payload =
                    record_patch::payload(payload.as_bytes(), change).map_err(unreadable)?;
                let text =
                    String::from_utf8(payload).map_err(|error| unreadable(error.to_string()))?;
                data.insert("release".into(), text);
                record_patch::labels(
                    map.metadata.labels.get_or_insert_default(),
                    change,
                    turn.fence,
                );
                writer.replace(&maps, &row.object, None, &map).await?;
            }
        }
        Ok(())
    }
}

/// The permit and the fencing token for changes of records.
pub(super) struct FencingToken<'a> {
    pub(super) permit: &'a Permit,
    /// Written to each changed object.
    pub(super) fence: u64,
}

/// Whether the object has the version that was read; the write that follows names the version, so the API server
/// detects later changes.
fn is_as_read(meta: &ObjectMeta, row: &RecordSummaryRow) -> Result<(), ApiError> {
    if meta.resource_version.as_deref() == Some(&*row.version) {
        return Ok(());
    }
    Err(ApiError::Answer {
        code: 409,
        reason: "Conflict".into(),
        message: format!("{} has changed since it was read", row.object),
        retry_after: 0,
    })
}
