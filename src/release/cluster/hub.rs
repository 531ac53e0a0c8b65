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

use super::Driver;
use super::api::{Trouble, ask};
use super::feed::{self, Metadata, Selector, Told, Whole};
use super::granted::{Asker, GrantedRights};
use super::records::Records;
use super::rights::Rights;
use super::tables::{Kind, PodRow, ReplicaSetRow, StoredRow, Table, WorkloadRow};
use crate::clock::Timeline;
use crate::config::Discovered;
use crate::release::Work;
use crate::units::Namespace;
use crate::units::ReleaseName;
use crate::units::Time;

/// After trouble with the API server a refusal is not believed for so long.
const UNSTEADY: Duration = Duration::from_secs(30);

/// Kinds whose plurals are kept.
const MAX_RESOURCES: usize = 1000;

/// The rows of a namespace.
#[derive(Debug, Default)]
pub(super) struct Tables {
    pub(super) stored: Table<Box<str>, StoredRow>,
    pub(super) pods: Table<Box<str>, PodRow>,
    pub(super) replica_sets: Table<Box<str>, ReplicaSetRow>,
    deployments: Table<Box<str>, WorkloadRow>,
    stateful_sets: Table<Box<str>, WorkloadRow>,
    daemon_sets: Table<Box<str>, WorkloadRow>,
    /// By what is watched: what is wrong, or `None` while it has not been read yet.
    troubles: BTreeMap<&'static str, Option<String>>,
}

impl Tables {
    #[cfg(test)]
    pub(super) fn put_workload(&mut self, row: WorkloadRow) {
        let table = match row.kind {
            Kind::Deployment => &mut self.deployments,
            Kind::StatefulSet => &mut self.stateful_sets,
            Kind::DaemonSet => &mut self.daemon_sets,
        };
        table.put(row.name.clone(), row);
    }

    /// Deployments, StatefulSets and DaemonSets.
    pub(super) fn workloads(&self) -> impl Iterator<Item = &WorkloadRow> {
        let sets = self.stateful_sets.values().chain(self.daemon_sets.values());
        self.deployments.values().chain(sets)
    }

    /// Why what is here may be old; `None` when all is well.
    pub(super) fn trouble(&self) -> Option<String> {
        let said = |(what, trouble): (&&str, &Option<String>)| {
            Some(format!("{what}: {}", trouble.as_ref()?))
        };
        self.troubles.iter().find_map(said)
    }

    /// Whether something has never been read.
    pub(super) fn is_unread(&self) -> bool {
        self.troubles.values().any(Option::is_none)
    }
}

/// The watches of one namespace.
pub struct Hub {
    client: Client,
    /// The client and the name of the account that helm acts as, where that is not our own; or why there is no client.
    acting: Option<Result<(Client, String), String>>,
    namespace: Namespace,
    driver: Driver,
    timeline: Timeline,
    tables: Mutex<Tables>,
    changed: watch::Sender<u64>,
    resources: Mutex<HashMap<GroupVersionKind, (String, bool)>>,
    /// What our account may do, and the one that helm acts as.
    own_rights: GrantedRights,
    rights_of_helm: GrantedRights,
    failed_at: Mutex<Option<Time>>,
    failures: std::sync::atomic::AtomicU64,
}

impl Hub {
    /// Of a namespace. Nothing is watched before [`Hub::run`].
    pub fn new(
        client: Client,
        namespace: Namespace,
        driver: Driver,
        timeline: Timeline,
    ) -> Arc<Self> {
        Self::acting_as(client, None, namespace, driver, timeline)
    }

