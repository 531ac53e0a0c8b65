//! `leadsman check --online`: tries each probe once, and tests each receiver without sending a message. So a wrong
//! address or secret shows before the daemon starts, and so does a probe that names what the cluster does not have.

mod pods;
mod receivers;

use std::sync::Arc;

use tokio::task::JoinSet;

use super::rollback::direct::{self, Followed};
use super::runtime;
use crate::config::settings::{ReleaseConfig, Settings};
use crate::core::probe_result::Outcome;
use crate::core::revision_ledger::RevisionLedger;
use crate::platform::clock;
use crate::prober::{Prober, ProberContext};
use crate::release::{RollbackError, RollbackPlan, plan_by_hand};

/// Probes tried at a time: enough for a large configuration to take seconds, few enough to start no storm.
const AT_A_TIME: usize = 64;

/// Takes one result of each probe and prints what came of it. Gives whether all were good.
pub(super) fn check(settings: &Settings) -> bool {
    let Some(runtime) = runtime(1) else {
        return false;
    };
    let lines = runtime.block_on(async {
        let shared = ProberContext::new(clock::now);
        let mut running = JoinSet::new();
        let mut lines = Vec::new();
        let others = settings
            .dependencies
            .iter()
            .chain(&settings.self_check.control);
        let all = settings.probes().chain(others);
        for (number, probe) in all.cloned().enumerate() {
            if running.len() >= AT_A_TIME {
                lines.extend(running.join_next().await.and_then(Result::ok));
            }
            let shared = Arc::clone(&shared);
            running.spawn(async move {
                let prober = Prober::new(&shared, probe.target.clone(), probe.kind.clone());
                let result = prober.sound(clock::now(), probe.timeout, None).await;
                let good = result.outcome == Outcome::Success;
                let took = format!("{:.1} ms", result.duration().as_secs_f64() * 1e3);
                let (outcome, reason) = result.outcome.words();
                let outcome = reason.map_or_else(
                    || outcome.to_owned(),
                    |reason| format!("{outcome} ({reason})"),
                );
                let why = result
                    .explanation
                    .map_or_else(String::new, |why| format!(": {why}"));
                (
                    number,
                    good,
                    format!(
                        "{:<8} {} {} in {took}{why}",
                        outcome,
                        probe.id,
                        probe.target.shown()
                    ),
                )
            });
        }
        while let Some(line) = running.join_next().await {
            lines.extend(line.ok());
        }
        lines.sort_by_key(|(number, _, _)| *number);
        lines
    });
    for (_, _, line) in &lines {
        say!("{line}");
    }
    let told = runtime.block_on(receivers::check(settings));
    for (_, line) in &told {
        say!("{line}");
    }
    let told = told.iter().all(|(is_well, _)| *is_well);
    let could = runtime.block_on(rollbacks(settings));
    runtime.shutdown_background();
    told && could && lines.iter().all(|(_, good, _)| *good)
}

/// Looks whether each release in the cluster could be rolled back, and prints what would be in the way.
async fn rollbacks(settings: &Settings) -> bool {
    let mut all = true;
    let Some(kubernetes) = &settings.kubernetes else {
        return all;
    };
    for release in settings
        .releases
        .iter()
        .filter(|release| release.in_cluster)
    {
        let name = format!("{}/{}", release.namespace, release.name);
        let followed = match direct::follow(kubernetes, release).await {
            Ok(followed) => followed,
            Err(why) => {
                all = false;
                say!("bad      {name} could not be rolled back: {why}");
                continue;
            }
        };
        for missing in pods::missing(release, &followed.now) {
            all = false;
            say!("bad      {name}/{missing}");
        }
        match rehearse(&followed, release).await {
            Ok(()) => say!("good     {name} could be rolled back"),
            Err(why) => {
                all = false;
                say!("bad      {name} could not be rolled back: {why}");
            }
        }
    }
    all
}

async fn rehearse(followed: &Followed, release: &ReleaseConfig) -> Result<(), String> {
    let newest = followed.now.newest().map(|record| record.revision);
    let newest = newest.unwrap_or_default();
    let ledger = RevisionLedger::default();
    let engine = Arc::clone(&followed.engine);
    let plan = plan_by_hand(engine, newest, Some(newest), &followed.now, &ledger, "").await;
    let told = |refusal: RollbackError| refusal.told(&release.namespace, &release.name);
    let plan = plan.map_err(told)?;
    let plan = RollbackPlan {
        is_dry_run: true,
        ..plan
    };
    let looked = Arc::clone(&followed.engine).preflight(plan).await;
    looked.map_err(told)
}
