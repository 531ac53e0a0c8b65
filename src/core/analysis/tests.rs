//! The rule in small: what each path needs, and that the state survives being saved.

use super::*;

fn start(endpoints: usize) -> AnalysisStart {
    AnalysisStart {
        endpoints: (0..endpoints).map(|at| format!("e{at}").into()).collect(),
        baseline: vec![(0, 3600); endpoints],
        failing_at_start: vec![false; endpoints],
        complete_at: Some(0.0),
        ..AnalysisStart::default()
    }
}

fn each_second() -> Rule {
    Rule {
        interval_s: 1.0,
        ..Rule::default()
    }
}

fn feed<'a>(
    analysis: &'a mut Analysis,
    outcomes: &[TickOutcome],
    ticks: u32,
) -> Option<&'a Regression> {
    for _ in 0..ticks {
        let tick = Tick {
            outcomes,
            ..Tick::default()
        };
        if analysis.tick(&tick).is_some() {
            break;
        }
    }
    analysis.regression()
}

#[test]
fn a_total_outage_is_found_in_sixteen_ticks_and_no_earlier() {
    let mut analysis = Analysis::new(each_second(), &start(4)).unwrap();
    assert_eq!(feed(&mut analysis, &[TickOutcome::Failure; 4], 15), None);
    let regression = feed(&mut analysis, &[TickOutcome::Failure; 4], 1).unwrap();
    assert_eq!(regression.reason, RegressionReason::HardDownAll);
    assert_eq!(regression.tick, 15);
}

#[test]
fn after_a_verdict_further_ticks_change_nothing() {
    let mut analysis = Analysis::new(each_second(), &start(2)).unwrap();
    feed(&mut analysis, &[TickOutcome::Failure; 2], 16);
    let rejected = analysis.clone();
    feed(&mut analysis, &[TickOutcome::Success; 2], 50);
    assert_eq!(analysis, rejected);
    assert_eq!(analysis.conclude().reason(), "hard_down_all");
}

#[test]
fn a_state_that_was_saved_goes_on_as_if_nothing_had_been() {
    let mut whole = Analysis::new(each_second(), &start(3)).unwrap();
    let mut halves = whole.clone();
    let flaky = |tick: u32| {
        [
            outcome(tick.is_multiple_of(7)),
            outcome(tick.is_multiple_of(11)),
            TickOutcome::Success,
        ]
    };
    for now in 0..120 {
        feed(&mut whole, &flaky(now), 1);
        feed(&mut halves, &flaky(now), 1);
        let saved = serde_json::to_string(&halves).unwrap();
        halves = serde_json::from_str(&saved).unwrap();
        assert!(halves.is_sound());
        assert_eq!(whole, halves, "tick {now}");
    }
}

fn workload(name: &str, probes: Option<Vec<u16>>) -> AnalyzedWorkload {
    AnalyzedWorkload {
        name: name.into(),
        change: Some(WorkloadDiff::Template),
        unknown: None,
        was_complete: true,
        stops_first: false,
        probes,
        template_at: Some(0.0),
        gap_s: 0.0,
        ready_s: 0.0,
        restarts: 0,
    }
}

/// Good answers for so long, after these events; the verdict.
fn with_workloads(
    workloads: Vec<AnalyzedWorkload>,
    events: &[(u16, WorkloadChange)],
    outcomes: TickOutcome,
) -> Analysis {
    let start = AnalysisStart {
        workloads: Some(workloads),
        ..start(2)
    };
    let mut analysis = Analysis::new(each_second(), &start).unwrap();
    let event = |(workload, what): &(u16, WorkloadChange)| WorkloadEvent {
        t: 0.0,
        workload: *workload,
        what: *what,
    };
    let rollout: Vec<WorkloadEvent> = events.iter().map(event).collect();
    let mut tick = Tick {
        outcomes: &[outcomes; 2],
        rollout: &rollout,
        ..Tick::default()
    };
    while !analysis.is_over() && analysis.regression().is_none() {
        analysis.tick(&tick);
        tick.rollout = &[];
    }
    analysis
}