    /// The same, where helm acts as another account, see [`super::Connector::acting_as`].
    pub fn acting_as(
        client: Client,
        acting: Option<Result<(Client, String), String>>,
        namespace: Namespace,
        driver: Driver,
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
        let tables = Tables {
            troubles: unread.into(),
            ..Tables::default()
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

    /// Watches for ever.
    pub fn run(self: Arc<Self>) -> Work<()> {
        Box::pin(async move {
            tokio::join!(
                self.records(),
                self.follow::<Pod>("pods", |tables, told| self.pods(tables, told)),
                self.follow::<ReplicaSet>("replicasets", |tables, told| {
                    of(&mut tables.replica_sets, told, ReplicaSetRow::of, |row| {
                        row.uid.clone()
                    })
                }),
                self.workloads::<Deployment>(
                    "deployments",
                    Kind::Deployment,
                    WorkloadRow::of_deployment
                ),
                self.workloads::<StatefulSet>(
                    "statefulsets",
                    Kind::StatefulSet,
                    WorkloadRow::of_stateful_set
                ),
                self.workloads::<DaemonSet>(
                    "daemonsets",
                    Kind::DaemonSet,
                    WorkloadRow::of_daemon_set
                ),
            );
        })
    }

    /// The releases of the namespace with the labels of their newest revisions; `None` while they are not known.
    pub fn discovered(&self) -> Option<Vec<Discovered>> {
        let tables = self.tables();
        if tables
            .troubles
            .get(self.driver.plural())
            .is_some_and(Option::is_none)
        {
            return None;
        }
        let mut newest: BTreeMap<&str, &StoredRow> = BTreeMap::new();
        for row in tables.stored.values() {
            let known = newest.entry(&row.release).or_insert(row);
            if row.revision > known.revision {
                *known = row;
            }
        }
        let found = newest.into_values();
        Some(found.map(|row| self.named(row)).collect())
    }

    fn named(&self, row: &StoredRow) -> Discovered {
        Discovered {
            namespace: self.namespace.clone(),
            name: ReleaseName::new(row.release.clone()),
            labels: row.labels.clone(),
        }
    }

    /// The same, asked for now and once.
    ///
    /// # Errors
    /// When the API server does not say.
    pub async fn discover(&self) -> Result<Vec<Discovered>, String> {
        let records = Records::new(self.client.clone(), &self.namespace, self.driver);
        let newest = records.newest().await.map_err(|why| why.to_string())?;
        Ok(newest.iter().map(|row| self.named(row)).collect())
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// As whom helm acts; never as ourselves where it should act as another account.
    pub(super) fn acting(&self) -> Result<&Client, Trouble> {
        match &self.acting {
            None => Ok(&self.client),
            Some(Ok((client, _))) => Ok(client),
            Some(Err(why)) => Err(Trouble::Unreachable(why.clone())),
        }
    }

    /// The account that helm acts as, where that is not our own.
    pub(super) fn impersonated(&self) -> Option<&str> {
        let (_, name) = self.acting.as_ref()?.as_ref().ok()?;
        Some(name)
    }

    /// Those of some rights that our account does not have, by answers as fresh as who asks wants them.
    pub(super) async fn missing(
        &self,
        needed: &Rights,
        asker: Asker,
    ) -> Result<Vec<String>, Trouble> {
        self.own_rights.missing(&self.client, needed, asker).await
    }

    /// The same of the account that helm acts as.
    pub(super) async fn missing_of_helm(
        &self,
        needed: &Rights,
        asker: Asker,
    ) -> Result<Vec<String>, Trouble> {
        let acting = self.acting()?;
        let rights = match &self.acting {
            None => &self.own_rights,
            Some(_) => &self.rights_of_helm,
        };
        rights.missing(acting, needed, asker).await
    }

    /// Something was forbidden: what is known of rights is asked for anew.
    pub(super) fn doubt_rights(&self) {
        self.own_rights.doubt();
        self.rights_of_helm.doubt();
    }

    pub(super) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    pub(super) fn now(&self) -> Time {
        self.timeline.now()
    }

    pub(super) fn driver(&self) -> Driver {
        self.driver
    }

    /// Whether the API server was in trouble a moment ago. One that has just started refuses what it will allow as soon
    /// as it has read its roles.
    pub(super) fn is_unsteady(&self) -> bool {
        self.was_in_trouble(self.now())
    }

    /// Whether the API server was in trouble since a moment, or so shortly before that it was unsteady then.
    pub(super) fn was_in_trouble(&self, since: Time) -> bool {
        let failed = *self
            .failed_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        failed.is_some_and(|at| since.since(at) < UNSTEADY)
    }

    /// Watches that failed since the start.
    pub fn failures(&self) -> u64 {
        self.failures.load(std::sync::atomic::Ordering::Relaxed)
    }

    pub(super) fn tables(&self) -> MutexGuard<'_, Tables> {
        // A row is whole before it is put in, so what a panic left behind can be read.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells when something has changed.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The plural of a kind, and whether it lives in namespaces; `None` when the cluster does not have it.
    pub(super) async fn resource(
        &self,
        kind: &GroupVersionKind,
    ) -> Result<Option<(String, bool)>, Trouble> {
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
            Err(trouble) if trouble.is(404) || matches!(trouble, Trouble::NoSuchKind) => {
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
            Driver::Secret => {
                let api: Api<Secret> = self.api();
                self.listen(
                    "secrets",
                    Metadata(api),
                    feed::HELM_SECRETS,
                    |tables, told| {
                        let row = |item: &feed::SecretMetadata| StoredRow::of(&item.metadata);
                        of(&mut tables.stored, told, row, |row| row.object.clone())
                    },
                )
                .await;
            }
            Driver::ConfigMap => {
                let api: Api<ConfigMap> = self.api();
                self.listen(
                    "configmaps",
                    Metadata(api),
                    feed::HELM_CONFIG_MAPS,
                    |tables, told| {
                        let row = |item: &kube::core::PartialObjectMeta<ConfigMap>| {
                            StoredRow::of(&item.metadata)
                        };
                        of(&mut tables.stored, told, row, |row| row.object.clone())
                    },
                )
                .await;
            }
        }
    }

    fn pods(&self, tables: &mut Tables, told: Told<Pod>) -> bool {
        let now = self.timeline.now();
        let is_first_list = tables.troubles.contains_key("pods");
        let Tables { pods, .. } = tables;
        let told = match told {
            Told::Is(pod) => match PodRow::of(&pod) {
                Some(row) => {
                    let row = row.clone().after(pods.get(&row.name), now, is_first_list);
                    return pods.put(row.name.clone(), row);
                }
                None => return false,
            },
            told => told,
        };
        of(pods, told, PodRow::of, |row| row.name.clone())
    }

    async fn follow<K>(
        &self,
        what: &'static str,
        take: impl Fn(&mut Tables, Told<K>) -> bool + Send + Sync,
    ) where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + serde::de::DeserializeOwned
            + std::fmt::Debug
            + Send
            + Sync
            + 'static,
    {
        self.listen(what, Whole(self.api::<K>()), Selector::default(), take)
            .await;
    }

    async fn workloads<K>(&self, what: &'static str, kind: Kind, row: fn(&K) -> Option<WorkloadRow>)
    where
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
                Kind::Deployment => &mut tables.deployments,
                Kind::StatefulSet => &mut tables.stateful_sets,
                Kind::DaemonSet => &mut tables.daemon_sets,
            };
            of(table, told, row, |row| row.name.clone())
        })
        .await;
    }

