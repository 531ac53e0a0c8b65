//! A recording is judged again to the same end, also when it was cut off.

use super::*;

fn head() -> RecordingHead {
    RecordingHead {
        version: VERSION,
        namespace: Namespace::new("shop"),
        release: ReleaseName::new("web"),
        revision: Revision(3),
        serving: Some(Revision(2)),
        began: Time::from_millis(1_700_000_000_000),
        mode: Mode::Enforce,
        rule: Rule {
            interval_s: 1.0,
            ..Rule::default()
        },
        start: AnalysisStart {
            endpoints: vec!["api".into(), "db".into()],
            baseline: vec![(0, 3600); 2],
            failing_at_start: vec![false; 2],
            complete_at: None,
            direct: true,
            ..AnalysisStart::default()
        },
        no_direct: None,
        goes_on: None,
    }
}

/// The bytes of a recording with these lines.
fn written(lines: &[RecordingLine]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for line in lines {
        serde_json::to_writer(&mut bytes, line).unwrap();
        bytes.push(b'\n');
    }
    bytes
}

/// A recording of a revision whose database answers nothing from the fifth tick on.
fn recorded() -> Vec<u8> {
    let mut lines = vec![
        RecordingLine::Head(Box::new(head())),
        RecordingLine::Pod(RecordedPod {
            pod: 0,
            name: "web-old".into(),
            side: PodSide::Old,
            ready_tick: 0,
        }),
    ];
    let mut recording = Recording {
        evidence: None,
        head: head(),
        pods: Vec::new(),
        ticks: Vec::new(),
        entries: Vec::new(),
        end: None,
        cut: None,
    };
    if let RecordingLine::Pod(pod) = &lines[1] {
        recording.pods.push(pod.clone());
    }
    let mut analysis = Analysis::new(head().rule, &head().start).unwrap();
    for tick in 0..300 {
        let recorded = RecordedTick {
            tick,
            outcomes: if tick < 5 { "..".into() } else { ".x".into() },
            direct: if tick < 3 {
                vec![(0, "..".into())]
            } else {
                Vec::new()
            },
            complete_at: (tick == 4).then_some(4.0),
            ..RecordedTick::default()
        };
        feed(&mut analysis, &recording.pods, &recorded);
        lines.push(RecordingLine::Tick(Box::new(recorded)));
        if analysis.regression().is_some() {
            break;
        }
    }
    lines.push(RecordingLine::End(RecordingEnd::of(&analysis)));
    written(&lines)
}

fn judged(recording: &Recording) -> Analysis {
    recording
        .judge(recording.head.rule.clone(), |_| {})
        .unwrap()
}

#[test]
fn a_recording_is_judged_to_the_same_end() {
    let recording = Recording::read(&recorded()[..]).unwrap();
    assert_eq!(recording.cut, None);
    let analysis = judged(&recording);
    assert!(recording.agrees(&analysis));
    assert_eq!(analysis.conclude().reason(), "hard_down:db");
    assert_eq!(RecordingEnd::of(&analysis).tick, 20);
}

#[test]
fn with_another_rule_it_may_end_otherwise() {
    let recording = Recording::read(&recorded()[..]).unwrap();
    let patient = Rule {
        hold_s: 200.0,
        ..recording.head.rule.clone()
    };
    let analysis = recording.judge(patient, |_| {}).unwrap();
    assert!(!recording.agrees(&analysis));
}

#[test]
fn cut_off_anywhere_it_is_judged_as_far_as_it_goes() {
    let bytes = recorded();
    let head = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    for end in (head..bytes.len()).step_by(17) {
        let recording = Recording::read(&bytes[..end]).unwrap();
        assert!(recording.cut.is_some(), "cut at {end}");
        let analysis = judged(&recording);
        assert_eq!(analysis.ticks() as usize, recording.ticks.len());
        assert!(!recording.agrees(&analysis));
    }
}

