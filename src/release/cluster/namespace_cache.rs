//! The watches of one namespace, shared by all its releases.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::core::GroupVersionKind;
use kube::{Api, Client};
use tokio::sync::watch;

use super::HelmDriver;
use super::api::{ApiError, ask};
use super::granted::{Asker, GrantedRights};
use super::objects::{
    ObjectTable, PodSummary, RecordSummaryRow, ReplicaSetSummary, WorkloadKind, WorkloadSummary,
};
use super::rbac::RbacRights;
use super::records::Records;
use super::watcher::{self, CacheEvent, MetadataOnly, ObjectSelector, WholeObjects};
use crate::config::DiscoveredRelease;
use crate::core::units::Namespace;
use crate::core::units::ReleaseName;
use crate::core::units::Time;
use crate::platform::clock::Timeline;
use crate::release::EngineFuture;

/// After trouble with the API server a refusal is doubted for this long.
const UNSTEADY: Duration = Duration::from_secs(30);

/// Kinds whose plurals are remembered.
const MAX_RESOURCES: usize = 1000;

/// The cached objects of a namespace.
#[derive(Debug, Default)]
pub(super) struct ObjectCache {
    pub(super) stored: ObjectTable<Box<str>, RecordSummaryRow>,
    pub(super) pods: ObjectTable<Box<str>, PodSummary>,
    pub(super) replica_sets: ObjectTable<Box<str>, ReplicaSetSummary>,
    deployments: ObjectTable<Box<str>, WorkloadSummary>,
    stateful_sets: ObjectTable<Box<str>, WorkloadSummary>,
    daemon_sets: ObjectTable<Box<str>, WorkloadSummary>,
    /// By watch: what is wrong, or `None` while it has not been read yet.
    troubles: BTreeMap<&'static str, Option<String>>,
}

impl ObjectCache {
    #[cfg(test)]
    pub(super) fn put_workload(&mut self, row: WorkloadSummary) {
        let table = match row.kind {
            WorkloadKind::Deployment => &mut self.deployments,
            WorkloadKind::StatefulSet => &mut self.stateful_sets,
            WorkloadKind::DaemonSet => &mut self.daemon_sets,
        };
        table.put(row.name.clone(), row);
    }

    /// Deployments, StatefulSets and DaemonSets.
    pub(super) fn workloads(&self) -> impl Iterator<Item = &WorkloadSummary> {
        let sets = self.stateful_sets.values().chain(self.daemon_sets.values());
        self.deployments.values().chain(sets)
    }

    /// Why the cache may be stale; `None` if it is not.
    pub(super) fn trouble(&self) -> Option<String> {
        let said = |(what, trouble): (&&str, &Option<String>)| {
            Some(format!("{what}: {}", trouble.as_ref()?))
        };
        self.troubles.iter().find_map(said)
    }

    /// Whether a watch has not delivered its first list.
    pub(super) fn is_unread(&self) -> bool {
        self.troubles.values().any(Option::is_none)
    }
}

/// The cache and watches of one namespace.
pub struct NamespaceCache {
    client: Client,
    /// Client and name of the account that helm acts as, if it is not ours; or why there is no client.
    acting: Option<Result<(Client, String), String>>,
    namespace: Namespace,
    driver: HelmDriver,
    timeline: Timeline,
    tables: Mutex<ObjectCache>,
    changed: watch::Sender<u64>,
    resources: Mutex<HashMap<GroupVersionKind, (String, bool)>>,
    /// Rights of our account, and of the one that helm acts as.
    own_rights: GrantedRights,
    rights_of_helm: GrantedRights,
    failed_at: Mutex<Option<Time>>,
    failures: std::sync::atomic::AtomicU64,
}

impl NamespaceCache {
    /// For a namespace. Watches start with [`NamespaceCache::run`].
    pub fn new(
        client: Client,
        namespace: Namespace,
        driver: HelmDriver,
        timeline: Timeline,
    ) -> Arc<Self> {
        Self::acting_as(client, None, namespace, driver, timeline)
    }

