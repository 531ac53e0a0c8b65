//! Probes pods directly: which pod is next, and its results.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::config::Target;
use crate::config::settings::{ProbeConfig, ProbeKind};
use crate::core::analysis::{MAX_ASKED, TickOutcome};
use crate::core::units::Revision;
use crate::prober::{self, Prober};
use crate::release::{ReleasePod, ReleaseState};

/// Outcomes of one pod and endpoint that may wait for their tick.
const MAX_WAITING: usize = 64;

/// Pods that are remembered; further ones are not probed.
const MAX_PODS: usize = 1000;

/// Outcomes of one tick and latencies in microseconds, one of each per endpoint.
pub(super) type PodResults = (Vec<TickOutcome>, Vec<Option<u32>>);

/// One endpoint of one pod.
struct PodEndpoint {
    address: SocketAddr,
    prober: Arc<Prober>,
    in_flight: u32,
    waiting: VecDeque<(TickOutcome, Option<u32>)>,
}

/// The pods of one release that are probed.
#[derive(Default)]
pub(super) struct PodProbers {
    /// By pod and endpoint.
    lines: HashMap<(Box<str>, usize), PodEndpoint>,
    turn: usize,
}

impl PodProbers {
    /// The next pods in turn, at most five.
    pub(super) fn next<'a>(&mut self, pods: &[&'a ReleasePod]) -> Vec<&'a ReleasePod> {
        let count = pods.len().min(MAX_PODS);
        let chosen = (0..count.min(MAX_ASKED)).map(|at| pods[(self.turn + at) % count]);
        let chosen: Vec<&ReleasePod> = chosen.collect();
        if count > MAX_ASKED {
            self.turn = (self.turn + MAX_ASKED) % count;
        }
        chosen
    }

    /// The next pod in turn.
    pub(super) fn one<'a>(&mut self, pods: &[&'a ReleasePod]) -> Option<&'a ReleasePod> {
        self.turn = self.turn.wrapping_add(1);
        pods.get(self.turn % pods.len().max(1)).copied()
    }

    /// A prober for an endpoint of a pod, if another probe may start now.
    pub(super) fn begin(
        &mut self,
        shared: &Arc<prober::ProberContext>,
        pod: &ReleasePod,
        endpoint: usize,
        probe: &ProbeConfig,
        most: u32,
    ) -> Option<Arc<Prober>> {
        let address = address_of(probe, pod)?;
        let new_line = || {
            let (target, kind) = aimed_at(probe, pod, address);
            PodEndpoint {
                address,
                prober: Arc::new(Prober::new(shared, target, kind)),
                in_flight: 0,
                waiting: VecDeque::new(),
            }
        };
        let line = self
            .lines
            .entry((pod.name.clone(), endpoint))
            .or_insert_with(new_line);
        // A pod of a StatefulSet comes back under its name, with another address.
        if line.address != address {
            *line = new_line();
        }
        if line.in_flight >= most {
            return None;
        }
        line.in_flight += 1;
        Some(Arc::clone(&line.prober))
    }

    /// Takes a result.
    pub(super) fn add_result(
        &mut self,
        pod: &str,
        endpoint: usize,
        outcome: TickOutcome,
        took: Option<Duration>,
    ) {
        let Some(line) = self.lines.get_mut(&(pod.into(), endpoint)) else {
            return;
        };
        line.in_flight = line.in_flight.saturating_sub(1);
        if line.waiting.len() >= MAX_WAITING {
            line.waiting.pop_front();
        }
        let us = took.map(|took| u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
        line.waiting.push_back((outcome, us));
    }

    /// Outcomes of a pod for the ending tick, with latencies of its successes in microseconds; `None` without a result.
    pub(super) fn take(&mut self, pod: &str, endpoints: usize) -> Option<PodResults> {
        let mut outcomes = vec![TickOutcome::Unknown; endpoints];
        let mut latencies = vec![None; endpoints];
        let mut any = false;
        for endpoint in 0..endpoints {
            let line = self.lines.get_mut(&(pod.into(), endpoint));
            if let Some((outcome, took)) = line.and_then(|line| line.waiting.pop_front()) {
                outcomes[endpoint] = outcome;
                latencies[endpoint] = took;
                any = true;
            }
        }
        any.then_some((outcomes, latencies))
    }

    /// Forgets pods that no longer exist.
    pub(super) fn keep(&mut self, pods: &[ReleasePod]) {
        self.lines
            .retain(|(name, _), _| pods.iter().any(|pod| pod.name == *name));
    }
}

