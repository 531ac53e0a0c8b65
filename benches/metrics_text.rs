//! What the metrics page costs, beside the obvious way: the same series in a registry, gathered and encoded.
//!
//! `cargo bench --bench metrics_text -- --quick`; LEADSMAN_BENCH_PROBES sets the number of probes (10 000).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use prometheus::{Encoder, GaugeVec, HistogramOpts, HistogramVec, Opts, Registry, TextEncoder};

use leadsman::config::Target;
use leadsman::config::settings::{
    ConnectConfig, ConnectionReuse, HttpProbeConfig, HttpVersions, ObjectivesConfig, ProbeConfig,
    ProbeKind, RedirectConfig, RequestBody,
};
use leadsman::core::probe_result::expect::Expect;
use leadsman::core::probe_result::{Outcome, PhaseTimes, ProbeResult, Reason, ResponseFacts};
use leadsman::core::probe_stats::TrackedProbe;
use leadsman::core::units::{Moment, Namespace, ProbeId, ProbeName, ReleaseName};
use leadsman::metrics::{Metrics, MetricsFormat, ProbeSeries, gzip_fast, write_page};

#[allow(clippy::expect_used)]
fn probe(number: usize) -> ProbeConfig {
    ProbeConfig {
        id: ProbeId {
            namespace: Namespace::new("mykadoo-production"),
            release: ReleaseName::new(format!("release-{:03}", number / 20)),
            probe: ProbeName::new(format!("probe-{number:05}")),
        },
        target: Target::parse("http://web:8080/health", "http").expect("this is a target"),
        kind: ProbeKind::Http(Box::new(HttpProbeConfig {
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
        })),
        interval: Duration::from_secs(10),
        analysis_interval: None,
        needs: Vec::new(),
        pods: None,
        timeout: Duration::from_secs(5),
        window: Duration::from_secs(300),
        latency_objective: Some(Duration::from_millis(300)),
        objectives: ObjectivesConfig::default(),
    }
}

/// So many probes with 60 results each, of which 30 are in the window.
fn probes(count: usize) -> (Vec<ProbeSeries>, Moment) {
    let start = Moment::after_boot(Duration::from_secs(100_000));
    let mut now = start;
    let series = (0..count).map(|number| {
        let tracked_probe = TrackedProbe::new(Arc::new(probe(number)), start);
        for n in 0..60 {
            now = start + Duration::from_secs(10) * n;
            let millis = 3 + (u64::from(n) * 37 + number as u64) % 200;
            let due = now - Duration::from_millis(millis);
            let failure = n % 30 == 7;
            let result = ProbeResult {
                due,
                started: due,
                finished: now,
                outcome: if failure {
                    Outcome::Failure(Reason::Status)
                } else {
                    Outcome::Success
                },
                phases: PhaseTimes {
                    resolve: Duration::from_micros(301),
                    connect: Duration::from_micros(212),
                    tls: Duration::ZERO,
                    processing: Duration::from_micros(millis * 1000 - 600),
                    transfer: Duration::from_micros(87),
                },
                answer: ResponseFacts {
                    status: Some(if failure { 503 } else { 200 }),
                    ..ResponseFacts::default()
                },
                explanation: None,
            };
            tracked_probe
                .lock()
                .record(&result, 1_700_000_000.25 + f64::from(n));
        }
        ProbeSeries::new(Arc::new(tracked_probe))
    });
    (series.collect(), now)
}

