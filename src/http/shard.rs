//! Lists from several alert evaluators, one for each shard, joined into one list for readers.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use serde::{Serialize, Serializer};

/// The part of the releases that one alert evaluator covers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shard {
    /// All releases: there is only one evaluator.
    All,
    /// Nothing but this replica itself.
    Ourselves,
    /// One release, by its namespace and name.
    Release(String, String),
}

/// The list of each shard.
pub(super) struct ShardLists<T>(RwLock<BTreeMap<Shard, Arc<Vec<T>>>>);

impl<T> ShardLists<T> {
    /// Nothing is shown.
    pub(super) const fn new() -> Self {
        Self(RwLock::new(BTreeMap::new()))
    }

    /// Replaces the list of a shard.
    pub(super) fn show(&self, of: &Shard, list: Vec<T>) {
        let list = Arc::new(list);
        let mut shown = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let before = shown.insert(of.clone(), list);
        // It may be long, and readers need not wait until it is freed.
        drop(shown);
        drop(before);
    }

    /// Removes the list of a shard.
    pub(super) fn drop_shard(&self, of: &Shard) {
        let mut shown = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let before = shown.remove(of);
        drop(shown);
        drop(before);
    }

    /// What is shown of all shares; the lists themselves are not copied.
    pub(super) fn sharded_view(&self) -> ShardedView<T> {
        let shown = self.0.read().unwrap_or_else(PoisonError::into_inner);
        ShardedView(shown.values().cloned().collect())
    }
}

/// The lists of all shares, one after the other: as one list, also in JSON.
pub(super) struct ShardedView<T>(Vec<Arc<Vec<T>>>);

impl<T> ShardedView<T> {
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().flat_map(|list| list.iter())
    }
}

impl<T: Serialize> Serialize for ShardedView<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(name: &str) -> Shard {
        Shard::Release("shop".into(), name.into())
    }

    #[test]
    fn readers_see_the_lists_of_all_shares_as_one() {
        let shards = ShardLists::new();
        let seen = || serde_json::to_string(&shards.sharded_view()).unwrap();
        assert_eq!(seen(), "[]");
        shards.show(&release("web"), vec![4]);
        shards.show(&Shard::Ourselves, vec![1]);
        shards.show(&release("api"), vec![2, 3]);
        assert_eq!(seen(), "[1,2,3,4]");
        shards.show(&release("api"), vec![5]);
        assert_eq!(seen(), "[1,5,4]", "only the newest of a share counts");
        shards.drop_shard(&release("web"));
        assert_eq!(seen(), "[1,5]");
        // A reader keeps what it has seen.
        let before = shards.sharded_view();
        shards.drop_shard(&Shard::Ourselves);
        shards.drop_shard(&release("unknown"));
        assert_eq!(before.iter().copied().collect::<Vec<i32>>(), [1, 5]);
        assert_eq!(seen(), "[5]");
    }
}
