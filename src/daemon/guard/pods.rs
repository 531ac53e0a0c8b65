//! Asking pods directly: who is next, and what came of it.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use crate::config::Target;
use crate::config::settings::{Probe, Question};
use crate::probe::{self, Prober};
use crate::release::Pod;
use crate::verdict::{MAX_ASKED, Mark};

/// Marks of one pod and endpoint that may wait for their tick.
const MAX_WAITING: usize = 64;

/// Pods that are kept in mind; further ones are not asked.
const MAX_PODS: usize = 1000;

/// One endpoint of one pod.
struct Line {
    prober: Arc<Prober>,
    in_flight: u32,
    waiting: VecDeque<Mark>,
}

/// The pods of one release, as far as they are asked.
#[derive(Default)]
pub(super) struct Askers {
    /// By pod and endpoint.
    lines: HashMap<(Box<str>, usize), Line>,
    turn: usize,
}

impl Askers {
    /// The pods whose turn it is: at most five.
    pub(super) fn next<'a>(&mut self, pods: &[&'a Pod]) -> Vec<&'a Pod> {
        let count = pods.len().min(MAX_PODS);
        let chosen = (0..count.min(MAX_ASKED)).map(|at| pods[(self.turn + at) % count]);
        let chosen: Vec<&Pod> = chosen.collect();
        if count > MAX_ASKED {
            self.turn = (self.turn + MAX_ASKED) % count;
        }
        chosen
    }

    /// A prober for an endpoint of a pod, if it may be asked once more now.
    pub(super) fn begin(
        &mut self,
        shared: &Arc<probe::Shared>,
        pod: &Pod,
        endpoint: usize,
        probe: &Probe,
        most: u32,
    ) -> Option<Arc<Prober>> {
        let address = pod.address?;
        let line = self
            .lines
            .entry((pod.name.clone(), endpoint))
            .or_insert_with(|| {
                let (target, question) = aimed_at(probe, address);
                Line {
                    prober: Arc::new(Prober::new(shared, target, question)),
                    in_flight: 0,
                    waiting: VecDeque::new(),
                }
            });
        if line.in_flight >= most {
            return None;
        }
        line.in_flight += 1;
        Some(Arc::clone(&line.prober))
    }

    /// An answer has come.
    pub(super) fn heard(&mut self, pod: &str, endpoint: usize, mark: Mark) {
        let Some(line) = self.lines.get_mut(&(pod.into(), endpoint)) else {
            return;
        };
        line.in_flight = line.in_flight.saturating_sub(1);
        if line.waiting.len() >= MAX_WAITING {
            line.waiting.pop_front();
        }
        line.waiting.push_back(mark);
    }

    /// The marks of a pod for the tick that ends; `None` where none has come.
    pub(super) fn take(&mut self, pod: &str, endpoints: usize) -> Option<Vec<Mark>> {
        let mut marks = vec![Mark::Void; endpoints];
        let mut any = false;
        for (endpoint, mark) in marks.iter_mut().enumerate() {
            let line = self.lines.get_mut(&(pod.into(), endpoint));
            if let Some(come) = line.and_then(|line| line.waiting.pop_front()) {
                *mark = come;
                any = true;
            }
        }
        any.then_some(marks)
    }

    /// Forgets pods that are gone.
    pub(super) fn keep(&mut self, pods: &[Pod]) {
        self.lines
            .retain(|(name, _), _| pods.iter().any(|pod| pod.name == *name));
    }
}

/// The same question to one pod instead of the Service, in the name of the Service.
fn aimed_at(probe: &Probe, address: SocketAddr) -> (Target, Question) {
    let mut url = probe.target.url().clone();
    // Both can only fail for URLs without a host, which a target always has.
    let _ = url.set_ip_host(address.ip());
    let _ = url.set_port(Some(address.port()));
    let target = Target::of(url).unwrap_or_else(|_| probe.target.clone());
    let question = match &probe.question {
        Question::Http(http) => {
            let mut http = http.clone();
            http.proxy = None;
            http.host.get_or_insert_with(|| authority(&probe.target));
            http.connect
                .tls
                .server_name
                .get_or_insert_with(|| probe.target.host());
            Question::Http(http)
        }
        Question::Tcp(tcp) => {
            let mut tcp = tcp.clone();
            tcp.connect
                .tls
                .server_name
                .get_or_insert_with(|| probe.target.host());
            Question::Tcp(tcp)
        }
    };
    (target, question)
}

fn authority(target: &Target) -> String {
    let url = target.url();
    let host = url.host_str().unwrap_or("");
    url.port()
        .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}
