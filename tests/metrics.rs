//! The metrics page as a client sees it: whole pages for both formats, and the grammar of every line.
//!
//! `UPDATE_SNAPSHOTS=1 cargo test --test integration metrics::` writes the snapshots anew; look at the difference before committing.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use leadsman::config::Target;
use leadsman::config::settings::{
    ConnectConfig, ConnectionReuse, HttpProbeConfig, HttpVersions, ObjectivesConfig, ProbeConfig,
    ProbeKind, RedirectConfig, RequestBody, TcpProbeConfig,
};
use leadsman::core::probe_result::expect::Expect;
use leadsman::core::probe_result::{
    Outcome, PhaseTimes, ProbeResult, Reason, ResponseFacts, TlsInfo, UnknownReason,
};
use leadsman::core::probe_stats::{ProbeStats, TrackedProbe};
use leadsman::core::units::{Moment, Namespace, ProbeId, ProbeName, ReleaseName};
use leadsman::metrics::{
    Handler, Metrics, MetricsFormat, ProbeSeries, Refusal, gzip_fast, possible_reasons, write_page,
};

const FORMATS: [MetricsFormat; 2] = [MetricsFormat::Prometheus, MetricsFormat::OpenMetrics];

#[test]
fn the_page_is_as_promised_in_both_formats() {
    let (metrics, series, now) = story();
    check_snapshot(
        "metrics.prom",
        &page(&metrics, &series, now, MetricsFormat::Prometheus),
    );
    check_snapshot(
        "metrics.openmetrics",
        &page(&metrics, &series, now, MetricsFormat::OpenMetrics),
    );
}

#[track_caller]
fn check_snapshot(name: &str, page: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/snapshots")
        .join(name);
    // The process metrics and the build differ from run to run.
    let stable: String = page
        .split_inclusive('\n')
        .filter(|line| !line.contains("process_") && !line.starts_with("leadsman_build_info{"))
        .collect();
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&path, &stable).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    for (number, (got, expected)) in stable.lines().zip(expected.lines()).enumerate() {
        assert_eq!(got, expected, "line {} of {name}", number + 1);
    }
    assert_eq!(
        stable.lines().count(),
        expected.lines().count(),
        "lines of {name}"
    );
}

#[test]
fn every_page_follows_the_grammar() {
    let (metrics, series, now) = story();
    for format in FORMATS {
        check_grammar(&page(&metrics, &series, now, format), format);
        check_grammar(&page(&metrics, &[], now, format), format);
    }
}

#[test]
fn both_formats_show_the_same_values() {
    let (metrics, series, now) = story();
    let samples = |format| {
        let page = page(&metrics, &series, now, format);
        let samples = page
            .lines()
            .filter(|l| !l.starts_with('#') && !l.contains("process_"));
        let comparable = |line: &str| line.replace(".0\"", "\"");
        samples.map(comparable).collect::<Vec<_>>()
    };
    assert_eq!(
        samples(MetricsFormat::Prometheus),
        samples(MetricsFormat::OpenMetrics)
    );
}

#[test]
fn names_that_need_it_are_escaped() {
    let now = at(1_000);
    let tracked_probe = Arc::new(TrackedProbe::new(Arc::new(http("a\"b\\c\nd", |_| {})), now));
    let series = ProbeSeries::new(tracked_probe);
    assert_eq!(
        series.labels(),
        r#"namespace="shop",release="web",probe="a\"b\\c\nd""#
    );
    let metrics = Metrics::new().unwrap();
    for format in FORMATS {
        check_grammar(
            &page(&metrics, std::slice::from_ref(&series), now, format),
            format,
        );
    }
}

#[test]
fn the_series_of_a_removed_probe_vanish_and_the_others_keep_their_counts() {
    let (metrics, mut series, now) = story();
    let removed = series.remove(0);
    let page = page(&metrics, &series, now, MetricsFormat::Prometheus);
    assert!(!page.contains(removed.labels()));
    let kept = series[0].labels();
    assert!(page.contains(&format!(
        "leadsman_probes_total{{{kept},result=\"success\"}} 2\n"
    )));
}

