//! The rule in small: what each path needs, and that the state survives being saved.

use super::*;

fn start(endpoints: usize) -> AnalysisStart {
    AnalysisStart {
        endpoints: (0..endpoints).map(|at| format!("e{at}").into()).collect(),
        baseline: vec![(0, 3600); endpoints],
        failing_at_start: vec![false; endpoints],
        settled_at: Some(0.0),
        ..AnalysisStart::default()
    }
}

fn each_second() -> Rule {
    Rule {
        interval_s: 1.0,
        ..Rule::default()
    }
}

fn feed<'a>(watch: &'a mut Analysis, marks: &[TickOutcome], ticks: u32) -> Option<&'a Regression> {
    for _ in 0..ticks {
        let tick = Tick {
            marks,
            ..Tick::default()
        };
        if watch.tick(&tick).is_some() {
            break;
        }
    }
    watch.finding()
}

#[test]
fn a_total_outage_is_found_in_sixteen_ticks_and_no_earlier() {
    let mut watch = Analysis::new(each_second(), &start(4)).unwrap();
    assert_eq!(feed(&mut watch, &[TickOutcome::Bad; 4], 15), None);
    let finding = feed(&mut watch, &[TickOutcome::Bad; 4], 1).unwrap();
    assert_eq!(finding.reason, RegressionReason::HardDownAll);
    assert_eq!(finding.tick, 15);
}

#[test]
fn after_a_verdict_further_ticks_change_nothing() {
    let mut watch = Analysis::new(each_second(), &start(2)).unwrap();
    feed(&mut watch, &[TickOutcome::Bad; 2], 16);
    let convicted = watch.clone();
    feed(&mut watch, &[TickOutcome::Good; 2], 50);
    assert_eq!(watch, convicted);
    assert_eq!(watch.conclude().reason(), "hard_down_all");
}

