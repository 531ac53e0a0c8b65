//! Payloads of records: fetched one at a time, decoded, and written back when they must be put right.

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

/// Payloads that are in memory at a time, over all releases: each takes a MiB or two from when it is asked for until it is
/// decoded. Requests that hang hold up those of other releases, for as long as a request may take.
static FETCHING: Semaphore = Semaphore::const_new(2);

/// Those of them that are decoded at a time: each takes some MiB more.
static DECODING: Semaphore = Semaphore::const_new(1);

/// Revisions of one page of a list.
const PAGE: u32 = 500;

/// Revisions that are listed. Helm itself reads each of them whole, and gives up far earlier.
const MAX_ROWS: usize = 20_000;

/// What came of fetching a record: its version, and what is in it or why that cannot be read. `None` when it is gone.
pub(super) type FetchedRecord<T = HelmRecord> = Option<(Box<str>, Result<T, String>)>;

/// How large a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct UnpackedSize {
    /// As it is stored, in bytes.
    pub(super) stored: u64,
    /// When unpacked, in bytes.
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
    /// When the API server cannot be asked; a payload that cannot be read is no error of that kind.
    pub(super) async fn fetch(&self, object: &str) -> Result<FetchedRecord, ApiError> {
        self.fetch_as(object, Ok).await
    }

    /// Fetches and decodes a record, and keeps of it only what is made of it. That may take long: the manifest has
    /// megabytes.
    ///
    /// # Errors
    /// As those of [`Self::fetch`].
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

    /// The version of a record and how large it is when unpacked, in bytes, but not counted further than one beyond
    /// `most`; `None` when it is gone.
    ///
    /// # Errors
    /// When the API server cannot be asked.
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

    /// Name and version of each object that helm reads as a record of a release: it goes by labels alone, whatever the
    /// object's type and name are.
    ///
    /// # Errors
    /// When the API server cannot be asked.
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

    /// The records of a release by their metadata, ascending, as they are at this moment. Page by page, each with the
    /// limit of a request, so that a history of ten thousand is read as well.
    pub(super) async fn list(
        &self,
        release: &ReleaseName,
    ) -> Result<Vec<RecordSummaryRow>, ApiError> {
        let mut rows = self.rows(&format!("owner=helm,name={release}")).await?;
        rows.sort_by_key(|row| row.revision);
        Ok(rows)
    }

    /// The newest record of each release of the namespace, as it is at this moment.
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

    /// Changes a record, if it is still the version that was read. Everything else in it stays as it is, but for the
    /// number of whoever changes it.
    ///
    /// # Errors
    /// Also when another has changed it in between (409), or when we may not any more.
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

/// Whose turn it is to change records.
pub(super) struct FencingToken<'a> {
    pub(super) permit: &'a Permit,
    /// Is written to what is changed.
    pub(super) fence: u64,
}

/// The write that follows names this version, so one that comes in between is seen by the API server.
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