#[test]
fn a_strategy_that_replaces_no_pods_by_itself_is_complete_without_new_ones() {
    let complete = [(0, WorkloadChange::Complete)];
    let analysis = with_workloads(vec![workload("web", None)], &complete, TickOutcome::Success);
    assert_eq!(
        analysis.conclude(),
        Verdict::Inconclusive(InconclusiveReason::NotRolledOut)
    );
    let analysis = with_workloads(vec![workload("web", None)], &[], TickOutcome::Success);
    assert_eq!(analysis.conclude().reason(), "not_ready:web");
}

/// What is not known is not passed over in silence, and nothing is said of it where there is nothing to compare.
#[test]
fn where_it_is_not_known_what_changed_that_is_said() {
    let why = "the record of revision 1 was not read";
    let looping = PodState {
        name: "web-1".into(),
        workload: "Deployment web".into(),
        container: "app".into(),
        restarts: 3,
        crash_loop_back_off: true,
        ..PodState::default()
    };
    let text = |workloads| {
        let start = AnalysisStart {
            workloads,
            ..start(1)
        };
        let mut analysis = Analysis::new(each_second(), &start).unwrap();
        let tick = Tick {
            outcomes: &[TickOutcome::Success],
            pods: std::slice::from_ref(&looping),
            ..Tick::default()
        };
        analysis.tick(&tick).unwrap().text.clone()
    };
    let seen =
        "new pod of Deployment web restarted 3 times (container app, CrashLoopBackOff)".to_owned();
    let unknown = AnalyzedWorkload {
        unknown: Some(why.into()),
        ..workload("Deployment web", None)
    };
    assert_eq!(
        text(Some(vec![unknown])),
        format!("{seen}; whether this revision changed Deployment web is not known: {why}")
    );
    assert_eq!(text(Some(vec![workload("Deployment web", None)])), seen);
    assert_eq!(text(None), seen);
}

#[test]
fn a_part_at_zero_silences_only_the_probes_that_ask_it() {
    let held = |places: &[u16]| -> Vec<(u16, WorkloadChange)> {
        let held = places.iter().map(|at| (*at, WorkloadChange::Held));
        held.collect()
    };
    let two = |probes: [Option<Vec<u16>>; 2]| {
        let [web, jobs] = probes;
        vec![workload("web", web), workload("jobs", jobs)]
    };
    // Nobody knows who asks it: the failures of the others count.
    let analysis = with_workloads(two([None, None]), &held(&[1]), TickOutcome::Failure);
    assert_eq!(analysis.conclude().reason(), "hard_down_all");
    let analysis = with_workloads(two([None, None]), &held(&[0, 1]), TickOutcome::Failure);
    assert_eq!(analysis.regression(), None);
    let mapped = two([Some(vec![0, 1]), Some(Vec::new())]);
    let analysis = with_workloads(mapped.clone(), &held(&[1]), TickOutcome::Failure);
    assert_eq!(analysis.conclude().reason(), "hard_down_all");
    // No probe says anything, and the other part is asked for its pods.
    let analysis = with_workloads(mapped, &held(&[0]), TickOutcome::Failure);
    assert_eq!(analysis.conclude().reason(), "not_ready:jobs");
}

fn outcome(bad: bool) -> TickOutcome {
    if bad {
        TickOutcome::Failure
    } else {
        TickOutcome::Success
    }
}

#[test]
fn a_wrong_start_is_refused_by_the_name_of_the_field() {
    let none = start(0);
    assert!(refusal(&none).starts_with("endpoints has 0 names"));
    let mut impossible = start(2);
    impossible.baseline[1] = (5, 4);
    assert_eq!(refusal(&impossible), "baseline[1] has 5 failures of 4");
    let mut ragged = start(2);
    ragged.failing_at_start.pop();
    assert!(refusal(&ragged).starts_with("failing_at_start has 1 entries"));
    let mut backwards = start(1);
    backwards.complete_at = Some(-1.0);
    assert!(refusal(&backwards).starts_with("settled_at is -1"));
}