#[test]
fn a_state_that_was_saved_goes_on_as_if_nothing_had_been() {
    let mut whole = Analysis::new(each_second(), &start(3)).unwrap();
    let mut halves = whole.clone();
    let flaky = |tick: u32| {
        [
            mark(tick.is_multiple_of(7)),
            mark(tick.is_multiple_of(11)),
            TickOutcome::Good,
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
    marks: TickOutcome,
) -> Analysis {
    let start = AnalysisStart {
        workloads: Some(workloads),
        ..start(2)
    };
    let mut watch = Analysis::new(each_second(), &start).unwrap();
    let event = |(workload, what): &(u16, WorkloadChange)| WorkloadEvent {
        t: 0.0,
        workload: *workload,
        what: *what,
    };
    let rollout: Vec<WorkloadEvent> = events.iter().map(event).collect();
    let mut tick = Tick {
        marks: &[marks; 2],
        rollout: &rollout,
        ..Tick::default()
    };
    while !watch.is_over() && watch.finding().is_none() {
        watch.tick(&tick);
        tick.rollout = &[];
    }
    watch
}

#[test]
fn a_strategy_that_replaces_no_pods_by_itself_is_complete_without_new_ones() {
    let complete = [(0, WorkloadChange::Complete)];
    let watch = with_workloads(vec![workload("web", None)], &complete, TickOutcome::Good);
    assert_eq!(
        watch.conclude(),
        Verdict::Inconclusive(InconclusiveReason::NotRolledOut)
    );
    let watch = with_workloads(vec![workload("web", None)], &[], TickOutcome::Good);
    assert_eq!(watch.conclude().reason(), "not_ready:web");
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
        let mut watch = Analysis::new(each_second(), &start).unwrap();
        let tick = Tick {
            marks: &[TickOutcome::Good],
            pods: std::slice::from_ref(&looping),
            ..Tick::default()
        };
        watch.tick(&tick).unwrap().text.clone()
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
    let watch = with_workloads(two([None, None]), &held(&[1]), TickOutcome::Bad);
    assert_eq!(watch.conclude().reason(), "hard_down_all");
    let watch = with_workloads(two([None, None]), &held(&[0, 1]), TickOutcome::Bad);
    assert_eq!(watch.finding(), None);
    let mapped = two([Some(vec![0, 1]), Some(Vec::new())]);
    let watch = with_workloads(mapped.clone(), &held(&[1]), TickOutcome::Bad);
    assert_eq!(watch.conclude().reason(), "hard_down_all");
    // No probe says anything, and the other part is asked for its pods.
    let watch = with_workloads(mapped, &held(&[0]), TickOutcome::Bad);
    assert_eq!(watch.conclude().reason(), "not_ready:jobs");
}

fn mark(bad: bool) -> TickOutcome {
    if bad {
        TickOutcome::Bad
    } else {
        TickOutcome::Good
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
    backwards.settled_at = Some(-1.0);
    assert!(refusal(&backwards).starts_with("settled_at is -1"));
}

fn refusal(start: &AnalysisStart) -> String {
    Analysis::new(each_second(), start).unwrap_err().to_string()
}

#[test]
fn a_long_watch_with_a_large_clip_stays_finite() {
    let rule = Rule {
        interval_s: 15.0,
        watch_s: 86_400.0,
        // No endpoint is ever down for long enough, and no increase is large enough: only the evidence grows.
        hold_s: 3600.0,
        alpha_hard: 1e-12,
        margin: 1.0,
        endpoint_margin: 1.0,
        ..Rule::default()
    };
    let mut watch = Analysis::new(rule, &start(1)).unwrap();
    while !watch.is_over() {
        let good = watch.ticks().is_multiple_of(200);
        feed(&mut watch, &[mark(!good)], 1);
        assert!(watch.log10_e().is_finite() && watch.is_sound());
    }
    assert!(watch.log10_e() > 308.0, "{}", watch.log10_e());
}

#[test]
fn the_text_of_a_rise_has_every_number() {
    let mut watch = Analysis::new(each_second(), &start(4)).unwrap();
    let mut text = String::new();
    for now in 0..60u32 {
        let one = [
            mark(now.is_multiple_of(2)),
            TickOutcome::Good,
            TickOutcome::Good,
            TickOutcome::Good,
        ];
        if let Some(finding) = feed(&mut watch, &one, 1) {
            text.clone_from(&finding.text);
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
    let mut watch = Analysis::new(each_second(), &start(2)).unwrap();
    assert_eq!(feed(&mut watch, &[TickOutcome::NotDue; 2], 300), None);
    assert!(watch.is_over());
    assert_eq!(
        watch.conclude(),
        Verdict::Inconclusive(InconclusiveReason::Coverage)
    );
}

/// An analysis of four probes in the middle, with ten pods that are asked directly and answers that are timed.
#[test]
fn what_is_stored_of_a_watch_is_bounded() {
    let start = AnalysisStart {
        baseline: vec![(36, 3600); 4],
        settled_at: None,
        direct: true,
        latency: vec![
            vec![
                (bucket(5000), 1000),
                (bucket(9000), 2400),
                (bucket(20_000), 200)
            ];
            4
        ],
        workloads: Some(vec![workload("Deployment web", None)]),
        ..start(4)
    };
    let mut watch = Analysis::new(each_second(), &start).unwrap();
    let took = vec![Some(8000); 4];
    for tick in 0..200_u32 {
        let answer = |at: u32| mark((tick * 5 + at).is_multiple_of(97));
        let marks: Vec<TickOutcome> = (0..4).map(answer).collect();
        let good = [TickOutcome::Good; 4];
        let looks: Vec<PodTick<'_>> = (0..10)
            .map(|pod| PodTick {
                pod,
                side: if pod < 5 { PodSide::Old } else { PodSide::New },
                ready_tick: 0,
                marks: if pod == 2 { &marks } else { &good },
                latency_us: &took,
            })
            .collect();
        let rollout = match tick {
            12 => vec![WorkloadChange::Ready],
            40 => vec![WorkloadChange::Complete],
            _ => Vec::new(),
        };
        let rollout: Vec<WorkloadEvent> = rollout
            .into_iter()
            .map(|what| WorkloadEvent {
                t: f64::from(tick),
                workload: 0,
                what,
            })
            .collect();
        watch.tick(&Tick {
            marks: &marks,
            direct: &looks,
            rollout: &rollout,
            latency_us: &took,
            ..Tick::default()
        });
    }
    assert_eq!(watch.finding(), None);
    let text = serde_json::to_string(&watch).unwrap();
    assert!(text.len() <= 28 * 1024, "{} bytes", text.len());
    assert_eq!(serde_json::from_str::<Analysis>(&text).unwrap(), watch);
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
    assert_eq!(serde_json::from_value::<Analysis>(value).unwrap(), watch);
}
