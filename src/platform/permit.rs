//! The permit to change something outside: always held by a single replica, otherwise while the Lease is held.
//!
//! Each change goes through [`Permit::bound`]: it does not start without the permit, and is given up when the permit is
//! lost. Longer work ends when [`Permit::lost`] does.

use std::time::Duration;

use tokio::sync::watch;

use crate::core::units::Moment;
use crate::platform::clock;

/// A Lease that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldLease {
    /// Until when, unless it is renewed.
    pub until: Moment,
    /// Higher than that of all who held it before.
    pub fence: u64,
}

/// Why a change was not made, or is not known to have been.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PermitError {
    /// The permit is not held, or has ended meanwhile.
    NotHeld,
    /// It took longer than it may.
    TimedOut,
}

/// Whether we may change anything outside.
#[derive(Debug, Clone, Default)]
pub struct Permit(Option<watch::Receiver<Option<HeldLease>>>);

impl Permit {
    /// A permit that is always held, for a single replica.
    pub const fn always() -> Self {
        Self(None)
    }

    /// There is nothing yet by which we might.
    pub fn never() -> Self {
        Self(Some(watch::channel(None).1))
    }

    /// While it is held.
    pub const fn of(held: watch::Receiver<Option<HeldLease>>) -> Self {
        Self(Some(held))
    }

    /// Whether there may be others.
    pub const fn is_shared(&self) -> bool {
        self.0.is_some()
    }

    /// Whether we may, now.
    pub fn holds(&self) -> bool {
        self.fence().is_some()
    }

    /// The fencing token; 0 for a single replica. `None` while the permit is not held.
    pub fn fence(&self) -> Option<u64> {
        let Some(held) = &self.0 else {
            return Some(0);
        };
        let held = (*held.borrow())?;
        (clock::now() < held.until).then_some(held.fence)
    }

    /// Makes one change, or sends one message. It is begun only while we may, and is dropped when that ends, or after
    /// `limit`. Dropping it must end it: a request closes its connection then, so that its bytes do not arrive later.
    ///
    /// # Errors
    /// When it was dropped, or not begun. It may have arrived all the same.
    pub async fn bound<T>(
        &self,
        limit: Duration,
        change: impl Future<Output = T>,
    ) -> Result<T, PermitError> {
        // A future that was not polled yet has sent nothing: this is the last moment before.
        if !self.holds() {
            return Err(PermitError::NotHeld);
        }
        tokio::select! {
            biased;
            () = self.lost() => Err(PermitError::NotHeld),
            done = tokio::time::timeout(limit, change) => done.map_err(|_| PermitError::TimedOut),
        }
    }

    /// Ends when the permit is lost.
    pub async fn lost(&self) {
        let Some(held) = &self.0 else {
            return std::future::pending().await;
        };
        let mut held = held.clone();
        loop {
            let now = *held.borrow_and_update();
            let Some(left) = now.map(|held| held.until.since(clock::now())) else {
                return;
            };
            if left.is_zero() {
                return;
            }
            tokio::select! {
                changed = held.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(left) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn one_alone_always_may() {
        assert_eq!(Permit::always().fence(), Some(0));
        assert!(!Permit::always().is_shared());
        assert!(Permit::never().is_shared() && !Permit::never().holds());
    }

    #[tokio::test]
    async fn it_ends_with_the_lease_and_lasts_as_long_as_that_is_renewed() {
        let (tell, held) = watch::channel(None);
        let permit = Permit::of(held);
        assert!(permit.is_shared() && !permit.holds());
        permit.lost().await;
        let until = |left: u64| {
            Some(HeldLease {
                until: clock::now() + Duration::from_millis(left),
                fence: 7,
            })
        };
        tell.send_replace(until(60_000));
        assert_eq!(permit.fence(), Some(7));
        let waits = tokio::spawn({
            let permit = permit.clone();
            async move { permit.lost().await }
        });
        tokio::task::yield_now().await;
        tell.send_replace(until(30_000));
        tokio::task::yield_now().await;
        assert!(!waits.is_finished());
        tell.send_replace(until(1));
        waits.await.unwrap();
        assert!(!permit.holds());
        // Whoever gave it away has gone.
        tell.send_replace(until(60_000));
        drop(tell);
        permit.lost().await;
    }

    #[tokio::test]
    async fn nothing_is_sent_without_the_permit_and_nothing_is_waited_for_beyond_it() {
        let (tell, permit) = watch::channel(None);
        let permit = Permit::of(permit);
        let limit = Duration::from_secs(60);
        let sent = AtomicBool::new(false);
        let hangs = || async {
            sent.store(true, Ordering::Relaxed);
            std::future::pending::<()>().await;
        };
        assert_eq!(
            permit.bound(limit, hangs()).await,
            Err(PermitError::NotHeld)
        );
        assert!(!sent.load(Ordering::Relaxed));
        tell.send_replace(Some(HeldLease {
            until: clock::now() + limit,
            fence: 3,
        }));
        let answers = std::future::ready(5);
        assert_eq!(permit.bound(limit, answers).await, Ok(5));
        let at_once = Duration::ZERO;
        assert_eq!(
            permit.bound(at_once, hangs()).await,
            Err(PermitError::TimedOut)
        );
        sent.store(false, Ordering::Relaxed);
        let both = async {
            while !sent.load(Ordering::Relaxed) {
                tokio::task::yield_now().await;
            }
            tell.send_replace(None);
        };
        let (ended, ()) = tokio::join!(permit.bound(limit, hangs()), both);
        assert_eq!(ended, Err(PermitError::NotHeld));
    }
}