/// The address at which a probe reaches a pod directly, if it does.
pub(super) fn address_of(probe: &ProbeConfig, pod: &ReleasePod) -> Option<SocketAddr> {
    let Some(aim) = &probe.pods else {
        return pod.address;
    };
    if aim
        .workload
        .as_ref()
        .is_some_and(|wanted| *wanted != pod.workload)
    {
        return None;
    }
    let port = match &aim.port {
        Some(wanted) => pod
            .ports
            .iter()
            .find(|port| port.name == *wanted || wanted.parse() == Ok(port.number))?,
        None => pod.ports.first()?,
    };
    Some(SocketAddr::new(pod.ip?, port.number))
}

/// Whether it is clear which pods a probe means. Without a named workload, only one workload may have its port, among
/// those that its Service selects in a revision.
pub(super) fn is_clear(
    probe: &ProbeConfig,
    release_state: &ReleaseState,
    revision: Option<Revision>,
) -> bool {
    if names_workload(probe) || probe.pods.is_none() {
        return true;
    }
    let mut asked = release_state.pods.iter().filter(|pod| {
        address_of(probe, pod).is_some() && is_behind(probe, pod, release_state, revision)
    });
    let first = asked.next().map(|pod| &pod.workload);
    asked.all(|pod| Some(&pod.workload) == first)
}

fn names_workload(probe: &ProbeConfig) -> bool {
    let aim = probe.pods.as_ref();
    aim.is_some_and(|aim| aim.workload.is_some())
}

/// Whether the Service of a probe selects a pod in a revision: the idle colour of a blue-green pair gets no traffic. A
/// workload that the probe names counts in any case.
pub(super) fn is_behind(
    probe: &ProbeConfig,
    pod: &ReleasePod,
    release_state: &ReleaseState,
    revision: Option<Revision>,
) -> bool {
    names_workload(probe)
        || revision
            .is_none_or(|revision| release_state.is_selected(pod, &probe.target.host(), revision))
}

/// The probe, aimed at one pod instead of the Service, with the host name of the Service.
fn aimed_at(probe: &ProbeConfig, pod: &ReleasePod, address: SocketAddr) -> (Target, ProbeKind) {
    let mut url = probe.target.url().clone();
    if let Some(aim) = &probe.pods
        && !probe.target.is_tcp()
    {
        let speaks_tls = aim.tls.unwrap_or_else(|| {
            let port = pod.ports.iter().find(|port| port.number == address.port());
            port.is_some_and(|port| port.name.contains("https"))
                || [443, 8443].contains(&address.port())
        });
        // From https to http and back is always allowed.
        let _ = url.set_scheme(if speaks_tls { "https" } else { "http" });
    }
    // Both can only fail for URLs without a host, which a target always has.
    let _ = url.set_ip_host(address.ip());
    let _ = url.set_port(Some(address.port()));
    let target = Target::of(url).unwrap_or_else(|_| probe.target.clone());
    let kind = match &probe.kind {
        ProbeKind::Http(http) => {
            let mut http = http.clone();
            http.proxy = None;
            http.host.get_or_insert_with(|| authority(&probe.target));
            http.connect
                .tls
                .server_name
                .get_or_insert_with(|| probe.target.host());
            ProbeKind::Http(http)
        }
        ProbeKind::Tcp(tcp) => {
            let mut tcp = tcp.clone();
            tcp.connect
                .tls
                .server_name
                .get_or_insert_with(|| probe.target.host());
            ProbeKind::Tcp(tcp)
        }
    };
    (target, kind)
}

