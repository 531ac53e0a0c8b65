//! Limits helm's memory, and detects that it was too little.
//!
//! Helm needs memory in proportion to its records and the cluster's objects, and both come from the people who deploy.
//! Too much of it would get the whole pod killed. So the kernel limits helm's data (`RLIMIT_DATA`; a limit of addresses
//! would not work, because Go reserves far more than it uses), and Go collects garbage before that (`GOMEMLIMIT`). A
//! helm that needs more ends by itself with an error that is recognized here.

use rustix::process::{Pid, Resource, Rlimit, prlimit};

/// The part of helm's memory after which Go collects garbage at any cost; the rest is for memory that Go does not
/// count.
const fn tidy(memory: u64) -> u64 {
    memory / 4 * 3
}

/// The environment variable for Go.
pub(super) fn variable(memory: u64) -> (&'static str, String) {
    ("GOMEMLIMIT", tidy(memory).to_string())
}

/// Limits a helm that has just been started; its children inherit the limit.
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

/// Processes of this pod that the kernel has killed for lack of memory; 0 if it does not count them.
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

/// The error text for a helm that needed more.
pub(super) fn needed_more(memory: u64) -> String {
    format!(
        "the helm command ended as it needed more memory than the {memory} bytes that it may have; raise kubernetes.helm_memory, and the memory of Leadsman's pod with it, or remove old or large revisions of the release"
    )
}

/// The error text for a helm that the kernel killed for lack of memory.
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
