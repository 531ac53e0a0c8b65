//! One stream: how it is written, and what the rule says of it.

use serde::Deserialize;

use crate::verdict::{
    MAX_ASKED, Mark, PodLook, PodState, RequestsBefore, Rule, Scrape, Side, Start, Tick, Verdict,
    Watch,
};

/// The columns of a stream that does not name them.
const RUNBOOK: [&str; 4] = ["health", "db", "redis", "root"];

/// Run-length coded rows.
type Rows = Vec<(String, u32)>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stream {
    name: String,
    ticks: Rows,
    endpoints: Option<Vec<Box<str>>>,
    #[serde(default)]
    baseline: Option<Vec<Option<(u64, u64)>>>,
    failing_at_start: Option<Vec<bool>>,
    #[serde(default)]
    settled_at: f64,
    #[serde(default)]
    expected_downtime: bool,
    #[serde(default)]
    config: Rule,
    #[serde(default)]
    pods: Vec<Pod>,
    requests: Option<Requests>,
    #[serde(default)]
    direct: Vec<DirectPod>,
    /// What the writer expects; not read here.
    #[serde(rename = "expect")]
    _expect: Option<serde::de::IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pod {
    t: f64,
    restarts: u32,
    waiting: Option<String>,
    #[serde(default)]
    old_too: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Requests {
    interval_s: f64,
    baseline: (u64, u64),
    scrapes: Vec<(f64, u64, u64)>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DirectPod {
    name: String,
    rev: Side,
    node: String,
    from: u32,
    row: Rows,
}

/// What came of a stream.
pub(super) struct Judged {
    pub(super) name: String,
    pub(super) watch: Watch,
    pub(super) verdict: Verdict,
}

/// Judges one line; an error names the field.
pub(super) fn judge(line: &[u8]) -> Result<Judged, String> {
    let mut reader = serde_json::Deserializer::from_slice(line);
    let stream: Stream = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
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
    let most = stream.config.ticks_of_watch() as usize;
    let names = names(&stream)?;
    let rows = unpack("ticks", &stream.ticks, names.len(), most)?;
    let pods = direct_pods(&stream.direct, names.len(), most)?;
    let scrapes = scrapes(stream.requests.as_ref())?;
    let states = states(&stream.pods)?;

    let start = start(&stream, &names);
    let mut watch = Watch::new(stream.config, &start).map_err(|error| error.to_string())?;
    let dt = watch.rule().interval_s;
    let (mut next_scrape, mut next_state) = (0, 0);
    for (now, marks) in rows.iter().enumerate() {
        let t = now as f64 * dt + 1e-9;
        let looks = looks(&pods, now)?;
        let due = |next: &mut usize, times: &[f64]| {
            let first = *next;
            *next += times[first..].iter().take_while(|at| **at <= t).count();
            first..*next
        };
        let new_scrapes = due(&mut next_scrape, &scrapes.0);
        let new_states = due(&mut next_state, &states.0);
        let tick = Tick {
            marks,
            direct: &looks,
            pods: &states.1[new_states],
            scrapes: &scrapes.1[new_scrapes],
        };
        if watch.tick(&tick).is_some() || watch.is_over() {
            break;
        }
    }
    let verdict = watch.conclude();
    Ok(Judged {
        name: stream.name,
        watch,
        verdict,
    })
}

fn start(stream: &Stream, names: &[Box<str>]) -> Start {
    let none = || vec![None; names.len()];
    let baseline = stream.baseline.clone().unwrap_or_else(none);
    let failing = || vec![false; names.len()];
    Start {
        endpoints: names.to_vec(),
        baseline: baseline
            .into_iter()
            .map(|counts| counts.unwrap_or((0, 0)))
            .collect(),
        failing_at_start: stream.failing_at_start.clone().unwrap_or_else(failing),
        settled_at: Some(stream.settled_at),
        expected_downtime: stream.expected_downtime,
        direct: !stream.direct.is_empty(),
        requests: stream.requests.as_ref().map(|requests| RequestsBefore {
            interval_s: requests.interval_s,
            failed: requests.baseline.0,
            total: requests.baseline.1,
        }),
    }
}

fn names(stream: &Stream) -> Result<Vec<Box<str>>, String> {
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
fn unpack(field: &str, rows: &Rows, width: usize, most: usize) -> Result<Vec<Vec<Mark>>, String> {
    let mut marks = Vec::new();
    for (at, (row, repeats)) in rows.iter().enumerate() {
        let mut one = Vec::with_capacity(width);
        for (column, letter) in row.chars().enumerate() {
            let mark = Mark::of(letter).ok_or_else(|| {
                format!(
                    "{field}[{at}]: the character {letter:?} in column {} is none of . x -",
                    column + 1
                )
            })?;
            one.push(mark);
        }
        if one.len() != width {
            return Err(format!(
                "{field}[{at}]: the row has {} characters for {width} endpoints",
                one.len()
            ));
        }
        let room = most.saturating_sub(marks.len());
        marks.extend(std::iter::repeat_n(one, (*repeats as usize).min(room)));
    }
    Ok(marks)
}

struct Unpacked {
    side: Side,
    node: u16,
    from: u32,
    marks: Vec<Vec<Mark>>,
}

fn direct_pods(pods: &[DirectPod], width: usize, most: usize) -> Result<Vec<Unpacked>, String> {
    let mut nodes: Vec<&str> = Vec::new();
    let mut unpacked = Vec::with_capacity(pods.len());
    for pod in pods {
        let known = nodes.iter().position(|node| *node == pod.node);
        let node = known.unwrap_or_else(|| {
            nodes.push(&pod.node);
            nodes.len() - 1
        });
        let field = format!("direct.{}.row", pod.name);
        unpacked.push(Unpacked {
            side: pod.rev,
            node: u16::try_from(node).map_err(|_| "direct: more than 65536 nodes")?,
            from: pod.from,
            marks: unpack(&field, &pod.row, width, most)?,
        });
    }
    Ok(unpacked)
}

fn looks(pods: &[Unpacked], now: usize) -> Result<Vec<PodLook<'_>>, String> {
    let looks: Vec<_> = pods
        .iter()
        .enumerate()
        .filter_map(|(pod, unpacked)| {
            let marks = unpacked
                .marks
                .get(now.checked_sub(unpacked.from as usize)?)?;
            Some(PodLook {
                pod: u32::try_from(pod).ok()?,
                side: unpacked.side,
                node: unpacked.node,
                ready_tick: unpacked.from,
                marks,
            })
        })
        .filter(|look| look.marks.iter().any(|mark| *mark != Mark::Void))
        .collect();
    for side in [Side::New, Side::Old] {
        let asked = looks.iter().filter(|look| look.side == side).count();
        if asked > MAX_ASKED {
            return Err(format!(
                "direct: {asked} pods of one revision are asked in tick {now}, but at most {MAX_ASKED} may be"
            ));
        }
    }
    Ok(looks)
}

fn scrapes(requests: Option<&Requests>) -> Result<(Vec<f64>, Vec<Scrape>), String> {
    let mut scrapes = Vec::new();
    for (at, (t, failed, total)) in requests.iter().flat_map(|r| &r.scrapes).enumerate() {
        if failed > total {
            return Err(format!(
                "requests.scrapes[{at}]: {failed} failures of {total}"
            ));
        }
        scrapes.push(Scrape {
            t: *t,
            failed: *failed,
            total: *total,
        });
    }
    scrapes.sort_by(|a, b| a.t.total_cmp(&b.t));
    Ok((scrapes.iter().map(|scrape| scrape.t).collect(), scrapes))
}

fn states(pods: &[Pod]) -> Result<(Vec<f64>, Vec<PodState>), String> {
    if let Some(at) = pods
        .iter()
        .position(|pod| !pod.t.is_finite() || pod.t < 0.0)
    {
        return Err(format!("pods[{at}].t: must be 0 or more"));
    }
    let mut pods: Vec<&Pod> = pods.iter().collect();
    pods.sort_by(|a, b| a.t.total_cmp(&b.t));
    let states = pods.iter().map(|pod| PodState {
        restarts: pod.restarts,
        crash_loop_back_off: pod.waiting.as_deref() == Some("CrashLoopBackOff"),
        old_too: pod.old_too,
        ..PodState::default()
    });
    Ok((pods.iter().map(|pod| pod.t).collect(), states.collect()))
}