#[test]
fn series_are_in_the_order_of_their_labels_whatever_order_they_come_in() {
    let (metrics, mut series, now) = story();
    let page_of = |series: &[ProbeSeries]| {
        let page = page(&metrics, series, now, MetricsFormat::Prometheus);
        page.lines()
            .filter(|l| !l.contains("process_"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let ordered = page_of(&series);
    series.reverse();
    assert_eq!(page_of(&series), ordered);
}

#[test]
fn before_the_first_result_counters_are_zero_and_the_rest_is_absent() {
    let now = at(1_000);
    let series = [ProbeSeries::new(Arc::new(TrackedProbe::new(
        Arc::new(http("api", |_| {})),
        now,
    )))];
    let page = page(
        &Metrics::new().unwrap(),
        &series,
        now,
        MetricsFormat::Prometheus,
    );
    let labels = series[0].labels();
    for present in [
        format!("leadsman_probes_total{{{labels},result=\"failure\"}} 0\n"),
        format!("leadsman_probe_failures_total{{{labels},reason=\"status\"}} 0\n"),
        format!("leadsman_probe_unknown_total{{{labels},reason=\"late\"}} 0\n"),
        format!("leadsman_probe_window_results{{{labels}}} 0\n"),
        format!("leadsman_probe_duration_seconds_count{{{labels}}} 0\n"),
    ] {
        assert!(page.contains(&present), "{present}");
    }
    for absent in [
        "leadsman_probe_success{",
        "leadsman_probe_last_success_timestamp_seconds{",
        "leadsman_probe_window_error_ratio{",
        "leadsman_probe_error_ratio{",
        "leadsman_probe_phase_duration_seconds{",
        "leadsman_probe_http_status_code{",
        "leadsman_probe_certificate_expiry_timestamp_seconds{",
        "quantile=",
    ] {
        assert!(!page.contains(absent), "{absent}");
    }
}

#[test]
fn success_is_unknown_when_nothing_was_learned_for_a_while() {
    let probe = Arc::new(http("api", |_| {}));
    let known_for = ProbeStats::known_for(&probe);
    let start = at(1_000);
    let tracked_probe = Arc::new(TrackedProbe::new(Arc::clone(&probe), start));
    let good = result(start, 10, Outcome::Success);
    tracked_probe.lock().record(&good, 1_700_000_000.0);
    let series = [ProbeSeries::new(Arc::clone(&tracked_probe))];
    let metrics = Metrics::new().unwrap();
    let shown = |now: Moment| {
        let page = page(&metrics, &series, now, MetricsFormat::Prometheus);
        let names = ["success", "phase_duration_seconds", "http_status_code"];
        names.map(|name| page.contains(&format!("leadsman_probe_{name}{{")))
    };
    let last = good.finished + known_for;
    assert_eq!(shown(last), [true; 3]);
    // What is unknown is no news, however new it is.
    let unknown = result(last, 10, Outcome::Unknown(UnknownReason::AllTargets));
    tracked_probe.lock().record(&unknown, 1_700_000_100.0);
    assert_eq!(
        shown(last),
        [true; 3],
        "one that is unknown changes nothing by itself"
    );
    assert_eq!(shown(last + Duration::from_millis(1)), [false; 3]);
    tracked_probe
        .lock()
        .record(&result(last, 10, Outcome::Success), 1_700_000_101.0);
    assert_eq!(shown(last + Duration::from_millis(100)), [true; 3]);
}

#[test]
fn only_possible_reasons_have_counters() {
    let plain = possible_reasons(&http("plain", |_| {}));
    assert!(plain.contains(Reason::Status) && plain.contains(Reason::ConnectRefused));
    for reason in [
        Reason::Json,
        Reason::TooSlow,
        Reason::Certificate,
        Reason::Dialogue,
        Reason::Proxy,
    ] {
        assert!(!plain.contains(reason), "{reason:?}");
    }
    let slow = possible_reasons(&http("slow", |h| {
        h.expect.max_latency = Some(Duration::from_secs(1));
    }));
    assert!(slow.contains(Reason::TooSlow));
    let tls = possible_reasons(&ProbeConfig {
        target: target("https://web:8443"),
        ..http("tls", |_| {})
    });
    assert!(tls.contains(Reason::Certificate) && tls.contains(Reason::Tls));
    assert!(!possible_reasons(&tcp("db")).contains(Reason::Status));
}

#[test]
fn a_reason_that_was_seen_has_a_counter_even_if_it_was_thought_impossible() {
    let now = at(1_000);
    let tracked_probe = Arc::new(TrackedProbe::new(Arc::new(tcp("db")), now));
    tracked_probe
        .lock()
        .record(&result(now, 3, Outcome::Failure(Reason::Json)), 1.0);
    let page = page(
        &Metrics::new().unwrap(),
        &[ProbeSeries::new(tracked_probe)],
        now,
        MetricsFormat::Prometheus,
    );
    assert!(page.contains("reason=\"json\"} 1\n"));
}

#[test]
fn a_packed_page_unpacks_to_the_page() {
    let (metrics, series, now) = story();
    let page = page(&metrics, &series, now, MetricsFormat::Prometheus);
    let packed = gzip_fast(page.as_bytes()).unwrap();
    assert!(packed.len() * 5 < page.len());
    let mut unpacked = String::new();
    let mut reader = flate2::read::GzDecoder::new(packed.as_slice());
    std::io::Read::read_to_string(&mut reader, &mut unpacked).unwrap();
    assert_eq!(unpacked, page);
}

#[test]
fn promtool_has_nothing_to_say() {
    let tool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut tool) = tool else {
        println!("left out: there is no promtool here (Debian has it in the package prometheus)");
        return;
    };
    let (metrics, series, now) = story();
    let text = page(&metrics, &series, now, MetricsFormat::Prometheus);
    tool.stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let said = tool.wait_with_output().unwrap();
    let words = String::from_utf8_lossy(&said.stderr) + String::from_utf8_lossy(&said.stdout);
    assert!(said.status.success() && words.trim().is_empty(), "{words}");
}

// The story that the snapshots tell.

fn at(millis: u64) -> Moment {
    Moment::after_boot(Duration::from_millis(millis))
}

fn target(text: &str) -> Target {
    Target::parse(text, "http").unwrap()
}

fn id(probe: &str) -> ProbeId {
    ProbeId {
        namespace: Namespace::new("shop"),
        release: ReleaseName::new("web"),
        probe: ProbeName::new(probe),
    }
}

fn http(name: &str, change: impl FnOnce(&mut HttpProbeConfig)) -> ProbeConfig {
    let mut kind = HttpProbeConfig {
        method: http::Method::GET,
        headers: Vec::new(),
        host: None,
        body: RequestBody::None,
        auth: None,
        redirects: RedirectConfig::default(),
        http: HttpVersions::Auto,
        connect: ConnectConfig::default(),
        connection: ConnectionReuse::New,
        proxy: None,
        proxy_resolves: false,
        body_limit: 1 << 20,
        compression: None,
        expect: Expect::default(),
    };
    change(&mut kind);
    ProbeConfig {
        id: id(name),
        target: target("http://web:8080/health"),
        kind: ProbeKind::Http(Box::new(kind)),
        interval: Duration::from_secs(10),
        analysis_interval: None,
        needs: Vec::new(),
        pods: None,
        objectives: ObjectivesConfig::default(),
        timeout: Duration::from_secs(5),
        window: Duration::from_secs(300),
        latency_objective: Some(Duration::from_millis(300)),
    }
}

fn tcp(name: &str) -> ProbeConfig {
    ProbeConfig {
        target: target("tcp://db:5432"),
        kind: ProbeKind::Tcp(Box::new(TcpProbeConfig {
            dialogue: Vec::new(),
            tls: false,
            connect: ConnectConfig::default(),
            max_latency: None,
            certificate_valid_for: None,
        })),
        latency_objective: None,
        timeout: Duration::from_secs(30),
        ..http(name, |_| {})
    }
}

fn result(finished: Moment, millis: u64, outcome: Outcome) -> ProbeResult {
    let due = finished - Duration::from_millis(millis);
    let phases = PhaseTimes {
        connect: Duration::from_millis(1),
        processing: Duration::from_micros(millis * 1000 - 1500),
        transfer: Duration::from_micros(500),
        ..PhaseTimes::default()
    };
    ProbeResult {
        due,
        started: due,
        finished,
        outcome,
        phases,
        answer: ResponseFacts::default(),
        explanation: None,
    }
}

/// A web probe with 200 results, two of them bad; a database with two good ones and an unknown one; one without any.
fn story() -> (Metrics, Vec<ProbeSeries>, Moment) {
    let metrics = Metrics::new().unwrap();
    metrics.reloaded(true, 1_700_000_000.25);
    metrics.reloaded(false, 1_700_000_100.0);
    metrics.in_flight_limit.set(1000);
    metrics.lateness.observe(0.000_08);
    metrics.trouble(UnknownReason::Late, true);
    metrics.request(Handler::Metrics, 200);
    metrics.request(Handler::Other, 418);
    metrics.refused(Refusal::UnknownModule);

    let start = at(3_600_000);
    let web = Arc::new(TrackedProbe::new(Arc::new(http("api", |_| {})), start));
    let faster = ProbeConfig {
        interval: Duration::from_secs(1),
        analysis_interval: None,
        needs: Vec::new(),
        pods: None,
        objectives: ObjectivesConfig::default(),
        ..http("api", |_| {})
    };
    web.adopt(Arc::new(faster));
    for n in 0..200 {
        let (millis, outcome, status) = match n {
            60 => (5_000, Outcome::Failure(Reason::HeaderTimeout), None),
            120 => (40, Outcome::Failure(Reason::Status), Some(503)),
            n => (10 + n % 50, Outcome::Success, Some(200)),
        };
        let mut one = result(start + Duration::from_secs(n), millis, outcome);
        one.answer.status = status;
        web.lock().record(&one, 1_700_000_000.5 + n as f64);
    }
    web.lock().missed(start + Duration::from_secs(199), 4);

    let db = Arc::new(TrackedProbe::new(Arc::new(tcp("db")), start));
    let now = start + Duration::from_secs(200);
    for outcome in [
        Outcome::Success,
        Outcome::Success,
        Outcome::Unknown(UnknownReason::NoFileDescriptors),
    ] {
        let mut one = result(now, 3, outcome);
        one.answer.tls = Some(Arc::new(TlsInfo {
            version: "TLS 1.3",
            cipher: "TLS13_AES_128_GCM_SHA256",
            earliest_expiry: 1_800_000_000,
            leaf_expiry: 1_900_000_000,
            fingerprint_sha256: String::new(),
            subject: String::new(),
            issuer: String::new(),
            subject_alternative: String::new(),
            serial: String::new(),
        }));
        db.lock().record(&one, 1_700_000_200.0);
    }
    let idle = Arc::new(TrackedProbe::new(Arc::new(http("new", |_| {})), now));
    let series = [web, db, idle].map(ProbeSeries::new).into();
    (metrics, series, now)
}

fn page(metrics: &Metrics, series: &[ProbeSeries], now: Moment, format: MetricsFormat) -> String {
    let mut out = Vec::new();
    write_page(metrics, series, now, format, &mut out);
    String::from_utf8(out).unwrap()
}

// A reader of our own for what both formats demand.

#[derive(Default)]
struct Family {
    kind: String,
    /// For each label set without `le`: its buckets, its count.
    buckets: BTreeMap<String, Vec<(f64, f64)>>,
    counts: BTreeMap<String, f64>,
}

#[track_caller]
fn check_grammar(page: &str, format: MetricsFormat) {
    let open = format == MetricsFormat::OpenMetrics;
    assert!(page.ends_with('\n'));
    assert_eq!(page.ends_with("\n# EOF\n"), open);
    let page = page.strip_suffix("# EOF\n").unwrap_or(page);

    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = String::new();
    let mut helped = String::new();
    let mut seen = BTreeSet::new();
    for line in page.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, text) = help.split_once(' ').unwrap();
            assert!(!text.is_empty(), "{line}");
            name.clone_into(&mut helped);
            continue;
        }
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert_eq!(name, helped, "help and type stand together");
            let family = Family {
                kind: kind.to_owned(),
                ..Family::default()
            };
            assert!(
                families.insert(name.to_owned(), family).is_none(),
                "{name} twice"
            );
            assert!(!(open && name.ends_with("_total")), "{name}");
            name.clone_into(&mut current);
            continue;
        }
        let (name, labels, value) = sample(line);
        let family = families.get_mut(&current).unwrap();
        let suffix = name
            .strip_prefix(current.as_str())
            .unwrap_or_else(|| panic!("{line} is not of {current}"));
        let allowed: &[&str] = match (family.kind.as_str(), open) {
            ("counter", true) => &["_total"],
            ("histogram", _) => &["_bucket", "_sum", "_count"],
            ("summary", _) => &["", "_sum", "_count"],
            ("counter" | "gauge", _) => &[""],
            (kind, _) => panic!("type {kind}"),
        };
        assert!(allowed.contains(&suffix), "{line} in a {}", family.kind);
        assert!(seen.insert(format!("{name}{labels:?}")), "{line} twice");
        if family.kind == "counter" {
            assert!(value >= 0.0, "{line}");
        }
        let label = |wanted: &str| labels.iter().find(|(name, _)| name == wanted);
        assert_eq!(label("le").is_some(), suffix == "_bucket", "{line}");
        let is_quantile = family.kind == "summary" && suffix.is_empty();
        assert_eq!(label("quantile").is_some(), is_quantile, "{line}");
        if let Some((_, le)) = label("le") {
            assert!(
                !open || le.contains(['.', 'e', 'I']),
                "{line}: not canonical"
            );
            let edge = le.parse().unwrap_or(f64::INFINITY);
            let others: Vec<_> = labels.iter().filter(|(name, _)| name != "le").collect();
            family
                .buckets
                .entry(format!("{others:?}"))
                .or_default()
                .push((edge, value));
        } else if suffix == "_count" {
            family
                .counts
                .insert(format!("{:?}", labels.iter().collect::<Vec<_>>()), value);
        }
    }
    for (name, family) in families.iter().filter(|(_, f)| f.kind == "histogram") {
        for (labels, buckets) in &family.buckets {
            for pair in buckets.windows(2) {
                assert!(
                    pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1,
                    "{name}{labels}: {pair:?}"
                );
            }
            let last = buckets.last().unwrap();
            assert_eq!(
                (last.0, Some(&last.1)),
                (f64::INFINITY, family.counts.get(labels)),
                "{name}{labels}"
            );
        }
        assert_eq!(family.buckets.len(), family.counts.len());
    }
}

