//! A recording of an analysis, line by line, so that it can be replayed: JSON Lines.
//!
//! The first line is the head: the release, the rule, what was known at the start. Then follow a line for each tick,
//! for each pod when it is first probed, and for each log entry; at the end, the verdict. A recording that was cut off
//! is replayed as far as it goes, and is marked incomplete. So is one that starts in the middle, because another
//! replica has the first part, or because the analysis began under an earlier revision with the same contents: its head
//! contains the state of the analysis at that point.

mod latencies;

use std::io::{self, BufRead};

use serde::{Deserialize, Serialize};

use crate::core::analysis::{
    Analysis, AnalysisStart, InvalidRule, PodSide, PodState, PodTick, Regression, RequestScrape,
    Rule, Tick, TickOutcome, WorkloadEvent,
};
use crate::core::evidence::EvidenceBundle;
use crate::core::rollout::{LogEntry, Mode};
use crate::core::units::{Namespace, ReleaseName, Revision, Time};

pub use latencies::{AnalysisLatencies, Distribution, EndpointLatencies, LatencyGroup, lower_us};

/// The version of the format that is written, and the newest that is read.
///
/// Version 1 has no workloads, latencies and lessons of earlier rollouts. Such a recording is replayed by today's rule
/// with what it has.
pub const VERSION: u32 = 2;

/// Maximum size of a recording in bytes; later lines are not written, and the recording is incomplete.
pub const MAX_BYTES: u64 = 32 * 1024 * 1024;

/// The longest line that is read, but for the head: it holds how long answers took at each endpoint, and with some
/// hundreds of them it takes several MiB.
const MAX_LINE: u64 = 1024 * 1024;

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "snake_case")]
pub enum RecordingLine {
    /// The first line.
    Head(Box<RecordingHead>),
    /// A pod that is asked directly from here on.
    Pod(RecordedPod),
    /// Everything that became known in a tick.
    Tick(Box<RecordedTick>),
    /// An entry of the log of events.
    Entry(LogEntry),
    /// What the cluster was like when the verdict of rollback fell.
    Evidence(Box<EvidenceBundle>),
    /// The last line.
    End(RecordingEnd),
}

/// Who, which rule, and what was known at the start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordingHead {
    /// The version of the format, see [`VERSION`].
    pub version: u32,
    /// The namespace of the release.
    pub namespace: Namespace,
    /// The release.
    pub release: ReleaseName,
    /// The revision under analysis.
    pub revision: Revision,
    /// The one that was serving before.
    pub serving: Option<Revision>,
    /// When the analysis began.
    pub began: Time,
    /// The mode in force.
    pub mode: Mode,
    /// The rule in force.
    pub rule: Rule,
    /// What was known at the start.
    pub start: AnalysisStart,
    /// Why no pods are probed directly, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_direct: Option<Box<str>>,
    /// The state of the analysis where the recording starts, if that is not its beginning. Then the start has only the
    /// endpoints' names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goes_on: Option<Box<Analysis>>,
}

impl RecordingHead {
    /// The number of the first tick that is recorded.
    fn first_tick(&self) -> u32 {
        self.goes_on.as_ref().map_or(0, |analysis| analysis.ticks())
    }
}

/// A pod that is asked directly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedPod {
    /// Its number in this recording.
    pub pod: u32,
    /// Its name.
    pub name: Box<str>,
    /// Old or new.
    pub side: PodSide,
    /// The tick in which it became Ready.
    pub ready_tick: u32,
}

