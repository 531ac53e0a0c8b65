//! Lines of the two text formats: families, samples, labels and numbers.

use std::io::Write;
use std::time::Duration;

use prometheus::proto::{LabelPair, Metric, MetricFamily, MetricType};

use super::MetricsFormat;

/// The kind of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FamilyKind {
    Counter,
    Gauge,
    Histogram,
    Summary,
    Untyped,
}

/// Appends to a page in one of the formats.
#[derive(Debug)]
pub(super) struct MetricsText<'a> {
    out: &'a mut Vec<u8>,
    format: MetricsFormat,
}

impl<'a> MetricsText<'a> {
    pub(super) const fn new(out: &'a mut Vec<u8>, format: MetricsFormat) -> Self {
        Self { out, format }
    }

    /// Starts a family. The name of a counter ends in `_total`, which OpenMetrics leaves out here.
    pub(super) fn family(&mut self, name: &str, kind: FamilyKind, help: &str) {
        let open = self.format == MetricsFormat::OpenMetrics;
        let (name, kind) = match kind {
            FamilyKind::Counter if open => (name.strip_suffix("_total").unwrap_or(name), "counter"),
            FamilyKind::Counter => (name, "counter"),
            FamilyKind::Gauge => (name, "gauge"),
            FamilyKind::Histogram => (name, "histogram"),
            FamilyKind::Summary => (name, "summary"),
            FamilyKind::Untyped if open => (name, "unknown"),
            FamilyKind::Untyped => (name, "untyped"),
        };
        self.puts(&["# HELP ", name, " "]);
        // The Prometheus format leaves quotes in a help text as they are.
        for piece in help.split_inclusive(['\\', '\n', '"']) {
            match piece.as_bytes() {
                [rest @ .., b'\\'] => self.bytes(&[rest, br"\\"]),
                [rest @ .., b'\n'] => self.bytes(&[rest, br"\n"]),
                [rest @ .., b'"'] if open => self.bytes(&[rest, br#"\""#]),
                all => self.bytes(&[all]),
            }
        }
        self.puts(&["\n# TYPE ", name, " ", kind, "\n"]);
    }

    /// Everything of a sample but its value: the name with its suffix, the label block without braces, and a further
    /// label (its value not in need of escaping).
    #[inline]
    fn start(&mut self, name: &str, labels: &str, further: Option<(&str, &str)>) {
        self.puts(&[name, "{", labels]);
        if let Some((label, value)) = further {
            self.puts(&[",", label, "=\"", value, "\"} "]);
        } else {
            self.puts(&["} "]);
        }
    }

    /// A sample that is a whole number.
    #[inline]
    pub(super) fn whole(
        &mut self,
        name: &str,
        labels: &str,
        further: Option<(&str, &str)>,
        value: u64,
    ) {
        self.start(name, labels, further);
        put_whole(self.out, value);
        self.out.push(b'\n');
    }

    /// A sample that is a length of time, in seconds.
    #[inline]
    pub(super) fn seconds(
        &mut self,
        name: &str,
        labels: &str,
        further: Option<(&str, &str)>,
        value: Duration,
    ) {
        self.start(name, labels, further);
        put_seconds(self.out, value, false);
        self.out.push(b'\n');
    }

    /// A sample that is any number.
    pub(super) fn float(
        &mut self,
        name: &str,
        labels: &str,
        further: Option<(&str, &str)>,
        value: f64,
    ) {
        self.start(name, labels, further);
        put_float(self.out, value, false);
        self.out.push(b'\n');
    }

    /// The sample of a bucket of a histogram; `name` ends in `_bucket`. `None` is the bucket of everything.
    #[inline]
    pub(super) fn bucket(&mut self, name: &str, labels: &str, edge: Option<Duration>, value: u64) {
        self.puts(&[name, "{", labels, ",le=\""]);
        match edge {
            Some(edge) => put_seconds(self.out, edge, self.format == MetricsFormat::OpenMetrics),
            None => self.puts(&["+Inf"]),
        }
        self.puts(&["\"} "]);
        put_whole(self.out, value);
        self.out.push(b'\n');
    }

    /// A family of the registry.
    pub(super) fn gathered(&mut self, family: &MetricFamily) {
        let name = family.name();
        let kind = match family.get_field_type() {
            MetricType::COUNTER => FamilyKind::Counter,
            MetricType::GAUGE => FamilyKind::Gauge,
            MetricType::HISTOGRAM => FamilyKind::Histogram,
            MetricType::SUMMARY => FamilyKind::Summary,
            MetricType::UNTYPED => FamilyKind::Untyped,
        };
        self.family(name, kind, family.help());
        for metric in family.get_metric() {
            let labels = metric.get_label();
            match kind {
                FamilyKind::Counter => self.value(name, labels, metric.get_counter().get_value()),
                FamilyKind::Gauge => self.value(name, labels, metric.get_gauge().get_value()),
                FamilyKind::Histogram => self.histogram(name, metric),
                // The registry holds none of these.
                FamilyKind::Summary | FamilyKind::Untyped => {}
            }
        }
    }

    fn histogram(&mut self, name: &str, metric: &Metric) {
        let histogram = metric.get_histogram();
        let count = histogram.get_sample_count();
        let edges = histogram.get_bucket().iter();
        let edges = edges.map(|b| (b.upper_bound(), b.cumulative_count()));
        for (edge, below) in edges.chain([(f64::INFINITY, count)]) {
            self.puts(&[name, "_bucket"]);
            self.labels(metric.get_label(), Some(edge));
            put_whole(self.out, below);
            self.out.push(b'\n');
        }
        self.puts(&[name, "_sum"]);
        self.labels(metric.get_label(), None);
        put_float(self.out, histogram.get_sample_sum(), false);
        self.puts(&["\n", name, "_count"]);
        self.labels(metric.get_label(), None);
        put_whole(self.out, count);
        self.out.push(b'\n');
    }

    fn value(&mut self, name: &str, labels: &[LabelPair], value: f64) {
        self.puts(&[name]);
        self.labels(labels, None);
        put_float(self.out, value, false);
        self.out.push(b'\n');
    }

    /// A label block of the registry with its braces and the space behind it.
    fn labels(&mut self, labels: &[LabelPair], edge: Option<f64>) {
        let mut between = "{";
        for pair in labels {
            self.puts(&[between, pair.name(), "=\"", &escaped(pair.value()), "\""]);
            between = ",";
        }
        if let Some(edge) = edge {
            self.puts(&[between, "le=\""]);
            put_float(self.out, edge, self.format == MetricsFormat::OpenMetrics);
            self.puts(&["\""]);
            between = ",";
        }
        self.puts(&[if between == "{" { " " } else { "} " }]);
    }

    /// Ends the page.
    pub(super) fn end(&mut self) {
        if self.format == MetricsFormat::OpenMetrics {
            self.puts(&["# EOF\n"]);
        }
    }

    #[inline]
    fn puts(&mut self, pieces: &[&str]) {
        for piece in pieces {
            self.out.extend_from_slice(piece.as_bytes());
        }
    }

    fn bytes(&mut self, pieces: &[&[u8]]) {
        for piece in pieces {
            self.out.extend_from_slice(piece);
        }
    }
}

/// The value of a label as it stands between quotes.
pub(super) fn escaped(value: &str) -> std::borrow::Cow<'_, str> {
    if !value.contains(['\\', '"', '\n']) {
        return value.into();
    }
    let escaped = value.replace('\\', r"\\").replace('"', r#"\""#);
    escaped.replace('\n', r"\n").into()
}

/// A whole number in decimal digits.
#[inline]
fn put_whole(out: &mut Vec<u8>, mut value: u64) {
    // u64::MAX has 20 digits.
    let mut digits = [0; 20];
    let mut first = digits.len();
    loop {
        first -= 1;
        digits[first] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[first..]);
}

/// Seconds in decimal digits, exact to the nanosecond. `point` asks for a point also in a whole number, as
/// OpenMetrics does in labels.
#[inline]
fn put_seconds(out: &mut Vec<u8>, value: Duration, point: bool) {
    put_whole(out, value.as_secs());
    let mut nanos = value.subsec_nanos();
    if nanos == 0 {
        out.extend_from_slice(if point { b".0" } else { b"" });
        return;
    }
    let mut digits = *b".000000000";
    for digit in digits[1..].iter_mut().rev() {
        *digit += (nanos % 10) as u8;
        nanos /= 10;
    }
    let last = digits.iter().rposition(|&d| d != b'0').unwrap_or(0);
    out.extend_from_slice(&digits[..=last]);
}

/// A number as Go writes it, which is what both formats mean: shortest, with an exponent below 1e-4 and from 1e6 on
/// where `point` asks for the form of labels.
fn put_float(out: &mut Vec<u8>, value: f64, point: bool) {
    let size = value.abs();
    // Writing into a Vec cannot fail.
    let _ = if value.is_nan() {
        out.write_all(b"NaN")
    } else if value.is_infinite() {
        out.write_all(if value > 0.0 { b"+Inf" } else { b"-Inf" })
    } else if size != 0.0 && (size < 1e-4 || size >= if point { 1e6 } else { 1e15 }) {
        let text = format!("{value:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let exponent: i32 = exponent.parse().unwrap_or(0);
        let sign = if exponent < 0 { '-' } else { '+' };
        write!(out, "{digits}e{sign}{:02}", exponent.abs())
    } else if point && value.fract() == 0.0 {
        write!(out, "{value}.0")
    } else {
        write!(out, "{value}")
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_both_formats_mean_them() {
        check_float(0.0, "0", "0.0");
        check_float(1.0, "1", "1.0");
        check_float(-2.5, "-2.5", "-2.5");
        check_float(0.0001, "0.0001", "0.0001");
        check_float(1e-5, "1e-05", "1e-05");
        check_float(2.5e-5, "2.5e-05", "2.5e-05");
        check_float(100_000.0, "100000", "100000.0");
        check_float(1e6, "1000000", "1e+06");
        check_float(1_700_000_000.25, "1700000000.25", "1.70000000025e+09");
        check_float(1e300, "1e+300", "1e+300");
        check_float(f64::INFINITY, "+Inf", "+Inf");
        check_float(f64::NEG_INFINITY, "-Inf", "-Inf");
        check_float(f64::NAN, "NaN", "NaN");
    }

    #[track_caller]
    fn check_float(value: f64, plain: &str, label: &str) {
        let write = |point| {
            let mut out = Vec::new();
            put_float(&mut out, value, point);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            (write(false).as_str(), write(true).as_str()),
            (plain, label)
        );
    }

    #[test]
    fn lengths_of_time_are_exact() {
        check_seconds(Duration::ZERO, "0", "0.0");
        check_seconds(Duration::from_millis(300), "0.3", "0.3");
        check_seconds(Duration::from_secs(10), "10", "10.0");
        check_seconds(Duration::from_nanos(1), "0.000000001", "0.000000001");
        check_seconds(
            Duration::from_nanos(12_000_000_340),
            "12.00000034",
            "12.00000034",
        );
        check_seconds(
            Duration::MAX,
            "18446744073709551615.999999999",
            "18446744073709551615.999999999",
        );
    }

    #[track_caller]
    fn check_seconds(value: Duration, plain: &str, label: &str) {
        let write = |point| {
            let mut out = Vec::new();
            put_seconds(&mut out, value, point);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            (write(false).as_str(), write(true).as_str()),
            (plain, label)
        );
    }
}
