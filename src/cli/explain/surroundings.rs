//! Prints the evidence: the state of the cluster at the verdict.

use crate::core::evidence::EvidenceBundle;

/// Lines of one log that are shown; `--json` has all of them.
const LINES: usize = 10;

pub(super) fn show(evidence: &EvidenceBundle) {
    say!("The cluster when the verdict fell (secrets are hidden)");
    section("Differs in images", &evidence.images);
    section("Differs in values", &evidence.values);
    section("Rollouts", &evidence.workloads);
    let pods: Vec<String> = evidence
        .pods
        .iter()
        .map(|pod| {
            format!(
                "{} (revision {}, {}): {}",
                pod.name, pod.revision, pod.node, pod.state
            )
        })
        .collect();
    section("Pods", &pods);
    let events: Vec<String> = evidence
        .events
        .iter()
        .map(|event| {
            format!(
                "{} {} {} ({}x): {}",
                event.at, event.object, event.reason, event.count, event.message
            )
        })
        .collect();
    section("Events", &events);
    for log in &evidence.logs {
        let run = if log.previous {
            "the run before"
        } else {
            "this run"
        };
        say!("  Log of {}/{}, {run}", log.pod, log.container);
        let skipped = log.lines.len().saturating_sub(LINES);
        if skipped > 0 {
            say!("    ({skipped} lines before)");
        }
        for line in &log.lines[skipped..] {
            say!("    {line}");
        }
    }
    section("Could not be had", &evidence.missing);
    say!("");
}

fn section(title: &str, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    say!("  {title}");
    for line in lines {
        say!("    {line}");
    }
}