/// Puts every series of a page into a registry: histograms as such, everything else as a gauge, which costs the same.
#[allow(clippy::expect_used)]
fn registry_of(page: &str) -> Registry {
    let registry = Registry::new();
    let mut gauges: BTreeMap<&str, GaugeVec> = BTreeMap::new();
    let mut histograms: BTreeMap<&str, HistogramVec> = BTreeMap::new();
    for line in page
        .lines()
        .filter(|line| line.starts_with("leadsman_probe"))
    {
        let (name, rest) = line.split_once('{').expect("a series has labels");
        let (labels, value) = rest.split_once("} ").expect("a series has a value");
        let pairs: Vec<_> = labels
            .split(',')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name, value.trim_matches('"')))
            .collect();
        let names: Vec<_> = pairs.iter().map(|pair| pair.0).collect();
        let values: Vec<_> = pairs.iter().map(|pair| pair.1).collect();
        if let Some(family) = name.strip_suffix("_count") {
            let histogram = histograms.entry(family).or_insert_with(|| {
                let edges = vec![
                    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0,
                ];
                let opts = HistogramOpts::new(family, "help").buckets(edges);
                let new = HistogramVec::new(opts, &names).expect("a good name");
                if family == "leadsman_probe_duration_seconds" {
                    registry.register(Box::new(new.clone())).expect("once");
                }
                new
            });
            histogram.with_label_values(&values).observe(0.02);
        } else if !name.ends_with("_bucket") && !name.ends_with("duration_seconds_sum") {
            let gauge = gauges.entry(name).or_insert_with(|| {
                let new = GaugeVec::new(Opts::new(name, "help"), &names).expect("a good name");
                registry.register(Box::new(new.clone())).expect("once");
                new
            });
            let value = value.parse().expect("a number");
            gauge.with_label_values(&values).set(value);
        }
    }
    registry
}

/// Resident memory and its peak, in KiB.
fn resident() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let digits = line.and_then(|line| line.split_whitespace().next());
        digits.and_then(|kib| kib.parse().ok()).unwrap_or(0)
    };
    (field("VmRSS:"), field("VmHWM:"))
}

/// How much the peak of resident memory rises over what there was before, in KiB.
fn peak_of<T>(work: impl FnOnce() -> T) -> (T, u64) {
    // Sets the peak back to what is resident now.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    let before = resident().0;
    let done = work();
    (done, resident().1.saturating_sub(before))
}

#[allow(clippy::expect_used)]
fn bench(c: &mut Criterion) {
    let count = std::env::var("LEADSMAN_BENCH_PROBES").ok();
    let count = count.and_then(|n| n.parse().ok()).unwrap_or(10_000);
    let (series, now) = probes(count);
    let metrics = Metrics::new().expect("no name twice");
    let page = |format| {
        let mut out = Vec::new();
        write_page(&metrics, &series, now, format, &mut out);
        out
    };
    let (text, peak) = peak_of(|| page(MetricsFormat::Prometheus));
    let text = String::from_utf8(text).expect("text");
    println!(
        "{count} probes: {} lines, {} KiB of text; writing it takes {peak} KiB, {:.2} times the text; gzip {} KiB",
        text.lines().count(),
        text.len() / 1024,
        peak as f64 * 1024.0 / text.len() as f64,
        gzip_fast(text.as_bytes()).map_or(0, |packed| packed.len() / 1024),
    );
    let registry = registry_of(&text);
    let naive = || {
        let mut out = Vec::new();
        let encoded = TextEncoder::new().encode(&registry.gather(), &mut out);
        debug_assert!(encoded.is_ok());
        out
    };
    let (naive_text, naive_peak) = peak_of(naive);
    println!(
        "gathered and encoded: {} KiB of text, taking {naive_peak} KiB",
        naive_text.len() / 1024
    );
    drop(naive_text);

    // One after the other, so that both meet the same noise.
    let mut ratios: Vec<f64> = (0..5)
        .map(|_| {
            let started = Instant::now();
            let ours = page(MetricsFormat::Prometheus);
            let ours_took = started.elapsed();
            drop(ours);
            let started = Instant::now();
            let theirs = naive();
            let theirs_took = started.elapsed();
            drop(theirs);
            theirs_took.as_secs_f64() / ours_took.as_secs_f64()
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    println!(
        "gather and encode takes {:.1} times as long (median of 5 pairs)",
        ratios[2]
    );

    let mut group = c.benchmark_group(format!("page of {count} probes"));
    group.sample_size(10);
    group.bench_function("prometheus", |b| b.iter(|| page(MetricsFormat::Prometheus)));
    group.bench_function("openmetrics", |b| {
        b.iter(|| page(MetricsFormat::OpenMetrics));
    });
    group.bench_function("views alone", |b| {
        b.iter(|| {
            let probes = series.iter();
            probes
                .map(|s| s.tracked_probe().lock().view(now).window.success)
                .sum::<u64>()
        });
    });
    group.bench_function("gather and encode", |b| b.iter(naive));
    group.bench_function("gzip_fast", |b| b.iter(|| gzip_fast(text.as_bytes())));
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