/// Everything that became known in a tick.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct RecordedTick {
    /// The tick, counted from 0.
    pub tick: u32,
    /// One character for each endpoint: `.` success, `x` failure, `-` unknown, `_` not due, `l` limited, `r` not resolved.
    #[serde(alias = "marks")]
    pub outcomes: Box<str>,
    /// Why endpoints were not good: (endpoint's place, reason).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub why: Vec<(u16, Box<str>)>,
    /// Latencies in milliseconds, one for each endpoint; `null` without one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ms: Vec<Option<u32>>,
    /// The same in microseconds, since version 2.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub us: Vec<Option<u32>>,
    /// What pods answered: (pod's number, one character for each endpoint).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub direct: Vec<(u32, Box<str>)>,
    /// How long they took in microseconds: (pod's number, one latency for each endpoint).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub direct_us: Vec<(u32, Vec<Option<u32>>)>,
    /// States of new pods that changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pods: Vec<PodState>,
    /// Scrapes that came in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scrapes: Vec<RequestScrape>,
    /// What became known of the rollout.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rollout: Vec<WorkloadEvent>,
    /// One character for each dependency; empty without dependencies.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub dependencies: Box<str>,
    /// When the rollout was complete, in the tick in which that became known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(alias = "settled_at")]
    pub complete_at: Option<f64>,
    /// Whether the rollout is complete, in the tick in which that became known or changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rolled_out: Option<bool>,
}

/// The end of the analysis.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordingEnd {
    /// `healthy`, `rollback`, `inconclusive`, or `watching` when a newer revision ended the analysis.
    pub verdict: Box<str>,
    /// The reason; empty if there is none.
    pub reason: Box<str>,
    /// The last tick that was read.
    pub tick: u32,
    /// The largest e-value.
    pub max_e: f64,
    /// Why the revision was rejected, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(alias = "finding")]
    pub regression: Option<Regression>,
}

impl RecordingEnd {
    /// The current state of an analysis.
    pub fn of(analysis: &Analysis) -> Self {
        let verdict = analysis.conclude();
        Self {
            verdict: verdict.word().into(),
            reason: verdict.reason().into(),
            tick: analysis.ticks().saturating_sub(1),
            max_e: analysis.max_e(),
            regression: analysis.regression().cloned(),
        }
    }
}

/// A recording that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Recording {
    /// The first line.
    pub head: RecordingHead,
    /// The pods that were asked.
    pub pods: Vec<RecordedPod>,
    /// The ticks, in order.
    pub ticks: Vec<RecordedTick>,
    /// The log of events.
    pub entries: Vec<LogEntry>,
    /// What the cluster was like when the verdict fell.
    pub evidence: Option<Box<EvidenceBundle>>,
    /// The last line.
    pub end: Option<RecordingEnd>,
    /// Why the recording is incomplete, if it is.
    pub cut: Option<String>,
}

/// Why a recording cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// Its first line is no head.
    #[error("is no recording of Leadsman: line 1: {0}")]
    NoHead(String),
    /// It was written by a newer version.
    #[error("has the format version {0}; this Leadsman reads up to {VERSION}, so use a newer one")]
    Newer(u32),
    /// An older version wrote it, and it starts in the middle, so it cannot be replayed.
    #[error(
        "has the format version {0} and begins in the middle of an analysis, which this Leadsman cannot go on with; use the version that wrote it"
    )]
    Older(u32),
}

