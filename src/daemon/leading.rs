//! Whether this replica acts: alone always, of several while it holds the Lease.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::settings::Lease;
use crate::lease::{Candidate, Meter, Standing};
use crate::metrics::Metrics;
use crate::permit::Permit;
use crate::serve::{Forward, Lead};

/// How long giving the Lease back may take.
const GIVE_BACK: Duration = Duration::from_secs(2);

/// Who acts, for the daemon.
pub(super) struct Leading {
    permit: Permit,
    standing: watch::Receiver<Standing>,
    candidate: Option<(CancellationToken, JoinHandle<()>)>,
}

struct Counted(Arc<Metrics>);

impl Meter for Counted {
    fn leads(&self, is_leading: bool) {
        self.0.leads(is_leading);
    }

    fn failed(&self) {
        self.0.lease_failed();
    }
}

impl Leading {
    /// There is nobody else.
    pub(super) fn alone() -> Self {
        // Whoever gives it away may go: what was said last stays.
        let (_, standing) = watch::channel(Standing::Leads { fence: 0 });
        Self {
            permit: Permit::always(),
            standing,
            candidate: None,
        }
    }

    /// Wants the Lease from now on.
    pub(super) fn by(
        client: kube::Client,
        lease: &Lease,
        metrics: Arc<Metrics>,
        ended: CancellationToken,
    ) -> Self {
        let own = client.default_namespace().to_owned();
        let namespace = lease.namespace.clone().unwrap_or(own);
        metrics.leads(false);
        let candidate = Candidate::new(
            client,
            &namespace,
            &lease.name,
            identity(lease),
            lease.address.as_ref().map(ToString::to_string),
            lease.times,
            Arc::new(Counted(metrics)),
        );
        let (permit, standing) = (candidate.permit(), candidate.standing());
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let ended = ended.drop_guard();
        let task = tokio::spawn(async move {
            candidate.run(stopped).await;
            ended.disarm();
        });
        Self {
            permit,
            standing,
            candidate: Some((stop, task)),
        }
    }

    pub(super) fn permit(&self) -> Permit {
        self.permit.clone()
    }

    pub(super) fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// What holds before the Lease was looked at.
    pub(super) fn begins(&self) -> Standing {
        match self.candidate {
            None => Standing::Leads { fence: 0 },
            Some(_) => Standing::Follows { leader: None },
        }
    }

    /// Lets another replica act at once.
    pub(super) async fn give_back(&mut self) {
        if let Some((stop, task)) = self.candidate.take() {
            stop.cancel();
            // Otherwise it expires by itself.
            let _ = tokio::time::timeout(GIVE_BACK, task).await;
        }
    }
}

/// Tells this process from all others: a pod that starts again has the same name.
fn identity(lease: &Lease) -> String {
    let named = lease.identity.clone();
    let host = named.or_else(|| std::env::var("HOSTNAME").ok());
    let host = host.filter(|name| !name.is_empty());
    let host = host.unwrap_or_else(|| "leadsman".into());
    format!("{host}_{:08x}", fastrand::u32(..))
}

/// Who answers for the releases, for the listener.
pub(super) fn lead(standing: &Standing, lease: Option<&Lease>) -> Lead {
    match standing {
        Standing::Leads { .. } => Lead::Here,
        Standing::Follows { leader: None } => Lead::Nobody,
        Standing::Follows {
            leader: Some(leader),
        } => {
            let address = leader.address.as_deref();
            let forward = match (address, lease) {
                (Some(address), Some(lease)) => Forward::to(address, &lease.tls),
                _ => Err("it does not say where it answers; set lease.address".into()),
            };
            Lead::Elsewhere {
                identity: leader.identity.clone(),
                forward: forward.map(Arc::new),
            }
        }
    }
}
