//! What helm may have of the machine's memory, and how it is seen that it was too little.
//!
//! Helm takes as much as its records and the cluster's objects ask for, and both come from whoever deploys. What it takes
//! too much would end the whole pod. So the kernel gives a helm no more data than it may have (`RLIMIT_DATA`; a limit of
//! the addresses would be no good, as Go reserves far more of them than it uses), and Go is told to tidy up before that
//! (`GOMEMLIMIT`). A helm that needs more ends by itself, with an error that is known here.

use rustix::process::{Pid, Resource, Rlimit, prlimit};

/// Of the memory that helm may have, Go uses so much before it tidies up whatever that costs: the rest is for what does
/// not count for it.
const fn tidy(memory: u64) -> u64 {
    memory / 4 * 3
}

/// The variable by which Go is told.
pub(super) fn variable(memory: u64) -> (&'static str, String) {
    ("GOMEMLIMIT", tidy(memory).to_string())
}

/// Limits a helm that has just been started; what it starts itself has the same limit.
pub(super) fn limit(helm: Pid, memory: u64) {
    let most = Rlimit {
        current: Some(memory),
        maximum: Some(memory),
    };
    if let Err(error) = prlimit(Some(helm), Resource::Data, most) {
        // It goes on by Go's own limit: without helm there is no rollback at all.
        tracing::warn!(%error, "The memory of helm cannot be limited");
    }
}

/// Processes that the kernel has ended so far as the pod was out of memory; 0 where nobody counts them.
pub(super) fn killed_for_memory() -> u64 {
    std::fs::read_to_string("/sys/fs/cgroup/memory.events").map_or(0, |text| kills(&text))
}

fn kills(events: &str) -> u64 {
    let count = events
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill "));
    count
        .and_then(|count| count.trim().parse().ok())
        .unwrap_or(0)
}

/// What is said of a helm that needed more.
pub(super) fn needed_more(memory: u64) -> String {
    format!(
        "the helm command ended as it needed more memory than the {memory} bytes that it may have; raise kubernetes.helm_memory, and the memory of Leadsman's pod with it, or remove old or large revisions of the release"
    )
}

/// What is said of a helm that the kernel ended as the pod was out of memory.
pub(super) fn killed(memory: u64) -> String {
    format!(
        "the helm command was killed as the pod was out of memory; raise the memory of Leadsman's pod above what helm may have (kubernetes.helm_memory = {memory}) and Leadsman takes itself"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_count_of_processes_that_it_ended_is_read() {
        let events = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n";
        assert_eq!(kills(events), 2);
        assert_eq!(kills("oom 3\n"), 0);
        assert_eq!(kills(""), 0);
    }
}