    /// The same, if helm acts as another account; see [`super::ApiConnector::acting_as`].
    pub fn acting_as(
        client: Client,
        acting: Option<Result<(Client, String), String>>,
        namespace: Namespace,
        driver: HelmDriver,
        timeline: Timeline,
    ) -> Arc<Self> {
        let kinds = [
            driver.plural(),
            "pods",
            "replicasets",
            "deployments",
            "statefulsets",
            "daemonsets",
        ];
        let unread = kinds.map(|kind| (kind, None));
        let tables = ObjectCache {
            troubles: unread.into(),
            ..ObjectCache::default()
        };
        Arc::new(Self {
            client,
            acting,
            namespace,
            driver,
            timeline,
            tables: Mutex::new(tables),
            changed: watch::Sender::new(0),
            resources: Mutex::new(HashMap::new()),
            own_rights: GrantedRights::default(),
            rights_of_helm: GrantedRights::default(),
            failed_at: Mutex::new(None),
            failures: std::sync::atomic::AtomicU64::new(0),
        })
    }

    /// Watches forever.
    pub fn run(self: Arc<Self>) -> EngineFuture<()> {
        Box::pin(async move {
            tokio::join!(
                self.records(),
                self.follow::<Pod>("pods", |tables, told| self.pods(tables, told)),
                self.follow::<ReplicaSet>("replicasets", |tables, told| {
                    of(
                        &mut tables.replica_sets,
                        told,
                        ReplicaSetSummary::of,
                        |row| row.uid.clone(),
                    )
                }),
                self.workloads::<Deployment>(
                    "deployments",
                    WorkloadKind::Deployment,
                    WorkloadSummary::of_deployment
                ),
                self.workloads::<StatefulSet>(
                    "statefulsets",
                    WorkloadKind::StatefulSet,
                    WorkloadSummary::of_stateful_set
                ),
                self.workloads::<DaemonSet>(
                    "daemonsets",
                    WorkloadKind::DaemonSet,
                    WorkloadSummary::of_daemon_set
                ),
            );
        })
    }

    /// The releases of the namespace with the labels of their newest revisions; `None` while unknown.
    pub fn discovered(&self) -> Option<Vec<DiscoveredRelease>> {
        let tables = self.tables();
        if tables
            .troubles
            .get(self.driver.plural())
            .is_some_and(Option::is_none)
        {
            return None;
        }
        let mut newest: BTreeMap<&str, &RecordSummaryRow> = BTreeMap::new();
        for row in tables.stored.values() {
            let known = newest.entry(&row.release).or_insert(row);
            if row.revision > known.revision {
                *known = row;
            }
        }
        let found = newest.into_values();
        Some(found.map(|row| self.named(row)).collect())
    }

    fn named(&self, row: &RecordSummaryRow) -> DiscoveredRelease {
        DiscoveredRelease {
            namespace: self.namespace.clone(),
            name: ReleaseName::new(row.release.clone()),
            labels: row.labels.clone(),
        }
    }

