//! Measures the phases of a probe, and records its steps.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use super::response_meter::ResponseMeter;

use crate::core::probe_result::{PhaseTimes, ResponseFacts};
use crate::core::units::Moment;

/// The current stage of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProbeStage {
    Resolve,
    Connect,
    Proxy,
    Tls,
    /// Sending the request, and waiting for the head of the answer.
    Processing,
    /// Talking TCP.
    Dialogue,
    /// Reading the body, and everything after.
    Transfer,
}

/// Notes the phases: each moment belongs to exactly one, so that they sum up to the whole.
pub(super) struct ProbeTiming<'a> {
    clock: fn() -> Moment,
    started: Moment,
    mark: Moment,
    /// `None` before the first: what is prepared until then counts as part of it.
    stage: Option<ProbeStage>,
    phases: PhaseTimes,
    pub(super) answer: ResponseFacts,
    /// What arrived instead of the expected, for the text of a timeout.
    pub(super) instead: Option<String>,
    /// Of the connection that is used now.
    pub(super) meter: Option<Arc<ResponseMeter>>,
    transcript: Option<&'a mut Transcript>,
}

impl<'a> ProbeTiming<'a> {
    pub(super) fn start(clock: fn() -> Moment, transcript: Option<&'a mut Transcript>) -> Self {
        let started = clock();
        Self {
            clock,
            started,
            mark: started,
            stage: None,
            phases: PhaseTimes::default(),
            answer: ResponseFacts::default(),
            instead: None,
            meter: None,
            transcript,
        }
    }

    /// Time up to now belongs to the stage before; from now on to this one.
    pub(super) fn enter(&mut self, stage: ProbeStage) -> Moment {
        let now = (self.clock)();
        let passed = now.since(self.mark);
        let phase = match self.stage.replace(stage).unwrap_or(stage) {
            ProbeStage::Resolve => &mut self.phases.resolve,
            ProbeStage::Connect | ProbeStage::Proxy => &mut self.phases.connect,
            ProbeStage::Tls => &mut self.phases.tls,
            ProbeStage::Processing | ProbeStage::Dialogue => &mut self.phases.processing,
            ProbeStage::Transfer => &mut self.phases.transfer,
        };
        *phase += passed;
        self.mark = now;
        now
    }

    /// A redirect is followed: forgets what arrived before.
    pub(super) fn next_redirect(&mut self) {
        self.answer = ResponseFacts {
            redirects: self.answer.redirects.saturating_add(1),
            resolved: self.answer.resolved,
            ..ResponseFacts::default()
        };
        self.meter = None;
    }

    /// What arrived instead of the expected, in words.
    pub(super) fn instead(&mut self) -> Option<String> {
        let bytes = self.meter.as_ref().map_or(0, |meter| meter.bytes());
        let waits = matches!(self.stage, Some(ProbeStage::Processing | ProbeStage::Tls));
        self.instead.take().or_else(|| {
            (waits && bytes > 0).then(|| format!("{bytes} bytes came, which are not all of it"))
        })
    }

    /// Whether a byte came since we last asked for something.
    pub(super) fn was_heard(&self) -> bool {
        self.meter.as_ref().is_some_and(|meter| meter.was_heard())
    }

    /// The part that is under way.
    pub(super) fn stage(&self) -> ProbeStage {
        self.stage.unwrap_or(ProbeStage::Connect)
    }

    pub(super) const fn started(&self) -> Moment {
        self.started
    }

    /// From the start to now.
    pub(super) fn elapsed(&self) -> Duration {
        (self.clock)().since(self.started)
    }

    /// Ends the probe: returns when, and the time of each phase.
    pub(super) fn finish(&mut self) -> (Moment, PhaseTimes) {
        let now = self.enter(self.stage());
        (now, self.phases)
    }

    /// Records a step, if requested.
    pub(super) fn note(&mut self, step: impl FnOnce(&mut String)) {
        let elapsed = self.transcript.is_some().then(|| self.elapsed());
        if let (Some(transcript), Some(elapsed)) = (&mut self.transcript, elapsed) {
            transcript.add(elapsed, step);
        }
    }
}

/// The steps of a probe in words, for `leadsman probe --verbose` and `/probe?debug=true`. Contains no secret: names of
/// headers, and none of the values that we send.
#[derive(Debug, Default)]
pub struct Transcript {
    steps: Vec<(Duration, String)>,
    left_out: usize,
}

