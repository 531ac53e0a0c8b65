//! The live view: redrawn in place on a terminal, plain lines elsewhere.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cli::terminal;
use crate::core::analysis::number;
use crate::core::probe_result::Outcome;
use crate::core::probe_stats::TrackedProbe;
use crate::http::status::GuardView;
use crate::platform::clock;

/// Without a terminal there is a line so often.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Results that are shown of each probe.
const SHOWN: usize = 48;

/// Width of the bar of the e-value.
const BAR: usize = 30;

pub(super) struct Screen {
    live: bool,
    colours: bool,
    /// Lines of the view that stand on the terminal now.
    drawn: usize,
    last_line: Option<Instant>,
}

impl Screen {
    pub(super) fn new() -> Self {
        Self {
            live: terminal::is_watched(),
            colours: terminal::has_colours(),
            drawn: 0,
            last_line: None,
        }
    }

    /// A line that stays.
    pub(super) fn say(&mut self, line: &str) {
        self.wipe();
        say!("{line}");
    }

    /// Something has happened.
    pub(super) fn event(&mut self, after: Duration, text: &str) {
        self.say(&format!("{:>6.1} s  {text}", after.as_secs_f64()));
    }

    /// The view is over.
    pub(super) fn finish(&mut self) {
        self.wipe();
    }

    /// How everything stands now.
    pub(super) fn draw(&mut self, view: &GuardView, probes: &[Arc<TrackedProbe>], more: &str) {
        if !self.live {
            if self
                .last_line
                .is_none_or(|last| last.elapsed() >= LINE_EVERY)
            {
                self.last_line = Some(Instant::now());
                say!("          {}", plain(view, probes, more));
            }
            return;
        }
        self.wipe();
        for probe in probes {
            let (name, results, rate) = sparkline(probe, self.colours);
            terminal::print_coloured(&format!("  {name:<6} {results} {rate}"));
            self.drawn += 1;
        }
        for line in standing(view, more) {
            say!("  {line}");
            self.drawn += 1;
        }
    }

    fn wipe(&mut self) {
        if self.drawn > 0 {
            terminal::take_back(self.drawn);
            self.drawn = 0;
        }
    }
}

fn sparkline(probe: &Arc<TrackedProbe>, coloured: bool) -> (String, String, String) {
    let name = probe.probe().id.probe.to_string();
    let mut stats = probe.lock();
    let recent: Vec<Outcome> = stats.recent().map(|(outcome, _)| outcome).collect();
    let view = stats.view(clock::now());
    let from = recent.len().saturating_sub(SHOWN);
    let mut text = String::new();
    for outcome in &recent[from..] {
        match (outcome, coloured) {
            (Outcome::Success, true) => text.push_str("\x1b[32m.\x1b[0m"),
            (Outcome::Success, false) => text.push('.'),
            (Outcome::Failure(_), true) => text.push_str("\x1b[1;31mx\x1b[0m"),
            (Outcome::Failure(_), false) => text.push('x'),
            (Outcome::Unknown(_), _) => text.push('-'),
        }
    }
    text.extend(std::iter::repeat_n(' ', SHOWN - (recent.len() - from)));
    let rate = view.window.error_rate().map_or_else(String::new, |rate| {
        format!("{:>5.1} % errors in a minute", rate.ratio() * 100.0)
    });
    (name, text, rate)
}

fn standing(view: &GuardView, more: &str) -> Vec<String> {
    let mut lines = vec![format!(
        "{}{}",
        view.says,
        if more.is_empty() {
            String::new()
        } else {
            format!("; {more}")
        }
    )];
    if let Some(analysis) = &view.analysis {
        // On a scale of powers of ten from 1 to the threshold.
        let share =
            (analysis.e_value.max(1.0).log10() / analysis.threshold.log10()).clamp(0.0, 1.0);
        let bar: String = (0..BAR)
            .map(|at| {
                if (at as f64) < share * BAR as f64 {
                    '#'
                } else {
                    '.'
                }
            })
            .collect();
        let e = number(analysis.e_value);
        lines.push(format!(
            "evidence [{bar}] e-value {e} of {:.0} that reject",
            analysis.threshold
        ));
        lines.push(format!(
            "watch {:.0} s of {:.0} s",
            analysis.elapsed_s, analysis.length_s
        ));
    }
    let clocks: Vec<String> = view
        .steps
        .iter()
        .filter_map(|step| {
            Some(format!(
                "{} {:.0}/{:.0} s",
                step.step, step.took_s?, step.limit_s
            ))
        })
        .collect();
    if view.analysis.is_none() && view.phase != "idle" && !clocks.is_empty() {
        lines.push(format!("against the runbook: {}", clocks.join(", ")));
    }
    lines
}

fn plain(view: &GuardView, probes: &[Arc<TrackedProbe>], more: &str) -> String {
    let mut text = standing(view, more).join("; ");
    for probe in probes {
        let (name, _, rate) = sparkline(probe, false);
        let _ = write!(
            text,
            "; {name} {}",
            rate.trim().replace(" errors in a minute", "")
        );
    }
    text
}