#[test]
fn a_broken_line_cuts_it_off_there_and_is_named() {
    let text = String::from_utf8(recorded()).unwrap();
    for (wrong, expected) in [
        (
            text.replace(r#""tick":7,"#, r#""tick":9,"#),
            "tick 9 where 7 is due",
        ),
        (text.replacen(r#"".x""#, r#"".?""#, 1), "another character"),
        (
            text.replacen(r#"".x""#, r#"".x.""#, 1),
            "a row of 3 marks for 2",
        ),
        (text.replacen(r#"{"line":"tick""#, "{", 3), "line 3: "),
    ] {
        let recording = Recording::read(wrong.as_bytes()).unwrap();
        let cut = recording.cut.unwrap();
        assert!(cut.contains(expected), "{cut}");
    }
}

#[test]
fn what_is_no_recording_or_a_newer_one_is_refused() {
    let refused = |bytes: &[u8]| Recording::read(bytes).unwrap_err().to_string();
    assert!(refused(b"").contains("line 1: the line is cut off"));
    assert!(refused(b"{}\n").contains("is no recording"));
    assert!(refused(b"\xff\xfe\n").contains("is no recording"));
    let newer =
        String::from_utf8(recorded())
            .unwrap()
            .replacen("\"version\":2", "\"version\":7", 1);
    assert!(refused(newer.as_bytes()).contains("format version 7"));
    assert!(
        refused(b"{\"line\":\"head\",\"version\":9,\"else\":1}\n").contains("format version 9")
    );
}

/// The same from the tenth tick on, by another replica, which was handed the watch as it stood.
fn gone_on_with() -> Vec<u8> {
    let whole = Recording::read(&recorded()[..]).unwrap();
    let mut analysis = Analysis::new(head().rule, &head().start).unwrap();
    for tick in &whole.ticks[..10] {
        feed(&mut analysis, &whole.pods, tick);
    }
    let mut lines = vec![RecordingLine::Head(Box::new(RecordingHead {
        start: AnalysisStart {
            endpoints: head().start.endpoints,
            ..AnalysisStart::default()
        },
        goes_on: Some(Box::new(analysis)),
        ..head()
    }))];
    lines.extend(whole.pods.iter().cloned().map(RecordingLine::Pod));
    let ticks = whole.ticks[10..].iter().cloned();
    lines.extend(ticks.map(|tick| RecordingLine::Tick(Box::new(tick))));
    lines.push(RecordingLine::End(whole.end.unwrap()));
    lines.push(RecordingLine::Evidence(Box::new(EvidenceBundle {
        missing: vec!["logs".into()],
        ..EvidenceBundle::default()
    })));
    written(&lines)
}

#[test]
fn gone_on_with_by_another_replica_it_is_incomplete_and_judged_to_the_same_end() {
    let recording = Recording::read(&gone_on_with()[..]).unwrap();
    let cut = recording.cut.clone().unwrap();
    assert!(cut.contains("begins in tick 10"), "{cut}");
    assert_eq!((recording.first_tick(), recording.next_tick()), (10, 21));
    assert_eq!(recording.evidence.as_ref().unwrap().missing, ["logs"]);
    let analysis = judged(&recording);
    assert!(recording.agrees(&analysis));
    assert_eq!(analysis.conclude().reason(), "hard_down:db");
    assert_eq!(RecordingEnd::of(&analysis).tick, 20);
}

#[test]
fn without_its_beginning_it_is_not_judged_by_another_rule() {
    let recording = Recording::read(&gone_on_with()[..]).unwrap();
    let patient = Rule {
        hold_s: 200.0,
        ..recording.head.rule.clone()
    };
    let error = recording.judge(patient, |_| {}).unwrap_err().to_string();
    assert!(error.contains("begins in tick 10"), "{error}");
}

#[test]
fn a_beginning_that_cannot_be_is_no_recording() {
    let text = String::from_utf8(gone_on_with()).unwrap();
    let other = text.replacen(r#""endpoints":["api","db"]"#, r#""endpoints":["api"]"#, 1);
    assert_ne!(other, text);
    let error = Recording::read(other.as_bytes()).unwrap_err().to_string();
    assert!(error.contains("cannot be"), "{error}");
}

/// Old pods answer well all the time; what the rollout did meanwhile is in the recording.
#[test]
fn a_rollout_that_is_not_complete_at_the_end_is_not_healthy_and_a_recording_says_so_too() {
    let ends = |rolled_out: &[(u32, bool)]| {
        let mut analysis = Analysis::new(head().rule, &head().start).unwrap();
        let mut lines = vec![RecordingLine::Head(Box::new(head()))];
        for tick in 0..300 {
            let told = rolled_out.iter().find(|(at, _)| *at == tick);
            let recorded = RecordedTick {
                tick,
                outcomes: "..".into(),
                rolled_out: told.map(|(_, is_complete)| *is_complete),
                ..RecordedTick::default()
            };
            feed(&mut analysis, &[], &recorded);
            lines.push(RecordingLine::Tick(Box::new(recorded)));
        }
        lines.push(RecordingLine::End(RecordingEnd::of(&analysis)));
        let recording = Recording::read(written(&lines).as_slice()).unwrap();
        let again = judged(&recording);
        assert!(recording.agrees(&again));
        (again.conclude().word(), again.conclude().reason())
    };
    let not_rolled_out = ("inconclusive", "not_rolled_out".to_owned());
    let healthy = ("healthy", String::new());
    assert_eq!(ends(&[(0, false)]), not_rolled_out);
    assert_eq!(ends(&[(0, false), (120, true)]), healthy);
    assert_eq!(
        ends(&[(0, false), (120, true), (200, false)]),
        not_rolled_out
    );
    // Nobody could see it, or it is a recording from before that was asked.
    assert_eq!(ends(&[]), healthy);
}

/// A row for what is needed must be as wide as that is.
#[test]
fn rows_of_dependencies_are_written_read_and_judged() {
    let mut head = head();
    head.start.dependencies = vec!["postgres".into()];
    head.start.needs = vec![Vec::new(), vec![0]];
    head.start.complete_at = Some(0.0);
    let record = |dependencies: &dyn Fn(u32) -> &'static str| {
        let mut lines = vec![RecordingLine::Head(Box::new(head.clone()))];
        let mut analysis = Analysis::new(head.rule.clone(), &head.start).unwrap();
        for tick in 0..300 {
            let recorded = RecordedTick {
                tick,
                outcomes: if tick < 60 { "..".into() } else { ".x".into() },
                dependencies: dependencies(tick).into(),
                ..RecordedTick::default()
            };
            feed(&mut analysis, &[], &recorded);
            lines.push(RecordingLine::Tick(Box::new(recorded)));
            if analysis.regression().is_some() || analysis.is_over() {
                break;
            }
        }
        lines.push(RecordingLine::End(RecordingEnd::of(&analysis)));
        Recording::read(written(&lines).as_slice()).unwrap()
    };
    let fails = record(&|tick| if tick < 59 { "." } else { "x" });
    assert_eq!(fails.cut, None);
    let judged = fails.judge(fails.head.rule.clone(), |_| ()).unwrap();
    assert!(judged.regression().is_none() && fails.agrees(&judged));
    assert_eq!(
        judged.excuses(),
        ["postgres failed, so that failures of db meanwhile were not judged"]
    );
    let answers = record(&|_| ".");
    let judged = answers.judge(answers.head.rule.clone(), |_| ()).unwrap();
    assert!(judged.regression().is_some() && answers.agrees(&judged));
    assert!(judged.excuses().is_empty());
    let wide = record(&|_| "..");
    let why = "a row of 2 marks for 1 dependencies";
    assert!(wide.cut.is_some_and(|cut| cut.contains(why)));
}

/// With hundreds of probes the head holds as many histograms of how long answers took.
#[test]
fn the_head_of_a_recording_with_hundreds_of_probes_is_read() {
    const PROBES: usize = 300;
    let mut head = head();
    head.start = AnalysisStart {
        endpoints: (0..PROBES).map(|at| format!("probe-{at}").into()).collect(),
        baseline: vec![(0, 3600); PROBES],
        failing_at_start: vec![false; PROBES],
        latency: vec![(0..864).map(|bucket| (bucket, 1)).collect(); PROBES],
        complete_at: Some(0.0),
        ..AnalysisStart::default()
    };
    let mut analysis = Analysis::new(head.rule.clone(), &head.start).unwrap();
    let mut lines = vec![RecordingLine::Head(Box::new(head))];
    for tick in 0..30 {
        let recorded = RecordedTick {
            tick,
            outcomes: "x".repeat(PROBES).into(),
            ..RecordedTick::default()
        };
        feed(&mut analysis, &[], &recorded);
        lines.push(RecordingLine::Tick(Box::new(recorded)));
        if analysis.regression().is_some() {
            break;
        }
    }
    lines.push(RecordingLine::End(RecordingEnd::of(&analysis)));
    let bytes = written(&lines);
    assert!(
        bytes.len() as u64 > MAX_LINE * 3 / 2,
        "{} bytes",
        bytes.len()
    );
    let recording = Recording::read(bytes.as_slice()).unwrap();
    assert_eq!(recording.cut, None);
    assert!(recording.agrees(&judged(&recording)));
}