fn refusal(start: &AnalysisStart) -> String {
    Analysis::new(each_second(), start).unwrap_err().to_string()
}

#[test]
fn a_long_watch_with_a_large_clip_stays_finite() {
    let rule = Rule {
        interval_s: 15.0,
        analysis_s: 86_400.0,
        // No endpoint is ever down for long enough, and no increase is large enough: only the evidence grows.
        hold_s: 3600.0,
        alpha_hard: 1e-12,
        margin: 1.0,
        endpoint_margin: 1.0,
        ..Rule::default()
    };
    let mut analysis = Analysis::new(rule, &start(1)).unwrap();
    while !analysis.is_over() {
        let good = analysis.ticks().is_multiple_of(200);
        feed(&mut analysis, &[outcome(!good)], 1);
        assert!(analysis.log10_e().is_finite() && analysis.is_sound());
    }
    assert!(analysis.log10_e() > 308.0, "{}", analysis.log10_e());
}

#[test]
fn the_text_of_a_rise_has_every_number() {
    let mut analysis = Analysis::new(each_second(), &start(4)).unwrap();
    let mut text = String::new();
    for now in 0..60u32 {
        let one = [
            outcome(now.is_multiple_of(2)),
            TickOutcome::Success,
            TickOutcome::Success,
            TickOutcome::Success,
        ];
        if let Some(regression) = feed(&mut analysis, &one, 1) {
            text.clone_from(&regression.text);
            break;
        }
    }
    for part in [
        "errors ",
        " s vs 0/",
        " before; increase ",
        " points > ",
        "e-value ",
        " > 100",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

#[test]
fn a_watch_in_which_nothing_was_due_says_nothing() {
    let mut analysis = Analysis::new(each_second(), &start(2)).unwrap();
    assert_eq!(feed(&mut analysis, &[TickOutcome::NotDue; 2], 300), None);
    assert!(analysis.is_over());
    assert_eq!(
        analysis.conclude(),
        Verdict::Inconclusive(InconclusiveReason::Coverage)
    );
}

/// A release with ten pods that are asked directly, and answers that are timed.
fn timed(endpoints: usize, requests: Option<RequestsBefore>) -> Analysis {
    let before = vec![
        (bucket(5000), 1000),
        (bucket(9000), 2400),
        (bucket(20_000), 200),
    ];
    let start = AnalysisStart {
        baseline: vec![(36, 3600); endpoints],
        complete_at: None,
        direct: true,
        requests,
        latency: vec![before; endpoints],
        workloads: Some(vec![workload("Deployment web", None)]),
        ..start(endpoints)
    };
    Analysis::new(each_second(), &start).unwrap()
}

/// Ticks of such a release; from tick 200 on some of what is asked fails and new pods are slow.
fn go_on(analysis: &mut Analysis, ticks: std::ops::Range<u32>) {
    let count = analysis.endpoints().count();
    for tick in ticks {
        let is_bad = tick >= 200;
        let row = |every: u32| -> Vec<TickOutcome> {
            let marks = (tick * 5..).take(count);
            marks.map(|at| outcome(at.is_multiple_of(every))).collect()
        };
        let (seldom, often) = (row(97), row(if is_bad { 11 } else { 97 }));
        let took = |us: u32| vec![Some(us); count];
        let (fast, slow) = (took(8000), took(if is_bad { 60_000 } else { 8000 }));
        let looks: Vec<PodTick<'_>> = (0..10)
            .map(|pod| {
                let is_old = pod < 5;
                PodTick {
                    pod,
                    side: if is_old { PodSide::Old } else { PodSide::New },
                    ready_tick: 0,
                    outcomes: if pod == 7 { &often } else { &seldom },
                    latency_us: if is_old { &fast } else { &slow },
                }
            })
            .collect();
        let what = match tick {
            12 => Some(WorkloadChange::Ready),
            40 => Some(WorkloadChange::Complete),
            _ => None,
        };
        let t = f64::from(tick);
        let event = |what| WorkloadEvent {
            t,
            workload: 0,
            what,
        };
        let rollout: Vec<WorkloadEvent> = what.into_iter().map(event).collect();
        let scrape = [RequestScrape {
            t,
            failed: 1,
            total: 150,
        }];
        analysis.tick(&Tick {
            outcomes: &often,
            direct: &looks,
            rollout: &rollout,
            scrapes: if tick.is_multiple_of(15) {
                &scrape
            } else {
                &[]
            },
            latency_us: &slow,
            ..Tick::default()
        });
    }
}

/// The bound of the issue: 4 probes, ten pods that are asked directly, timed answers.
#[test]
fn what_a_watch_takes_is_bounded() {
    let mut analysis = timed(4, None);
    let bytes = analysis.bytes();
    assert!(bytes <= 12 * 1024, "{bytes} bytes");
    go_on(&mut analysis, 0..200);
    assert_eq!(analysis.bytes(), bytes);
    let text = serde_json::to_string(&analysis).unwrap();
    let restored: Analysis = serde_json::from_str(&text).unwrap();
    assert_eq!((analysis.slower(), analysis.regression()), (None, None));
    // Without sharing its rule again it would take half a KiB more.
    assert!(restored.bytes() <= 12 * 1024, "{} bytes", restored.bytes());
}

/// An analysis of four probes in the middle, with ten pods that are asked directly and answers that are timed.
#[test]
fn what_is_stored_of_a_watch_is_bounded() {
    let mut analysis = timed(4, None);
    go_on(&mut analysis, 0..200);
    assert_eq!(analysis.regression(), None);
    let text = serde_json::to_string(&analysis).unwrap();
    assert!(text.len() <= 22 * 1024, "{} bytes", text.len());
    assert_eq!(serde_json::from_str::<Analysis>(&text).unwrap(), analysis);
    // What was stored before equal entries were one is read as well.
    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let direct = &mut value["failures"]["new_pods"]["direct"];
    for list in ["warm", "runs"] {
        let runs = direct[list].as_array().unwrap().clone();
        let each = runs.iter().flat_map(|run| match run {
            serde_json::Value::Array(run) => {
                let times = usize::try_from(run[1].as_u64().unwrap()).unwrap();
                vec![run[0].clone(); times]
            }
            one => vec![one.clone()],
        });
        direct[list] = each.collect();
    }
    assert!(value.to_string().len() > text.len() + 5000);
    assert_eq!(serde_json::from_value::<Analysis>(value).unwrap(), analysis);
}

/// A state that was written in the middle of such a release, while numbers were still stored with all that follows from
/// them, goes on as if nothing had been.
#[test]
fn a_state_that_was_written_before_it_was_packed_is_read() {
    let mut written: Analysis =
        serde_json::from_str(include_str!("state/before_packing.json")).unwrap();
    assert!(written.is_sound());
    let requests = RequestsBefore {
        interval_s: 15.0,
        failed: 10,
        total: 9000,
    };
    let mut analysis = timed(2, Some(requests));
    go_on(&mut analysis, 0..200);
    assert_eq!(written, analysis);
    go_on(&mut analysis, 200..600);
    go_on(&mut written, 200..600);
    assert_eq!(written, analysis);
    // What the version that wrote it came to.
    let regression = written.regression().unwrap();
    assert_eq!(regression.reason.to_string(), "error_rate:all endpoints");
    assert_eq!(regression.tick, 341);
    assert_eq!(regression.e, Some(137.840_036_513_928_25));
    let slower = written.slower().unwrap();
    assert_eq!((slower.tick, slower.e), (225, 114.696_994_166_907_63));
}