impl Recording {
    /// Reads a recording. What is broken after the head cuts it off there.
    ///
    /// # Errors
    /// When the head cannot be read.
    pub fn read(mut reader: impl BufRead) -> Result<Self, RecordingError> {
        let mut line = Vec::new();
        read_line(&mut reader, &mut line, MAX_BYTES)?;
        let head = match parse(&line) {
            Ok(RecordingLine::Head(head)) => *head,
            Ok(
                RecordingLine::Pod(_)
                | RecordingLine::Tick(_)
                | RecordingLine::Entry(_)
                | RecordingLine::Evidence(_)
                | RecordingLine::End(_),
            ) => {
                return Err(RecordingError::NoHead("is not the head".into()));
            }
            Err(error) => match version_of(&line) {
                Some(version) if version > VERSION => return Err(RecordingError::Newer(version)),
                Some(version) if version < VERSION => return Err(RecordingError::Older(version)),
                Some(_) | None => return Err(RecordingError::NoHead(error)),
            },
        };
        if head.version > VERSION {
            return Err(RecordingError::Newer(head.version));
        }
        if let Some(analysis) = &head.goes_on
            && !(analysis.is_sound() && analysis.endpoints().count() == head.start.endpoints.len())
        {
            return Err(RecordingError::NoHead("a watch that cannot be".into()));
        }
        let mut recording = Self {
            head,
            pods: Vec::new(),
            ticks: Vec::new(),
            entries: Vec::new(),
            evidence: None,
            end: None,
            cut: None,
        };
        let mut total = line.len() as u64;
        for number in 2.. {
            match read_line(&mut reader, &mut line, MAX_LINE) {
                Ok(0) => break,
                Ok(length) => total += length as u64,
                Err(error) => {
                    recording.cut = Some(format!("line {number}: {error}"));
                    break;
                }
            }
            if total > MAX_BYTES {
                recording.cut = Some(format!("line {number}: longer than {MAX_BYTES} bytes"));
                break;
            }
            if let Err(error) = parse(&line).and_then(|line| recording.take(line)) {
                recording.cut = Some(format!("line {number}: {error}"));
                break;
            }
        }
        if recording.end.is_none() && recording.cut.is_none() {
            recording.cut = Some("it has no end".into());
        }
        if recording.head.goes_on.is_some() {
            let first = recording.head.first_tick();
            let begins =
                format!("it begins in tick {first}, before which another recording tells of it");
            recording.cut = Some(match recording.cut {
                Some(cut) => format!("{begins}; {cut}"),
                None => begins,
            });
        }
        Ok(recording)
    }

    fn take(&mut self, line: RecordingLine) -> Result<(), String> {
        let width = self.head.start.endpoints.len();
        match line {
            RecordingLine::Head(_) => return Err("a second head".into()),
            RecordingLine::Pod(pod) => self.pods.push(pod),
            RecordingLine::Tick(tick) => {
                let due = self.next_tick();
                if tick.tick != due {
                    return Err(format!("tick {} where {due} is due", tick.tick));
                }
                outcomes(&tick.outcomes, width)?;
                for (_, row) in &tick.direct {
                    outcomes(row, width)?;
                }
                let needed = match &self.head.goes_on {
                    Some(analysis) => analysis.dependencies().count(),
                    None => self.head.start.dependencies.len(),
                };
                let told = tick.dependencies.chars().count();
                if told > 0 && told != needed {
                    return Err(format!("a row of {told} marks for {needed} dependencies"));
                }
                outcomes(&tick.dependencies, told)?;
                self.ticks.push(*tick);
            }
            RecordingLine::Entry(entry) => self.entries.push(entry),
            RecordingLine::Evidence(evidence) => self.evidence = Some(evidence),
            RecordingLine::End(end) => self.end = Some(end),
        }
        Ok(())
    }

    /// The number of the first tick that is recorded.
    pub fn first_tick(&self) -> u32 {
        self.head.first_tick()
    }

    /// The number of the tick that would follow.
    pub fn next_tick(&self) -> u32 {
        let count = u32::try_from(self.ticks.len()).unwrap_or(u32::MAX);
        self.first_tick().saturating_add(count)
    }

    /// Replays the recording, with the recorded rule or another. `each` gets the analysis after every tick.
    ///
    /// # Errors
    ///
    /// When the rule or the start is invalid; and when the rule is not the recorded one, and the recording starts in
    /// the middle.
    pub fn judge(
        &self,
        rule: Rule,
        mut each: impl FnMut(&Analysis),
    ) -> Result<Analysis, InvalidRule> {
        let mut analysis = match &self.head.goes_on {
            None => Analysis::new(rule, &self.head.start)?,
            Some(analysis) if rule == *analysis.rule() => Analysis::clone(analysis),
            Some(analysis) => {
                return Err(InvalidRule {
                    field: "the rule".into(),
                    problem: format!(
                        "cannot be another one: the recording begins in tick {}, and what came before is not in it",
                        analysis.ticks()
                    ),
                });
            }
        };
        for tick in &self.ticks {
            feed(&mut analysis, &self.pods, tick);
            each(&analysis);
            if analysis.regression().is_some() || analysis.is_over() {
                break;
            }
        }
        Ok(analysis)
    }