    async fn listen<S: feed::Source>(
        &self,
        what: &'static str,
        source: S,
        selector: Selector,
        take: impl Fn(&mut Tables, Told<S::Item>) -> bool + Send + Sync,
    ) {
        feed::follow(source, selector, |told| {
            let mut tables = self.tables();
            let is_news = match told {
                Told::Well => tables.troubles.remove(what).is_some(),
                Told::Fails(trouble) => {
                    if trouble.is(403) {
                        self.doubt_rights();
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

fn hint(trouble: &Trouble, what: &str, namespace: &Namespace) -> String {
    if trouble.is(403) {
        return format!(
            "; grant get, list and watch on {what} in the namespace {namespace}, see `leadsman rbac`"
        );
    }
    String::new()
}

/// Puts what a feed tells into a table; whether it was news.
fn of<T, K: std::hash::Hash + Eq, V: PartialEq>(
    table: &mut Table<K, V>,
    told: Told<T>,
    row: impl Fn(&T) -> Option<V>,
    key: impl Fn(&V) -> K,
) -> bool {
    match told {
        Told::Begin => {
            table.begin();
            false
        }
        // While a list is incomplete, what is told of it is not yet the whole truth; the end of it is.
        Told::End => {
            table.end();
            true
        }
        Told::Is(item) => row(&item).is_some_and(|row| table.put(key(&row), row)),
        Told::Gone(item) => row(&item).is_some_and(|row| table.remove(&key(&row))),
        Told::Well | Told::Fails(_) => false,
    }
}
