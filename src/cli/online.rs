//! `leadsman check --online`: tries each probe once, so that a wrong address or secret shows before the daemon starts.

use tokio::task::JoinSet;

use super::runtime;
use crate::clock;
use crate::config::settings::Settings;
use crate::probe::{Prober, Shared};
use crate::sounding::Outcome;

/// Probes tried at a time: enough for a large configuration to take seconds, few enough to start no storm.
const AT_A_TIME: usize = 64;

/// Takes one sounding of each probe and prints what came of it. Gives whether all were good.
pub(super) fn check(settings: &Settings) -> bool {
    let Some(runtime) = runtime(1) else {
        return false;
    };
    let lines = runtime.block_on(async {
        let shared = Shared::new(clock::now);
        let mut running = JoinSet::new();
        let mut lines = Vec::new();
        let all = settings.probes().chain(settings.doubt.control.iter());
        for (number, probe) in all.cloned().enumerate() {
            if running.len() >= AT_A_TIME {
                lines.extend(running.join_next().await.and_then(Result::ok));
            }
            let shared = std::sync::Arc::clone(&shared);
            running.spawn(async move {
                let prober = Prober::new(&shared, probe.target.clone(), probe.question.clone());
                let sounding = prober.sound(clock::now(), probe.timeout, None).await;
                let good = sounding.outcome == Outcome::Good;
                let took = format!("{:.1} ms", sounding.duration().as_secs_f64() * 1e3);
                let (result, reason) = sounding.outcome.words();
                let result = reason.map_or_else(
                    || result.to_owned(),
                    |reason| format!("{result} ({reason})"),
                );
                let why = sounding
                    .explanation
                    .map_or_else(String::new, |why| format!(": {why}"));
                (
                    number,
                    good,
                    format!(
                        "{:<8} {} {} in {took}{why}",
                        result,
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
    runtime.shutdown_background();
    for (_, _, line) in &lines {
        say!("{line}");
    }
    lines.iter().all(|(_, good, _)| *good)
}
