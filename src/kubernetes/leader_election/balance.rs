//! Spreads several Leases evenly over the replicas.
//!
//! No replica takes a Lease from a living holder. A replica with fewer than its share writes its name on a Lease of the
//! replica with the most, which gives it back when nothing is running there. Ten Leases and a new replica are balanced
//! within seconds; replicas that are as even as possible change nothing.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::core::units::Moment;

/// An unanswered request is forgotten after this time: the release may have been busy.
const WISH: Duration = Duration::from_secs(10);

/// Of several replicas that see a free Lease, the one with fewer takes it: a replica waits this long for each Lease
/// that it holds, at most [`LONGEST_WAIT`].
const FOR_EACH: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// What this replica knows of the Leases.
#[derive(Debug)]
pub struct LeaseBalance {
    identity: String,
    seen: Mutex<LeaseHolder>,
}

#[derive(Debug, Default)]
struct LeaseHolder {
    /// Holder by the Lease's name.
    holders: HashMap<String, String>,
    /// Our requests, and when each was made.
    wishes: HashMap<String, Moment>,
}

impl LeaseBalance {
    /// Without any knowledge.
    pub fn new(identity: &str) -> Self {
        Self {
            identity: identity.to_owned(),
            seen: Mutex::default(),
        }
    }

    /// Notes the holder of a Lease; empty for none.
    pub fn note(&self, lease: &str, holder: &str) {
        let mut seen = self.seen();
        if holder == self.identity {
            seen.wishes.remove(lease);
        }
        if seen.holders.get(lease).is_none_or(|known| known != holder) {
            seen.holders.insert(lease.to_owned(), holder.to_owned());
        }
    }

    /// Forgets a Lease.
    pub fn forget(&self, lease: &str) {
        let mut seen = self.seen();
        seen.holders.remove(lease);
        seen.wishes.remove(lease);
    }

    /// How long to leave a free Lease to replicas that have fewer.
    pub fn wait(&self) -> Duration {
        let own = self.seen().count(&self.identity);
        let own = u32::try_from(own).unwrap_or(u32::MAX);
        FOR_EACH.saturating_mul(own).min(LONGEST_WAIT)
    }

    /// Whether to request a Lease from its holder now; each is requested once in a while.
    pub fn wishes_for(&self, lease: &str, now: Moment) -> bool {
        let mut seen = self.seen();
        seen.wishes.retain(|_, asked| now.since(*asked) < WISH);
        if seen.wishes.contains_key(lease) {
            return false;
        }
        let Some(holder) = seen.holders.get(lease).cloned() else {
            return false;
        };
        if holder.is_empty() || holder == self.identity {
            return false;
        }
        let coming = seen.wishes.len();
        let leaving = seen.wishes.keys();
        let leaving = leaving
            .filter(|name| seen.holders.get(*name) == Some(&holder))
            .count();
        let own = seen.count(&self.identity) + coming;
        let theirs = seen.count(&holder).saturating_sub(leaving);
        if theirs < own + 2 {
            return false;
        }
        seen.wishes.insert(lease.to_owned(), now);
        true
    }

    /// Whether another replica should get one of ours, after it was given this many already.
    pub fn is_fair(&self, to: &str, given: usize) -> bool {
        let seen = self.seen();
        let own = seen.count(&self.identity).saturating_sub(given);
        own >= seen.count(to) + given + 2
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, LeaseHolder> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LeaseHolder {
    fn count(&self, identity: &str) -> usize {
        let holders = self.holders.values();
        holders.filter(|holder| *holder == identity).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        crate::platform::clock::now() + Duration::from_millis(millis)
    }

    fn seen(holders: &[(&str, &str)]) -> LeaseBalance {
        let balance = LeaseBalance::new("one");
        for (lease, holder) in holders {
            balance.note(lease, holder);
        }
        balance
    }

    #[test]
    fn who_has_none_asks_for_half() {
        let names = ["a", "b", "c", "d"];
        let balance = seen(&names.map(|name| (name, "two")));
        let now = at(0);
        let asked = names.map(|name| balance.wishes_for(name, now));
        assert_eq!(asked, [true, true, false, false]);
        // Once in a while, and again when nothing came of it.
        assert!(!balance.wishes_for("a", now));
        assert!(balance.wishes_for("d", now + WISH));
        // What came is not asked for, and what is even is left alone.
        let balance = seen(&[("a", "one"), ("b", "one"), ("c", "two"), ("d", "two")]);
        assert!(!names.iter().any(|name| balance.wishes_for(name, now)));
        // Of an odd number somebody has one more.
        let balance = seen(&[("a", "one"), ("b", "two"), ("c", "two")]);
        assert!(!names.iter().any(|name| balance.wishes_for(name, now)));
    }

    #[test]
    fn nobody_is_asked_for_what_is_free_or_unknown() {
        let balance = seen(&[("a", ""), ("b", "")]);
        assert!(!balance.wishes_for("a", at(0)) && !balance.wishes_for("z", at(0)));
    }

    #[test]
    fn no_more_is_given_than_makes_it_even() {
        let balance = seen(&[("a", "one"), ("b", "one"), ("c", "one"), ("d", "one")]);
        assert!(balance.is_fair("two", 0) && balance.is_fair("two", 1));
        assert!(!balance.is_fair("two", 2));
        balance.note("d", "two");
        assert!(balance.is_fair("two", 0));
        assert!(!balance.is_fair("two", 1));
        balance.forget("a");
        assert!(!balance.is_fair("two", 0));
    }

    #[test]
    fn who_has_fewer_is_faster() {
        assert_eq!(seen(&[("a", "two")]).wait(), Duration::ZERO);
        let own = seen(&[("a", "one"), ("b", "one")]);
        assert_eq!(own.wait(), FOR_EACH * 2);
        let names: Vec<String> = (0..50).map(|number| number.to_string()).collect();
        let all: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "one")).collect();
        assert_eq!(seen(&all).wait(), LONGEST_WAIT);
    }
}
