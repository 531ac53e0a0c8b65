//! A rollback without a daemon, for the case that the daemon is broken.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{FAILED, NOT_WELL, RollbackArgs, TIME_OUT};
use crate::cli::BAD_CONFIGURATION;
use crate::cli::client::UNKNOWN;
use crate::config::settings::{KubernetesConfig, ReleaseConfig, Settings};
use crate::core::probe_result::Outcome;
use crate::core::revision_ledger::RevisionLedger;
use crate::core::units::Revision;
use crate::platform::clock;
use crate::platform::clock::Timeline;
use crate::platform::files::TemporaryDir;
use crate::platform::permit::Permit;
use crate::prober::{Prober, ProberContext};
use crate::release::cluster::{
    self, ApiAccess, ApiConnector, ClusterEngine, NamespaceCache, RollbackPolicy,
};
use crate::release::{self, Engine, ObservedState, ReleaseState, by_hand};

/// How long the cluster may take to tell what there is.
const FIRST_FACTS: Duration = Duration::from_secs(30);

/// Good answers in a row, of all probes, that end the verification.
const ROUNDS: u32 = 3;

/// How long the probes may take to become well: the runbook's limit.
const VERIFY: Duration = Duration::from_secs(60);

pub(super) async fn run(args: &RollbackArgs, settings: &Settings) -> ExitCode {
    let Some(kubernetes) = &settings.kubernetes else {
        complain!("leadsman: the configuration names no cluster; add [kubernetes]");
        return ExitCode::from(BAD_CONFIGURATION);
    };
    let is_it = |release: &&ReleaseConfig| {
        let wanted = args.server.namespace.as_deref();
        release.name.as_str() == args.release
            && wanted.is_none_or(|wanted| release.namespace.as_str() == wanted)
    };
    let mut found = settings.releases.iter().filter(is_it);
    let (Some(release), None) = (found.next(), found.next()) else {
        complain!(
            "leadsman: the configuration has not exactly one release {}; name its --namespace",
            args.release
        );
        return ExitCode::from(UNKNOWN);
    };
    match roll_back(args, kubernetes, release).await {
        Ok(code) => ExitCode::from(code),
        Err(why) => {
            complain!("leadsman: {why}");
            ExitCode::from(FAILED)
        }
    }
}

async fn roll_back(
    args: &RollbackArgs,
    kubernetes: &KubernetesConfig,
    release: &ReleaseConfig,
) -> Result<u8, String> {
    let Followed {
        engine,
        mut release_state,
        now: release_state_now,
        _running,
        _scratch,
    } = follow(kubernetes, release).await?;
    let bad = release_state_now
        .newest()
        .map(|record| record.revision)
        .unwrap_or_default();
    let target = args.revision.map(Revision);
    let name = format!("{}/{}", release.namespace, release.name);
    let release_state_now = match target {
        Some(_) => release_state_now,
        None => match release::read_back(Arc::clone(&engine), bad, &release_state_now).await {
            Ok(read) => Arc::new(read),
            Err(refusal) => {
                complain!("leadsman: {refusal}");
                return Ok(FAILED);
            }
        },
    };
    if let Err(refused) = by_hand::check(&release_state_now, bad, target, &BTreeMap::new(), &name) {
        complain!("leadsman: {}", refused.why());
        return Ok(match refused {
            by_hand::OrderRefused::Unknown(_) => UNKNOWN,
            by_hand::OrderRefused::Conflict(_) => FAILED,
        });
    }
    let said = |refusal: release::RollbackError| refusal.told(&release.namespace, &release.name);
    let ledger = RevisionLedger::default();
    let plan = release::plan_by_hand(
        Arc::clone(&engine),
        bad,
        target,
        &release_state_now,
        &ledger,
        &args.reason,
    );
    let plan = plan.await.map_err(said)?;
    say!(
        "Rolling back from revision {bad} to the contents of revision {}.",
        plan.target
    );
    Arc::clone(&engine)
        .preflight(plan.clone())
        .await
        .map_err(said)?;
    let report = Arc::clone(&engine).execute(plan).await.map_err(said)?;
    say!(
        "The rollback made revision {}; its rollout runs.",
        report.created_revision
    );
    let complete =
        release_state.wait_for(|seen| seen.release_state.complete == Some(report.created_revision));
    if tokio::time::timeout(args.timeout, complete).await.is_err() {
        complain!(
            "leadsman: the rollout of revision {} is not complete yet",
            report.created_revision
        );
        return Ok(TIME_OUT);
    }
    say!("Its rollout is complete; its probes are asked.");
    Ok(if are_well(release).await { 0 } else { NOT_WELL })
}