    /// Whether a replay came to the recorded end: verdict, reason and tick.
    pub fn agrees(&self, analysis: &Analysis) -> bool {
        let now = RecordingEnd::of(analysis);
        self.end.as_ref().is_some_and(|end| {
            end.verdict == now.verdict && end.reason == now.reason && end.tick == now.tick
        })
    }
}

/// Feeds a tick to an analysis, both live and in a replay, so that there is only one way. Rows with another number of
/// endpoints than the analysis are unknown; a recording was checked for that.
pub fn feed(analysis: &mut Analysis, pods: &[RecordedPod], tick: &RecordedTick) {
    if let Some(at) = tick.complete_at {
        analysis.complete(at);
    }
    if let Some(is_complete) = tick.rolled_out {
        analysis.rolled_out(is_complete);
    }
    let width = analysis.endpoints().count();
    let own = outcomes(&tick.outcomes, width).unwrap_or_default();
    let rows: Vec<(u32, Vec<TickOutcome>)> = tick
        .direct
        .iter()
        .map(|(pod, row)| (*pod, outcomes(row, width).unwrap_or_default()))
        .collect();
    let looks: Vec<PodTick<'_>> = rows
        .iter()
        .filter_map(|(number, outcomes)| {
            let pod = pods.iter().find(|pod| pod.pod == *number)?;
            let mut took = tick.direct_us.iter().filter(|(of, _)| of == number);
            Some(PodTick {
                pod: pod.pod,
                side: pod.side,
                ready_tick: pod.ready_tick,
                outcomes,
                latency_us: took.next().map_or(&[], |(_, took)| took),
            })
        })
        .collect();
    let dependencies = outcomes(&tick.dependencies, tick.dependencies.chars().count());
    analysis.tick(&Tick {
        outcomes: &own,
        direct: &looks,
        pods: &tick.pods,
        scrapes: &tick.scrapes,
        rollout: &tick.rollout,
        dependencies: &dependencies.unwrap_or_default(),
        latency_us: &tick.us,
    });
}

/// The marks of a row.
pub fn outcomes(row: &str, width: usize) -> Result<Vec<TickOutcome>, String> {
    let outcomes: Option<Vec<TickOutcome>> = row.chars().map(TickOutcome::of).collect();
    match outcomes {
        Some(outcomes) if outcomes.len() == width => Ok(outcomes),
        Some(outcomes) => Err(format!(
            "a row of {} marks for {width} endpoints",
            outcomes.len()
        )),
        None => Err("a row with another character than . x - _ l r".into()),
    }
}

/// The row of marks.
pub fn row(outcomes: &[TickOutcome]) -> Box<str> {
    outcomes
        .iter()
        .map(|mark| mark.letter())
        .collect::<String>()
        .into()
}

fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>, most: u64) -> io::Result<usize> {
    line.clear();
    io::Read::take(reader, most).read_until(b'\n', line)
}

fn parse(line: &[u8]) -> Result<RecordingLine, String> {
    if !line.ends_with(b"\n") {
        return Err("the line is cut off".into());
    }
    serde_json::from_slice(line).map_err(|error| error.to_string())
}

/// The version of a head that this program cannot read otherwise.
fn version_of(line: &[u8]) -> Option<u32> {
    #[derive(Deserialize)]
    struct VersionedLine {
        version: u32,
    }
    serde_json::from_slice::<VersionedLine>(line)
        .ok()
        .map(|head| head.version)
}

#[cfg(test)]
mod tests;
