//! One watch that never ends: the complete list first, then the changes.
//!
//! It always knows whether the API server answers, unlike a stream that is silent when it is dead: each watch is short,
//! and one that cannot start, or does not end in time, is reported as trouble. Bookmarks keep the position, so a new
//! watch costs only a request. The complete list is read again if the position cannot be continued: it is too old
//! (410); it is too new, after etcd was restored from a backup; or several watches made no progress, for example
//! because of an unreadable event.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::PartialObjectMeta;
use serde::de::DeserializeOwned;

use super::api::{ApiError, PATIENCE, ask};

/// Duration of one watch. A hanging API server may go unnoticed for this long.
const WATCH: Duration = Duration::from_secs(20);

/// Objects per page of a list.
const PAGE: u32 = 200;

/// Objects of one kind in one namespace that are read; further ones are left out.
const MAX_OBJECTS: usize = 20_000;

/// Waits between failures: doubled each time, from the first to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// Consecutive watches without progress before the list is read again.
const MAX_IN_VAIN: u32 = 3;

/// An event of a watch.
#[derive(Debug)]
pub(super) enum CacheEvent<T> {
    /// A complete list begins: objects that do not follow before its end are gone.
    Begin,
    /// The object exists, or has changed.
    Is(T),
    /// The object is gone.
    Gone(T),
    /// The list is complete.
    End,
    /// The API server answers again.
    Well,
    /// The API server does not answer, or refuses.
    Fails(ApiError),
}

type WatchEvents<T> = Pin<Box<dyn Stream<Item = kube::Result<WatchEvent<T>>> + Send>>;

/// Objects that can be listed and watched.
pub(super) trait WatchSource: Send + Sync {
    /// The form in which objects arrive.
    type Item: Send;
    fn list(
        &self,
        params: &ListParams,
    ) -> impl Future<Output = kube::Result<ListPage<Self::Item>>> + Send;
    fn watch(
        &self,
        params: &WatchParams,
        from: &str,
    ) -> impl Future<Output = kube::Result<WatchEvents<Self::Item>>> + Send;
    fn meta(item: &Self::Item) -> &ObjectMeta;
}

/// One page of a list.
pub(super) struct ListPage<T> {
    items: Vec<T>,
    version: String,
    next: Option<String>,
}

/// Whole objects.
pub(super) struct WholeObjects<K>(pub(super) Api<K>);

/// Only their metadata: for objects that are large or hold secrets.
pub(super) struct MetadataOnly<K>(pub(super) Api<K>);

impl<K> WatchSource for WholeObjects<K>
where
    K: kube::Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
{
    type Item = K;

    async fn list(&self, params: &ListParams) -> kube::Result<ListPage<K>> {
        let list = self.0.list(params).await?;
        Ok(ListPage {
            version: list.metadata.resource_version.unwrap_or_default(),
            next: list.metadata.continue_.filter(|token| !token.is_empty()),
            items: list.items,
        })
    }

    async fn watch(&self, params: &WatchParams, from: &str) -> kube::Result<WatchEvents<K>> {
        Ok(self.0.watch(params, from).await?.boxed())
    }

    fn meta(item: &K) -> &ObjectMeta {
        item.meta()
    }
}

impl<K> WatchSource for MetadataOnly<K>
where
    K: kube::Resource<DynamicType = ()>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug
        + Send
        + Sync
        + 'static,
{
    type Item = PartialObjectMeta<K>;

    async fn list(&self, params: &ListParams) -> kube::Result<ListPage<Self::Item>> {
        let list = self.0.list_metadata(params).await?;
        Ok(ListPage {
            version: list.metadata.resource_version.unwrap_or_default(),
            next: list.metadata.continue_.filter(|token| !token.is_empty()),
            items: list.items,
        })
    }

    async fn watch(
        &self,
        params: &WatchParams,
        from: &str,
    ) -> kube::Result<WatchEvents<Self::Item>> {
        Ok(self.0.watch_metadata(params, from).await?.boxed())
    }

    fn meta(item: &Self::Item) -> &ObjectMeta {
        &item.metadata
    }
}

/// Selects objects by labels and fields.
#[derive(Debug, Clone, Default)]
pub(super) struct ObjectSelector {
    pub(super) labels: Option<&'static str>,
    pub(super) fields: Option<&'static str>,
}

/// The revisions of Helm releases that are stored in Secrets.
pub(super) const HELM_SECRETS: ObjectSelector = ObjectSelector {
    labels: Some("owner=helm"),
    fields: Some("type=helm.sh/release.v1"),
};

/// The revisions in ConfigMaps, which have no type.
pub(super) const HELM_CONFIG_MAPS: ObjectSelector = ObjectSelector {
    labels: Some("owner=helm"),
    fields: None,
};