/// Maximum number of steps: a probe with twenty redirects and a long dialogue has fewer.
const MAX_STEPS: usize = 200;

/// The longest step; a target chooses what is in it.
const MAX_STEP: usize = 300;

impl Transcript {
    fn add(&mut self, at: Duration, step: impl FnOnce(&mut String)) {
        if self.steps.len() >= MAX_STEPS {
            self.left_out += 1;
            return;
        }
        let mut text = String::new();
        step(&mut text);
        self.steps.push((at, cut(&text, MAX_STEP)));
    }

    /// One line for each step, with the time since the start.
    pub fn lines(&self) -> Vec<String> {
        let mut lines: Vec<_> = self
            .steps
            .iter()
            .map(|(at, step)| format!("{:>9.3} ms  {step}", at.as_secs_f64() * 1e3))
            .collect();
        if self.left_out > 0 {
            lines.push(format!("and {} more", self.left_out));
        }
        lines
    }
}

/// At most `most` bytes of a text, with control characters made visible.
pub(super) fn cut(text: &str, most: usize) -> String {
    let mut short = String::new();
    // Where the text ends if it has to make room for the sign that something is missing.
    let mut room = 0;
    for character in text.chars() {
        if short.len() + '…'.len_utf8() <= most {
            room = short.len();
        }
        if character.is_control() {
            let _ = write!(short, "{}", character.escape_default());
        } else {
            short.push(character);
        }
        if short.len() > most {
            short.truncate(room);
            short.push('…');
            break;
        }
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    thread_local! {
        static NOW: Cell<u64> = const { Cell::new(0) };
    }

    fn now() -> Moment {
        Moment::after_boot(Duration::from_millis(NOW.get()))
    }

    fn wait(milliseconds: u64) {
        NOW.set(NOW.get() + milliseconds);
    }

    #[test]
    fn each_moment_belongs_to_one_phase() {
        let mut timing = ProbeTiming::start(now, None);
        wait(1);
        // What was prepared before the first stage is a part of it.
        timing.enter(ProbeStage::Resolve);
        wait(2);
        timing.enter(ProbeStage::Connect);
        wait(4);
        timing.enter(ProbeStage::Proxy);
        wait(8);
        timing.enter(ProbeStage::Tls);
        wait(16);
        timing.enter(ProbeStage::Processing);
        wait(32);
        timing.enter(ProbeStage::Transfer);
        wait(64);
        // A second hop adds to the first.
        timing.enter(ProbeStage::Connect);
        wait(128);
        timing.enter(ProbeStage::Dialogue);
        wait(256);
        let (finished, phases) = timing.finish();
        let long_windows = phases.named().map(|(_, span)| span.as_millis());
        assert_eq!(long_windows, [3, 4 + 8 + 128, 16, 32 + 256, 64]);
        assert_eq!(phases.total(), finished.since(timing.started()));
    }

    #[test]
    fn a_result_that_ends_at_once_has_its_time_too() {
        let mut timing = ProbeTiming::start(now, None);
        wait(5);
        let (finished, phases) = timing.finish();
        assert_eq!(phases.total(), finished.since(timing.started()));
        assert_eq!(phases.total(), Duration::from_millis(5));
    }

    #[test]
    fn a_transcript_is_bounded() {
        let mut transcript = Transcript::default();
        for _ in 0..1000 {
            transcript.add(Duration::ZERO, |step| *step = "x".repeat(10_000));
        }
        let lines = transcript.lines();
        assert_eq!(lines.len(), MAX_STEPS + 1);
        assert!(lines.iter().all(|line| line.len() < MAX_STEP + 20));
        assert_eq!(lines.last().unwrap(), "and 800 more");
    }

    #[test]
    fn what_fits_is_not_cut() {
        for (text, most, expected) in [
            ("abcdef", 6, "abcdef"),
            ("abcdefg", 6, "abc…"),
            ("ab\ncd", 6, "ab\\ncd"),
            ("ab\ncde", 6, "ab…"),
            ("ééé", 6, "ééé"),
            ("éééé", 6, "é…"),
            ("", 0, ""),
        ] {
            assert_eq!(cut(text, most), expected, "{text:?}");
        }
    }
}