fn authority(target: &Target) -> String {
    let url = target.url();
    let host = url.host_str().unwrap_or("");
    url.port()
        .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::panic,
        reason = "a test may end where it stands"
    )]

    use super::*;
    use crate::config::settings::PodTarget;
    use crate::config::{self, Sources};
    use crate::helm::manifest;
    use crate::release::ContainerPort;
    use crate::release::change::RevisionWorkloads;

    /// A probe of pods, with workload and port if given.
    pub(in super::super) fn probe(aim: Option<(&str, &str)>) -> ProbeConfig {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("probes.toml");
        let text = "[[release]]\nname = \"web\"\nnamespace = \"shop\"\nbase_url = \"http://web\"\n[[release.probe]]\nname = \"api\"\npath = \"/\"\n";
        std::fs::write(&file, text).unwrap();
        let sources = Sources {
            files: vec![file],
            environment: Vec::new(),
            flags: Vec::new(),
            discovered: Vec::new(),
        };
        let Ok(loaded) = config::load(&sources) else {
            panic!("the configuration is wrong");
        };
        let named = |text: &str| (!text.is_empty()).then(|| text.into());
        ProbeConfig {
            pods: aim.map(|(workload, port)| PodTarget {
                workload: named(workload),
                port: named(port),
                tls: None,
            }),
            ..ProbeConfig::clone(&loaded.settings.releases[0].probes[0])
        }
    }

    pub(in super::super) fn pod(workload: &str, ports: &[(&str, u16)]) -> ReleasePod {
        ReleasePod {
            name: "web-1".into(),
            revision: Revision(1),
            node: "node".into(),
            ready_since: None,
            terminating: false,
            restarts: 0,
            waiting: None,
            address: None,
            workload: workload.into(),
            workload_kind: "Deployment".into(),
            container: Box::default(),
            ip: Some([10, 0, 0, 7].into()),
            ports: ports
                .iter()
                .map(|(name, number)| ContainerPort {
                    name: (*name).into(),
                    number: *number,
                })
                .collect(),
        }
    }

    #[track_caller]
    fn check(rule: &str, aim: Option<(&str, &str)>, pod: &ReleasePod, expected: Option<&str>) {
        let address = address_of(&probe(aim), pod).map(|address| address.to_string());
        assert_eq!(address.as_deref(), expected, "{rule}");
    }

    #[test]
    fn a_pod_is_asked_where_its_probe_says() {
        let both = pod("web", &[("http", 8080), ("admin", 9090)]);
        let first = Some("10.0.0.7:8080");
        let second = Some("10.0.0.7:9090");
        check("the first port", Some(("", "")), &both, first);
        check("the port by name", Some(("", "admin")), &both, second);
        check("the port by number", Some(("", "9090")), &both, second);
        check("there is no such port", Some(("", "grpc")), &both, None);
        check("of its workload", Some(("web", "admin")), &both, second);
        check("of another workload", Some(("api", "")), &both, None);
        let silent = pod("web", &[]);
        check("it has no port", Some(("", "")), &silent, None);
        let nowhere = ReleasePod {
            ip: None,
            ..both.clone()
        };
        check("it has no address yet", Some(("", "")), &nowhere, None);
        let known = ReleasePod {
            address: Some(([127, 0, 0, 1], 81).into()),
            ..both.clone()
        };
        let only = Some("127.0.0.1:81");
        check("the only way there is", None, &known, only);
        check("no way is known", None, &both, None);
        check(
            "what the probe says comes first",
            Some(("", "")),
            &known,
            first,
        );
    }

    #[test]
    fn without_a_workload_only_one_may_have_the_port() {
        let web = pod("web", &[("http", 8080)]);
        let api = pod("api", &[("http", 8080), ("admin", 9090)]);
        let is_clear_for = |aim, pods: &[&ReleasePod]| {
            let release_state = ReleaseState {
                pods: pods.iter().copied().cloned().collect(),
                ..ReleaseState::default()
            };
            is_clear(&probe(aim), &release_state, None)
        };
        assert!(is_clear_for(Some(("", "http")), &[&web, &web]));
        assert!(!is_clear_for(Some(("", "http")), &[&web, &api]));
        assert!(!is_clear_for(Some(("", "")), &[&web, &api]));
        // Only pods of one workload have it, or the workload is named.
        assert!(is_clear_for(Some(("", "admin")), &[&web, &api]));
        assert!(is_clear_for(Some(("web", "http")), &[&web, &api]));
        assert!(is_clear_for(None, &[&web, &api]));
        assert!(is_clear_for(Some(("", "http")), &[]));
    }
    #[test]
    fn the_other_colour_is_not_asked_unless_it_is_named() {
        let colour = |name: &str| {
            format!(
                "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}}}\nspec: {{template: {{metadata: {{labels: {{colour: {name}}}}}}}}}\n"
            )
        };
        let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {selector: {colour: blue}}\n";
        let objects = manifest::objects(&(colour("blue") + &colour("green") + service)).unwrap();
        let contents = RevisionWorkloads::of_objects(&objects, &[]);
        let http = [("http", 8080)];
        let release_state = ReleaseState {
            pods: vec![pod("blue", &http), pod("green", &http)],
            workloads: vec![(Revision(1), Arc::new(contents))],
            ..ReleaseState::default()
        };
        let (any, green) = (probe(Some(("", ""))), probe(Some(("green", ""))));
        let behind = |probe: &ProbeConfig, revision: u32| {
            let revision = Some(Revision(revision));
            let pods = release_state.pods.iter();
            pods.map(|pod| is_behind(probe, pod, &release_state, revision))
                .collect::<Vec<_>>()
        };
        assert_eq!(behind(&any, 1), [true, false]);
        assert_eq!(behind(&any, 2), [true, true], "of that nothing is known");
        assert_eq!(behind(&green, 1), [true, true]);
        assert!(is_clear(&any, &release_state, Some(Revision(1))));
        assert!(!is_clear(&any, &release_state, None));
    }
}