/// Watches forever.
pub(super) async fn follow<S: WatchSource>(
    source: S,
    selector: ObjectSelector,
    mut tell: impl FnMut(CacheEvent<S::Item>) + Send,
) {
    let mut pause = BACKOFF.0;
    loop {
        let mut place = match list(&source, &selector, &mut tell).await {
            Ok(place) => place,
            Err(trouble) => {
                rest(&mut pause, &trouble).await;
                tell(CacheEvent::Fails(trouble));
                continue;
            }
        };
        tell(CacheEvent::Well);
        let mut in_vain = 0;
        loop {
            let before = place.clone();
            let watched = watch(&source, &selector, &mut place, &mut pause, &mut tell).await;
            let Err(trouble) = watched else {
                in_vain = 0;
                continue;
            };
            in_vain = match &trouble {
                _ if place != before => 0,
                // One that cannot be reached, or has too much to do, says nothing of the place.
                ApiError::Unreachable(_) => in_vain,
                trouble if trouble.is(429) => in_vain,
                _ => in_vain + 1,
            };
            let is_lost = is_of_another_time(&trouble) || in_vain >= MAX_IN_VAIN;
            tell(CacheEvent::Fails(trouble.clone()));
            rest(&mut pause, &trouble).await;
            if is_lost {
                break;
            }
        }
    }
}

/// Whether the API server does not know the position: no longer, or not yet.
fn is_of_another_time(trouble: &ApiError) -> bool {
    trouble.is(410)
        || matches!(trouble, ApiError::Answer { message, .. } if message.contains("Too large resource version"))
}

async fn rest(pause: &mut Duration, trouble: &ApiError) {
    let asked = match trouble {
        ApiError::Answer { retry_after, .. } => Duration::from_secs(u64::from(*retry_after)),
        ApiError::Unreachable(_)
        | ApiError::Unreadable(_)
        | ApiError::NoSuchKind
        | ApiError::Busy
        | ApiError::NotOurs => Duration::ZERO,
    };
    // Many watches that fail together must not come back together.
    let jitter = 1.0 + fastrand::f64() / 2.0;
    let longest = Duration::from_secs(30);
    tokio::time::sleep(pause.mul_f64(jitter).max(asked).min(longest)).await;
    *pause = (*pause * 2).min(BACKOFF.1);
}

async fn list<S: WatchSource>(
    source: &S,
    selector: &ObjectSelector,
    tell: &mut (impl FnMut(CacheEvent<S::Item>) + Send),
) -> Result<String, ApiError> {
    let mut params = ListParams {
        label_selector: selector.labels.map(str::to_owned),
        field_selector: selector.fields.map(str::to_owned),
        limit: Some(PAGE),
        ..ListParams::default()
    };
    let mut told = 0;
    let mut is_first = true;
    loop {
        let page = ask(source.list(&params)).await?;
        // Only now: a list that fails at once leaves what is known.
        if std::mem::take(&mut is_first) {
            tell(CacheEvent::Begin);
        }
        told += page.items.len();
        for item in page.items {
            tell(CacheEvent::Is(item));
        }
        match page.next {
            Some(next) if told < MAX_OBJECTS => params.continue_token = Some(next),
            next => {
                if next.is_some() {
                    tracing::warn!(
                        "There are more than {MAX_OBJECTS} objects of one kind in a namespace; those behind them are left out until they change"
                    );
                }
                tell(CacheEvent::End);
                return Ok(page.version);
            }
        }
    }
}

async fn watch<S: WatchSource>(
    source: &S,
    selector: &ObjectSelector,
    place: &mut String,
    pause: &mut Duration,
    tell: &mut (impl FnMut(CacheEvent<S::Item>) + Send),
) -> Result<(), ApiError> {
    let params = WatchParams {
        label_selector: selector.labels.map(str::to_owned),
        field_selector: selector.fields.map(str::to_owned),
        timeout: u32::try_from(WATCH.as_secs()).ok(),
        bookmarks: true,
        send_initial_events: false,
    };
    let began = tokio::time::Instant::now();
    let mut events = ask(source.watch(&params, place)).await?;
    tell(CacheEvent::Well);
    let limit = WATCH + PATIENCE;
    loop {
        let left = limit.saturating_sub(began.elapsed());
        let event = tokio::time::timeout(left, events.next())
            .await
            .map_err(|_| ApiError::Unreachable("a watch did not end when it should".into()))?;
        let Some(event) = event else {
            // A server that ends watches at once must not be asked in a circle.
            if began.elapsed() < BACKOFF.1 {
                // What changes meanwhile is not heard.
                let early = ApiError::Unreachable("a watch ended at once".into());
                tell(CacheEvent::Fails(early.clone()));
                rest(pause, &early).await;
            } else {
                *pause = BACKOFF.0;
            }
            return Ok(());
        };
        let (item, is_gone) = match event.map_err(ApiError::from)? {
            WatchEvent::Added(item) | WatchEvent::Modified(item) => (item, false),
            WatchEvent::Deleted(item) => (item, true),
            WatchEvent::Bookmark(mark) => {
                *place = mark.metadata.resource_version;
                continue;
            }
            WatchEvent::Error(status) => return Err(kube::Error::Api(status).into()),
        };
        if let Some(version) = &S::meta(&item).resource_version {
            place.clone_from(version);
        }
        tell(if is_gone {
            CacheEvent::Gone(item)
        } else {
            CacheEvent::Is(item)
        });
    }
}

/// The metadata of release Secrets.
pub(super) type SecretMetadata = PartialObjectMeta<Secret>;

#[cfg(test)]
mod tests;