/// Name, labels and value of a line, which must be one sample without a timestamp.
#[track_caller]
fn sample(line: &str) -> (String, Vec<(String, String)>, f64) {
    let end = line.find(['{', ' ']).unwrap_or_else(|| panic!("{line}"));
    let name = &line[..end];
    let is_name = |text: &str| {
        !text.is_empty()
            && !text.starts_with(|c: char| c.is_ascii_digit())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    assert!(is_name(name), "{line}");
    let mut labels = Vec::new();
    let mut rest = &line[end..];
    if let Some(block) = rest.strip_prefix('{') {
        rest = block;
        loop {
            let (label, after) = rest.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
            assert!(is_name(label), "{line}");
            let mut value = String::new();
            let mut chars = after.char_indices();
            let end = loop {
                match chars.next().unwrap_or_else(|| panic!("{line}")) {
                    (end, '"') => break end,
                    (_, '\\') => match chars.next() {
                        Some((_, 'n')) => value.push('\n'),
                        Some((_, c @ ('\\' | '"'))) => value.push(c),
                        other => panic!("{line}: escape {other:?}"),
                    },
                    (_, c) => value.push(c),
                }
            };
            labels.push((label.to_owned(), value));
            rest = &after[end + 1..];
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            rest = rest.strip_prefix(',').unwrap_or_else(|| panic!("{line}"));
        }
    }
    let names: BTreeSet<_> = labels.iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), labels.len(), "{line}: a label twice");
    let value = rest.strip_prefix(' ').unwrap_or_else(|| panic!("{line}"));
    let value = match value {
        "+Inf" => f64::INFINITY,
        number => number.parse().unwrap_or_else(|_| panic!("{line}")),
    };
    (name.to_owned(), labels, value)
}
