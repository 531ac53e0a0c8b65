//! Which of the two text formats a client gets.

/// A format of the metrics page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MetricsFormat {
    /// The Prometheus text format, 0.0.4: what everybody reads.
    #[default]
    Prometheus,
    /// OpenMetrics 1.0.0, for those who ask for it.
    OpenMetrics,
}

/// More ranges than this are not looked at; Prometheus sends at most six.
const MAX_RANGES: usize = 32;

impl MetricsFormat {
    /// Chooses by an `Accept` header: the acceptable format with the highest quality, of equal ones the first. One
    /// that accepts neither gets the Prometheus format, as other exporters do it.
    pub fn negotiate(accept: &str) -> Self {
        let mut best = (0.0, Self::Prometheus);
        for range in accept.split(',').take(MAX_RANGES) {
            if let Some((quality, format)) = offered(range)
                && quality > best.0
            {
                best = (quality, format);
            }
        }
        best.1
    }

    /// The value of the `Content-Type` header.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// The quality of one range and the format that it means; `None` for what we do not speak.
fn offered(range: &str) -> Option<(f32, MetricsFormat)> {
    let mut parts = range.split(';').map(str::trim);
    let media = parts.next()?.to_ascii_lowercase();
    let (mut quality, mut version) = (1.0, None);
    for (name, value) in parts.filter_map(|part| part.split_once('=')) {
        let value = value.trim().trim_matches('"');
        match name.trim().to_ascii_lowercase().as_str() {
            "q" => quality = value.parse::<f32>().ok().filter(|q| q.is_finite())?,
            "version" => version = Some(value),
            _ => {}
        }
    }
    let format = match (media.as_str(), version) {
        ("application/openmetrics-text", None | Some("1.0.0")) => MetricsFormat::OpenMetrics,
        ("text/plain", None | Some("0.0.4")) | ("text/*" | "*/*", _) => MetricsFormat::Prometheus,
        _ => return None,
    };
    Some((quality, format))
}

#[cfg(test)]
mod tests {
    use super::MetricsFormat::{self, OpenMetrics, Prometheus};

    #[test]
    fn the_best_acceptable_format_is_chosen() {
        check("", Prometheus);
        check("*/*", Prometheus);
        check("text/html", Prometheus);
        check("application/openmetrics-text", OpenMetrics);
        check(
            "Application/OpenMetrics-Text; Version=\"1.0.0\"",
            OpenMetrics,
        );
        check("application/openmetrics-text;version=2.0.0", Prometheus);
        // Prometheus 2.42 and 3.5.
        check(
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
             text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            OpenMetrics,
        );
        check(
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
             application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,\
             text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
            OpenMetrics,
        );
        check(
            "text/plain;q=0.9, application/openmetrics-text;q=0.8",
            Prometheus,
        );
        check(
            "application/openmetrics-text;q=0, text/plain;q=0.1",
            Prometheus,
        );
        check("application/openmetrics-text;q=0", Prometheus);
        check("application/openmetrics-text;q=x;;=,,", Prometheus);
        check("application/openmetrics-text;q=NaN", Prometheus);
    }

    #[track_caller]
    fn check(accept: &str, expected: MetricsFormat) {
        assert_eq!(MetricsFormat::negotiate(accept), expected, "{accept:?}");
    }
}