    /// The same by a single request.
    ///
    /// # Errors
    ///
    /// When the API server does not answer.
    pub async fn discover(&self) -> Result<Vec<DiscoveredRelease>, String> {
        let records = Records::new(self.client.clone(), &self.namespace, self.driver);
        let newest = records.newest().await.map_err(|why| why.to_string())?;
        Ok(newest.iter().map(|row| self.named(row)).collect())
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// The client for helm. It never falls back to our own account if helm should act as another one.
    pub(super) fn acting(&self) -> Result<&Client, ApiError> {
        match &self.acting {
            None => Ok(&self.client),
            Some(Ok((client, _))) => Ok(client),
            Some(Err(why)) => Err(ApiError::Unreachable(why.clone())),
        }
    }

    /// The account that helm acts as, if it is not ours.
    pub(super) fn impersonated(&self) -> Option<&str> {
        let (_, name) = self.acting.as_ref()?.as_ref().ok()?;
        Some(name)
    }

    /// Missing rights of our account; `asker` decides how old answers may be.
    pub(super) async fn missing(
        &self,
        needed: &RbacRights,
        asker: Asker,
    ) -> Result<Vec<String>, ApiError> {
        self.own_rights.missing(&self.client, needed, asker).await
    }

    /// The same for the account that helm acts as.
    pub(super) async fn missing_of_helm(
        &self,
        needed: &RbacRights,
        asker: Asker,
    ) -> Result<Vec<String>, ApiError> {
        let acting = self.acting()?;
        let rights = match &self.acting {
            None => &self.own_rights,
            Some(_) => &self.rights_of_helm,
        };
        rights.missing(acting, needed, asker).await
    }

    /// Drops all answers about rights, because a request was forbidden.
    pub(super) fn recheck_rights(&self) {
        self.own_rights.self_check();
        self.rights_of_helm.self_check();
    }

    pub(super) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    pub(super) fn now(&self) -> Time {
        self.timeline.now()
    }

    pub(super) fn driver(&self) -> HelmDriver {
        self.driver
    }

    /// Whether the API server had trouble a moment ago. While it starts, it refuses everything until it has read its
    /// roles.
    pub(super) fn is_unsteady(&self) -> bool {
        self.was_in_trouble(self.now())
    }

    /// Whether the API server has had trouble since this time, or shortly before.
    pub(super) fn was_in_trouble(&self, since: Time) -> bool {
        let failed = *self
            .failed_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        failed.is_some_and(|at| since.since(at) < UNSTEADY)
    }

    /// Failed watches since the start.
    pub fn failures(&self) -> u64 {
        self.failures.load(std::sync::atomic::Ordering::Relaxed)
    }

    pub(super) fn tables(&self) -> MutexGuard<'_, ObjectCache> {
        // A row is whole before it is put in, so what a panic left behind can be read.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notifies about changes.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The plural of a kind, and whether it is namespaced; `None` if the cluster does not have it.
    pub(super) async fn resource(
        &self,
        kind: &GroupVersionKind,
    ) -> Result<Option<(String, bool)>, ApiError> {
        let known = || {
            self.resources
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        if let Some(found) = known().get(kind) {
            return Ok(Some(found.clone()));
        }
        let found = match ask(kube::discovery::pinned_kind(&self.client, kind)).await {
            Ok((resource, abilities)) => {
                let is_namespaced = abilities.scope == kube::discovery::Scope::Namespaced;
                (resource.plural, is_namespaced)
            }
            Err(trouble) if trouble.is(404) || matches!(trouble, ApiError::NoSuchKind) => {
                return Ok(None);
            }
            Err(trouble) => return Err(trouble),
        };
        if known().len() < MAX_RESOURCES {
            known().insert(kind.clone(), found.clone());
        }
        Ok(Some(found))
    }

    async fn records(&self) {
        match self.driver {
            HelmDriver::Secret => {
                let api: Api<Secret> = self.api();
                self.listen(
                    "secrets",
                    MetadataOnly(api),
                    watcher::HELM_SECRETS,
                    |tables, told| {
                        let row =
                            |item: &watcher::SecretMetadata| RecordSummaryRow::of(&item.metadata);
                        of(&mut tables.stored, told, row, |row| row.object.clone())
                    },
                )
                .await;
            }
            HelmDriver::ConfigMap => {
                let api: Api<ConfigMap> = self.api();
                self.listen(
                    "configmaps",
                    MetadataOnly(api),
                    watcher::HELM_CONFIG_MAPS,
                    |tables, told| {
                        let row = |item: &kube::core::PartialObjectMeta<ConfigMap>| {
                            RecordSummaryRow::of(&item.metadata)
                        };
                        of(&mut tables.stored, told, row, |row| row.object.clone())
                    },
                )
                .await;
            }
        }
    }

    fn pods(&self, tables: &mut ObjectCache, told: CacheEvent<Pod>) -> bool {
        let now = self.timeline.now();
        let is_first_list = tables.troubles.contains_key("pods");
        let ObjectCache { pods, .. } = tables;
        let told = match told {
            CacheEvent::Is(pod) => match PodSummary::of(&pod) {
                Some(row) => {
                    let row = row.clone().after(pods.get(&row.name), now, is_first_list);
                    return pods.put(row.name.clone(), row);
                }
                None => return false,
            },
            told => told,
        };
        of(pods, told, PodSummary::of, |row| row.name.clone())
    }

    async fn follow<K>(
        &self,
        what: &'static str,
        take: impl Fn(&mut ObjectCache, CacheEvent<K>) -> bool + Send + Sync,
    ) where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + serde::de::DeserializeOwned
            + std::fmt::Debug
            + Send
            + Sync
            + 'static,
    {
        self.listen(
            what,
            WholeObjects(self.api::<K>()),
            ObjectSelector::default(),
            take,
        )
        .await;
    }

    async fn workloads<K>(
        &self,
        what: &'static str,
        kind: WorkloadKind,
        row: fn(&K) -> Option<WorkloadSummary>,
    ) where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + serde::de::DeserializeOwned
            + std::fmt::Debug
            + Send
            + Sync
            + 'static,
    {
        self.follow::<K>(what, move |tables, told| {
            let table = match kind {
                WorkloadKind::Deployment => &mut tables.deployments,
                WorkloadKind::StatefulSet => &mut tables.stateful_sets,
                WorkloadKind::DaemonSet => &mut tables.daemon_sets,
            };
            of(table, told, row, |row| row.name.clone())
        })
        .await;
    }

    async fn listen<S: watcher::WatchSource>(
        &self,
        what: &'static str,
        source: S,
        selector: ObjectSelector,
        take: impl Fn(&mut ObjectCache, CacheEvent<S::Item>) -> bool + Send + Sync,
    ) {
        watcher::follow(source, selector, |told| {
            let mut tables = self.tables();
            let is_news = match told {
                CacheEvent::Well => tables.troubles.remove(what).is_some(),
                CacheEvent::Fails(trouble) => {
                    if trouble.is(403) {
                        self.recheck_rights();
                    }
                    let now = self.now();
                    *self
                        .failed_at
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner) = Some(now);
                    self.failures
                        .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let said = format!("{trouble}{}", hint(&trouble, what, &self.namespace));
                    tables.troubles.insert(what, Some(said.clone())) != Some(Some(said))
                }
                told => take(&mut tables, told),
            };
            drop(tables);
            if is_news {
                self.changed.send_modify(|count| *count += 1);
            }
        })
        .await;
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), self.namespace.as_str())
    }
}

fn hint(trouble: &ApiError, what: &str, namespace: &Namespace) -> String {
    if trouble.is(403) {
        return format!(
            "; grant get, list and watch on {what} in the namespace {namespace}, see `leadsman rbac`"
        );
    }
    String::new()
}

/// Applies a watch event to a table. Returns whether anything changed.
fn of<T, K: std::hash::Hash + Eq, V: PartialEq>(
    table: &mut ObjectTable<K, V>,
    told: CacheEvent<T>,
    row: impl Fn(&T) -> Option<V>,
    key: impl Fn(&V) -> K,
) -> bool {
    match told {
        CacheEvent::Begin => {
            table.begin();
            false
        }
        // While a list is incomplete, what is told of it is not yet the whole truth; the end of it is.
        CacheEvent::End => {
            table.end();
            true
        }
        CacheEvent::Is(item) => row(&item).is_some_and(|row| table.put(key(&row), row)),
        CacheEvent::Gone(item) => row(&item).is_some_and(|row| table.remove(&key(&row))),
        CacheEvent::Well | CacheEvent::Fails(_) => false,
    }
}
