//! One stream: its format, and the verdict of the rule.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::core::analysis::{
    AgeCounts, Analysis, AnalysisStart, AnalyzedWorkload, Bake, BakeEnd, BaselineHistogram,
    LearnedRollouts, PodSide, PodState, PodTick, RequestScrape, RequestsBefore, Rule, StuckReason,
    Tick, TickOutcome, Verdict, WorkloadChange, WorkloadDiff, WorkloadEvent, bucket,
};

/// The columns of a stream that does not name them.
const RUNBOOK: [&str; 4] = ["health", "db", "redis", "root"];

/// The most pods of one side that a stream may ask in one tick.
const MAX_PODS: usize = 100;

/// Run-length coded rows.
type RunLengthRows = Vec<(String, u32)>;

/// Run-length coded latencies in milliseconds, one for each endpoint.
type RunLengthLatencies = Vec<(Vec<Option<f64>>, u32)>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ResultStream {
    name: String,
    ticks: RunLengthRows,
    endpoints: Option<Vec<Box<str>>>,
    #[serde(default)]
    baseline: Option<Vec<Option<AgeCounts>>>,
    failing_at_start: Option<Vec<bool>>,
    /// Absent: complete from the start. `null`: nobody can see it.
    #[serde(default = "at_once")]
    #[serde(rename = "settled_at")]
    complete_at: Option<f64>,
    #[serde(default)]
    expected_downtime: bool,
    #[serde(default)]
    config: Rule,
    #[serde(default)]
    workloads: Option<Vec<StreamWorkload>>,
    #[serde(default)]
    learned: Option<StreamLearned>,
    #[serde(default)]
    steady_s: Vec<f64>,
    #[serde(default)]
    dependencies: Vec<Box<str>>,
    #[serde(default)]
    dependency_ticks: RunLengthRows,
    #[serde(default)]
    needs: BTreeMap<String, Vec<String>>,
    latency: Option<StreamLatency>,
    #[serde(default)]
    pods: Vec<StreamPod>,
    requests: Option<StreamRequests>,
    #[serde(default)]
    direct: Vec<StreamDirectPod>,
    #[serde(default)]
    phase: Option<StreamPhase>,
    /// Of a bake: seconds after the revision appeared at which it begins.
    from_s: Option<f64>,
    /// Of a bake: whether an alarm rejects.
    #[serde(default)]
    enforce: bool,
    /// Of a bake: restarts that are normal.
    #[serde(default)]
    restarts_normal: u32,
    /// Whether what the revision teaches is printed.
    #[serde(default)]
    teaches: bool,
    /// What the writer expects; not read here.
    #[serde(rename = "expect")]
    _expect: Option<serde::de::IgnoredAny>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StreamPhase {
    Bake,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamWorkload {
    name: Box<str>,
    change: Option<WorkloadDiff>,
    #[serde(default = "yes")]
    was_complete: bool,
    #[serde(default)]
    stops_first: bool,
    probes: Option<Vec<u16>>,
    #[serde(default = "at_once")]
    template_at: Option<f64>,
    #[serde(default)]
    gap_s: f64,
    #[serde(default)]
    ready_s: f64,
    #[serde(default)]
    restarts: u32,
    #[serde(default)]
    seen: Vec<(f64, WorkloadChange)>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamLearned {
    pods: [AgeCounts; 6],
    service: BTreeMap<String, [AgeCounts; 3]>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamLatency {
    before: Vec<Vec<(f64, u64)>>,
    ticks: RunLengthLatencies,
    #[serde(default)]
    enforce: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamPod {
    t: f64,
    #[serde(default)]
    name: Box<str>,
    #[serde(default)]
    workload: Box<str>,
    #[serde(default)]
    restarts: u32,
    waiting: Option<String>,
    #[serde(default)]
    injected: bool,
    stuck: Option<StuckReason>,
    #[serde(default)]
    old_too: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamRequests {
    interval_s: f64,
    baseline: AgeCounts,
    scrapes: Vec<(f64, u64, u64)>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamDirectPod {
    name: String,
    rev: PodSide,
    /// Of version 1; not read.
    #[serde(rename = "node", default)]
    _node: Option<serde::de::IgnoredAny>,
    from: u32,
    row: RunLengthRows,
    #[serde(default)]
    ms: RunLengthLatencies,
}

fn yes() -> bool {
    true
}

#[allow(clippy::unnecessary_wraps, reason = "the default of a field")]
fn at_once() -> Option<f64> {
    Some(0.0)
}

/// What came of a stream.
pub(super) enum StreamOutcome {
    /// Of the analysis of a revision.
    Watched {
        name: String,
        analysis: Box<Analysis>,
        verdict: Verdict,
        teaches: bool,
    },
    /// Of its bake.
    Baked {
        name: String,
        bake: Box<Bake>,
        enforce: bool,
    },
}

/// Judges one line; an error names the field.
pub(super) fn judge(line: &[u8]) -> Result<StreamOutcome, String> {
    let mut reader = serde_json::Deserializer::from_slice(line);
    let stream: ResultStream = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        let error = error.into_inner();
        if path == "." {
            error.to_string()
        } else {
            format!("{path}: {error}")
        }
    })?;
    reader
        .end()
        .map_err(|error| format!("after the object: {error}"))?;
    stream
        .config
        .check()
        .map_err(|error| format!("config.{error}"))?;
    let names = names(&stream)?;
    if stream.phase == Some(StreamPhase::Bake) {
        return bake(stream, &names);
    }
    let most = stream.config.ticks_of_analysis() as usize;
    let rows = unpack("ticks", &stream.ticks, names.len(), most)?;
    let pods = direct_pods(&stream.direct, names.len(), most)?;
    let scrapes = scrapes(stream.requests.as_ref())?;
    let states = states(&stream.pods)?;
    let rollout = rollout(&stream)?;
    let needed = stream.dependencies.len();
    let dependencies = unpack("dependency_ticks", &stream.dependency_ticks, needed, most)?;
    let latencies = match &stream.latency {
        Some(latency) => unpack_ms("latency.ticks", &latency.ticks, names.len(), most)?,
        None => Vec::new(),
    };

    let start = start(&stream, &names)?;
    let mut rule = stream.config.clone();
    rule.latency_rejects |= stream.latency.as_ref().is_some_and(|it| it.enforce);
    let mut analysis = Analysis::new(rule, &start).map_err(|error| error.to_string())?;
    let dt = analysis.rule().interval_s;
    let (mut next_scrape, mut next_state, mut next_event) = (0, 0, 0);
    for (now, outcomes) in rows.iter().enumerate() {
        let t = now as f64 * dt + 1e-9;
        let looks = looks(&pods, now)?;
        let due = |next: &mut usize, times: &[f64]| {
            let first = *next;
            *next += times[first..].iter().take_while(|at| **at <= t).count();
            first..*next
        };
        let new_scrapes = due(&mut next_scrape, &scrapes.0);
        let new_states = due(&mut next_state, &states.0);
        let new_events = due(&mut next_event, &rollout.0);
        let tick = Tick {
            outcomes,
            direct: &looks,
            pods: &states.1[new_states],
            scrapes: &scrapes.1[new_scrapes],
            rollout: &rollout.1[new_events],
            dependencies: dependencies.get(now).map_or(&[], |row| row),
            latency_us: latencies.get(now).map_or(&[], |row| row),
        };
        if analysis.tick(&tick).is_some() || analysis.is_over() {
            break;
        }
    }
    let verdict = analysis.conclude();
    Ok(StreamOutcome::Watched {
        name: stream.name,
        analysis: Box::new(analysis),
        verdict,
        teaches: stream.teaches,
    })
}

/// A stream of the time after a healthy verdict.
fn bake(stream: ResultStream, names: &[Box<str>]) -> Result<StreamOutcome, String> {
    let start = start(&stream, names)?;
    let analysis =
        Analysis::new(stream.config.clone(), &start).map_err(|error| error.to_string())?;
    let rule = analysis.rule();
    let from_s = stream.from_s.unwrap_or(rule.analysis_s);
    if !(from_s.is_finite() && from_s >= 0.0) {
        return Err(format!("from_s: is {from_s}, but must be 0 or more"));
    }
    let dt = rule.interval_s;
    let most = rule.whole_ticks(rule.bake_s).saturating_add(1) as usize;
    let rows = unpack("ticks", &stream.ticks, names.len(), most)?;
    let states = states(&stream.pods)?;
    let mut bake = Bake::new(&analysis, dt, from_s);
    let mut next = 0;
    for (now, outcomes) in rows.iter().enumerate() {
        let t = from_s + now as f64 * dt + 1e-9;
        let due = states.0[next..].iter().take_while(|at| **at <= t).count();
        let pods = &states.1[next..next + due];
        next += due;
        if bake
            .tick(outcomes, pods, |_| stream.restarts_normal)
            .is_some()
            || bake.end() != BakeEnd::Baking
        {
            break;
        }
    }
    Ok(StreamOutcome::Baked {
        name: stream.name,
        bake: Box::new(bake),
        enforce: stream.enforce,
    })
}

fn start(stream: &ResultStream, names: &[Box<str>]) -> Result<AnalysisStart, String> {
    let none = || vec![None; names.len()];
    let baseline = stream.baseline.clone().unwrap_or_else(none);
    let failing = || vec![false; names.len()];
    let place = |name: &str| {
        let found = stream.dependencies.iter().position(|it| **it == *name);
        found.and_then(|at| u16::try_from(at).ok())
    };
    let mut needs = Vec::new();
    for name in names {
        let mut places = Vec::new();
        for need in stream.needs.get(&**name).into_iter().flatten() {
            let place = place(need)
                .ok_or_else(|| format!("needs.{name}: {need:?} is not in dependencies"))?;
            places.push(place);
        }
        needs.push(places);
    }
    let latency = stream.latency.as_ref();
    Ok(AnalysisStart {
        endpoints: names.to_vec(),
        baseline: baseline
            .into_iter()
            .map(|counts| counts.unwrap_or((0, 0)))
            .collect(),
        failing_at_start: stream.failing_at_start.clone().unwrap_or_else(failing),
        complete_at: stream.complete_at,
        expected_downtime: stream.expected_downtime,
        direct: !stream.direct.is_empty(),
        requests: stream.requests.as_ref().map(|requests| RequestsBefore {
            interval_s: requests.interval_s,
            failed: requests.baseline.0,
            total: requests.baseline.1,
        }),
        workloads: stream
            .workloads
            .as_ref()
            .map(|workloads| workloads.iter().map(workload).collect()),
        learned: stream
            .learned
            .as_ref()
            .map_or_else(LearnedRollouts::default, |learned| learned.given(names)),
        steady_s: stream.steady_s.clone(),
        dependencies: stream.dependencies.clone(),
        needs: if stream.needs.is_empty() {
            Vec::new()
        } else {
            needs
        },
        latency: latency.map_or_else(Vec::new, |latency| {
            latency.before.iter().map(|one| histogram(one)).collect()
        }),
    })
}

impl StreamLearned {
    fn given(&self, names: &[Box<str>]) -> LearnedRollouts {
        let service = |name: &str| self.service.get(name).copied().unwrap_or_default();
        LearnedRollouts {
            rollouts: 0,
            longest_s: 0.0,
            pods: self.pods,
            pool: service("*"),
            endpoints: names.iter().map(|name| service(name)).collect(),
        }
    }
}

fn workload(given: &StreamWorkload) -> AnalyzedWorkload {
    AnalyzedWorkload {
        name: given.name.clone(),
        change: given.change,
        unknown: None,
        was_complete: given.was_complete,
        stops_first: given.stops_first,
        probes: given.probes.clone(),
        template_at: given.template_at,
        gap_s: given.gap_s,
        ready_s: given.ready_s,
        restarts: given.restarts,
    }
}

/// Milliseconds as whole microseconds, rounded half up.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "bounded right before"
)]
fn microseconds(ms: f64) -> u32 {
    (ms * 1000.0 + 0.5).floor().clamp(0.0, f64::from(i32::MAX)) as u32
}

fn histogram(counts: &[(f64, u64)]) -> BaselineHistogram {
    let mut buckets: BTreeMap<u16, u64> = BTreeMap::new();
    for (ms, count) in counts {
        *buckets.entry(bucket(microseconds(*ms))).or_default() += count;
    }
    buckets.into_iter().collect()
}

fn names(stream: &ResultStream) -> Result<Vec<Box<str>>, String> {
    if let Some(names) = &stream.endpoints {
        return Ok(names.clone());
    }
    let Some((row, _)) = stream.ticks.first() else {
        return Ok(RUNBOOK.map(Into::into).to_vec());
    };
    let count = row.chars().count();
    if count == 0 {
        return Err("ticks[0]: the row is empty".into());
    }
    Ok(if count == RUNBOOK.len() {
        RUNBOOK.map(Into::into).to_vec()
    } else {
        (1..=count)
            .map(|at| format!("endpoint {at}").into())
            .collect()
    })
}

/// Rows as they follow one another, at most as many as the watch reads.
fn unpack(
    field: &str,
    rows: &RunLengthRows,
    width: usize,
    most: usize,
) -> Result<Vec<Vec<TickOutcome>>, String> {
    let mut outcomes = Vec::new();
    for (at, (row, repeats)) in rows.iter().enumerate() {
        let mut one = Vec::with_capacity(width);
        for (column, letter) in row.chars().enumerate() {
            let outcome = TickOutcome::of(letter).ok_or_else(|| {
                format!(
                    "{field}[{at}]: the character {letter:?} in column {} is none of . x - _ l r",
                    column + 1
                )
            })?;
            one.push(outcome);
        }
        if one.len() != width {
            return Err(format!(
                "{field}[{at}]: the row has {} characters for {width} endpoints",
                one.len()
            ));
        }
        let room = most.saturating_sub(outcomes.len());
        outcomes.extend(std::iter::repeat_n(one, (*repeats as usize).min(room)));
    }
    Ok(outcomes)
}

/// The same of latencies, in microseconds.
fn unpack_ms(
    field: &str,
    rows: &RunLengthLatencies,
    width: usize,
    most: usize,
) -> Result<Vec<Vec<Option<u32>>>, String> {
    let mut latencies = Vec::new();
    for (at, (row, repeats)) in rows.iter().enumerate() {
        if row.len() != width {
            return Err(format!(
                "{field}[{at}]: the row has {} numbers for {width} endpoints",
                row.len()
            ));
        }
        let one: Vec<Option<u32>> = row.iter().map(|ms| ms.map(microseconds)).collect();
        let room = most.saturating_sub(latencies.len());
        latencies.extend(std::iter::repeat_n(one, (*repeats as usize).min(room)));
    }
    Ok(latencies)
}

struct UnpackedRows {
    side: PodSide,
    from: u32,
    outcomes: Vec<Vec<TickOutcome>>,
    latencies: Vec<Vec<Option<u32>>>,
}

fn direct_pods(
    pods: &[StreamDirectPod],
    width: usize,
    most: usize,
) -> Result<Vec<UnpackedRows>, String> {
    pods.iter()
        .map(|pod| {
            let field = |part: &str| format!("direct.{}.{part}", pod.name);
            Ok(UnpackedRows {
                side: pod.rev,
                from: pod.from,
                outcomes: unpack(&field("row"), &pod.row, width, most)?,
                latencies: unpack_ms(&field("ms"), &pod.ms, width, most)?,
            })
        })
        .collect()
}

fn looks(pods: &[UnpackedRows], now: usize) -> Result<Vec<PodTick<'_>>, String> {
    let looks: Vec<_> = pods
        .iter()
        .enumerate()
        .filter_map(|(pod, unpacked)| {
            let at = now.checked_sub(unpacked.from as usize)?;
            let outcomes = unpacked.outcomes.get(at)?;
            Some(PodTick {
                pod: u32::try_from(pod).ok()?,
                side: unpacked.side,
                ready_tick: unpacked.from,
                outcomes,
                latency_us: unpacked.latencies.get(at).map_or(&[], |row| row),
            })
        })
        .filter(|look| {
            look.outcomes
                .iter()
                .any(|outcome| *outcome != TickOutcome::Unknown)
        })
        .collect();
    for side in [PodSide::New, PodSide::Old] {
        let asked = looks.iter().filter(|look| look.side == side).count();
        if asked > MAX_PODS {
            return Err(format!(
                "direct: {asked} pods of one revision are asked in tick {now}, but at most {MAX_PODS} may be"
            ));
        }
    }
    Ok(looks)
}

/// What became known of the rollout, in order of time.
fn rollout(stream: &ResultStream) -> Result<(Vec<f64>, Vec<WorkloadEvent>), String> {
    let mut events = Vec::new();
    for (place, workload) in stream.workloads.iter().flatten().enumerate() {
        for (t, what) in &workload.seen {
            if !(t.is_finite() && *t >= 0.0) {
                return Err(format!("workloads[{place}].seen: {t} must be 0 or more"));
            }
            events.push(WorkloadEvent {
                t: *t,
                workload: u16::try_from(place).map_err(|_| "workloads: too many")?,
                what: *what,
            });
        }
    }
    events.sort_by(|a, b| a.t.total_cmp(&b.t));
    Ok((events.iter().map(|event| event.t).collect(), events))
}

fn scrapes(requests: Option<&StreamRequests>) -> Result<(Vec<f64>, Vec<RequestScrape>), String> {
    let mut scrapes = Vec::new();
    for (at, (t, failed, total)) in requests.iter().flat_map(|r| &r.scrapes).enumerate() {
        if failed > total {
            return Err(format!(
                "requests.scrapes[{at}]: {failed} failures of {total}"
            ));
        }
        scrapes.push(RequestScrape {
            t: *t,
            failed: *failed,
            total: *total,
        });
    }
    scrapes.sort_by(|a, b| a.t.total_cmp(&b.t));
    Ok((scrapes.iter().map(|scrape| scrape.t).collect(), scrapes))
}

fn states(pods: &[StreamPod]) -> Result<(Vec<f64>, Vec<PodState>), String> {
    if let Some(at) = pods
        .iter()
        .position(|pod| !pod.t.is_finite() || pod.t < 0.0)
    {
        return Err(format!("pods[{at}].t: must be 0 or more"));
    }
    let mut pods: Vec<&StreamPod> = pods.iter().collect();
    pods.sort_by(|a, b| a.t.total_cmp(&b.t));
    let states = pods.iter().map(|pod| PodState {
        name: pod.name.clone(),
        workload: pod.workload.clone(),
        container: Box::default(),
        restarts: pod.restarts,
        crash_loop_back_off: pod.waiting.as_deref() == Some("CrashLoopBackOff"),
        injected: pod.injected,
        stuck: pod.stuck,
        old_too: pod.old_too,
    });
    Ok((pods.iter().map(|pod| pod.t).collect(), states.collect()))
}