/// A release in the cluster, followed as long as this lives.
pub(in crate::cli) struct Followed {
    pub(in crate::cli) engine: Arc<dyn Engine>,
    pub(in crate::cli) release_state: watch::Receiver<ObservedState>,
    /// What was known first.
    pub(in crate::cli) now: Arc<ReleaseState>,
    _running: JoinSet<()>,
    /// What helm writes.
    _scratch: TemporaryDir,
}

/// Follows a release from here, and waits until something is known of it.
pub(in crate::cli) async fn follow(
    kubernetes: &KubernetesConfig,
    release: &ReleaseConfig,
) -> Result<Followed, String> {
    let connector = ApiConnector::new(&ApiAccess::of(kubernetes)).await?;
    let client = connector.client()?;
    // A person's machine need not have the daemon's directory, nor may they write there.
    let scratch = TemporaryDir::new().or_else(|_| TemporaryDir::below(&kubernetes.scratch));
    let scratch = scratch.map_err(|error| format!("cannot make a temporary directory: {error}"))?;
    cluster::prepare_scratch(scratch.path())?;
    let namespace = release.namespace.clone();
    let account = kubernetes.impersonate.as_deref();
    let acting = account.map(|account| connector.acting_as(namespace.as_str(), account));
    let cache = NamespaceCache::acting_as(
        client,
        acting,
        namespace,
        kubernetes.driver,
        Timeline::start(),
    );
    let policy = RollbackPolicy {
        helm: kubernetes.helm.clone(),
        helm_memory: kubernetes.helm_memory,
        scratch: scratch.path().to_owned(),
        cluster: connector.cluster(),
        may: release.controller.may.clone(),
        // A person has decided.
        permit: Permit::always(),
        enforces: false,
        by_person: true,
    };
    let engine: Arc<dyn Engine> =
        ClusterEngine::new(Arc::clone(&cache), release.name.clone(), policy);
    let (observed, mut release_state) = watch::channel(ObservedState::default());
    let mut running = JoinSet::new();
    running.spawn(cache.run());
    running.spawn(Arc::clone(&engine).follow(observed));
    let is_known = {
        let known = release_state.wait_for(|seen| seen.release_state.newest().is_some());
        matches!(tokio::time::timeout(FIRST_FACTS, known).await, Ok(Ok(_)))
    };
    let seen = release_state.borrow().clone();
    if !is_known {
        let why = seen
            .trouble
            .unwrap_or_else(|| "there is no such release".into());
        return Err(format!(
            "nothing is known of {}/{}: {why}",
            release.namespace, release.name
        ));
    }
    Ok(Followed {
        engine,
        release_state,
        now: seen.release_state,
        _running: running,
        _scratch: scratch,
    })
}

/// Whether all probes answer well, several times in a row.
async fn are_well(release: &ReleaseConfig) -> bool {
    let shared = ProberContext::new(clock::now);
    let until = Instant::now() + VERIFY;
    let mut in_a_row = 0;
    loop {
        let mut asked = JoinSet::new();
        for probe in &release.probes {
            let prober = Prober::new(&shared, probe.target.clone(), probe.kind.clone());
            let probe = Arc::clone(probe);
            asked.spawn(async move {
                let result = prober.sound(clock::now(), probe.timeout, None).await;
                (result.outcome != Outcome::Success).then(|| probe.id.probe.to_string())
            });
        }
        let failing: Vec<String> = asked.join_all().await.into_iter().flatten().collect();
        in_a_row = if failing.is_empty() { in_a_row + 1 } else { 0 };
        if in_a_row >= ROUNDS {
            say!("All probes answer well.");
            return true;
        }
        if Instant::now() >= until {
            say!("Still failing: {}.", failing.join(", "));
            return false;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
