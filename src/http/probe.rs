//! `/probe?target=…&module=…`: one probe for a scraper of blackbox_exporter.
//!
//! A failed probe is a page with `probe_success 0` and status 200; other statuses mean that the request itself was
//! wrong. Only configured targets and those of the allow-list are probed, so that this is not an open proxy into the
//! cluster.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::blackbox::{self, BlackboxPage};
use super::{AppState, ProbeRequest, not_now, page_response, refuse, text_of, too_busy};
use crate::config::Target;
use crate::config::settings::{ModuleConfig, ProbeKind};
use crate::core::probe_result::expect::Pattern;
use crate::metrics::{MetricsFormat, Refusal};

/// Timeout of a scraper that announces none, as in blackbox_exporter.
const DEFAULT_SCRAPE_TIMEOUT: Duration = Duration::from_secs(120);

/// The header in which Prometheus announces how long it will wait.
const SCRAPE_TIMEOUT: &str = "x-prometheus-scrape-timeout-seconds";

/// The module of a request that names none.
const DEFAULT_MODULE: &str = "http_2xx";

pub(super) async fn probe(
    State(shared): State<Arc<AppState>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let serving_config = shared.serving_config();
    let query = ProbeQuery::read(query.as_deref().unwrap_or(""));
    let Some(module) = serving_config.modules.get(&query.module) else {
        let text = format!(
            "Unknown module {:?}; known are {}.\n",
            query.module,
            names(serving_config.modules.keys())
        );
        return refuse(&shared, Refusal::UnknownModule, failure(text));
    };
    let Some(target) = query.target.as_deref().filter(|target| !target.is_empty()) else {
        return refuse(
            &shared,
            Refusal::MissingTarget,
            failure("The parameter target is missing.\n".into()),
        );
    };
    let scrape_timeout = match announced(&headers) {
        Ok(timeout) => timeout,
        Err(text) => {
            let text =
                format!("The header {SCRAPE_TIMEOUT} is not a number of seconds: {text:?}.\n");
            let response = (StatusCode::INTERNAL_SERVER_ERROR, text).into_response();
            return refuse(&shared, Refusal::BadRequest, response);
        }
    };
    let mut kind = module.kind.clone();
    if let Some(hostname) = query.hostname
        && let Err(text) = set_hostname(&mut kind, hostname)
    {
        return refuse(&shared, Refusal::BadRequest, failure(text));
    }
    let timeout = timeout_of(module, scrape_timeout, serving_config.timeout_offset);
    let format = MetricsFormat::negotiate(text_of(&headers, header::ACCEPT));

    let default_scheme = match kind {
        ProbeKind::Http(_) => "http",
        ProbeKind::Tcp(_) => "tcp",
    };
    let target = match Target::parse(&decoded(target), default_scheme) {
        Ok(target) => target,
        // blackbox_exporter, too, answers a target that cannot be asked with a failed probe.
        Err(error) => {
            let mut page = BlackboxPage::of_nothing(&kind, timeout);
            page.steps.push(format!("the target {error}"));
            shared.metrics.refused(Refusal::InvalidTarget);
            return answer(&page, module, query.debug, format);
        }
    };
    if target.is_tcp() != matches!(kind, ProbeKind::Tcp(_)) {
        let mut page = BlackboxPage::of_nothing(&kind, timeout);
        page.steps.push(format!(
            "the module {} does not speak {}",
            module.name,
            target.url().scheme()
        ));
        shared.metrics.refused(Refusal::InvalidTarget);
        return answer(&page, module, query.debug, format);
    }
    if !is_allowed(&target, &serving_config.targets, &serving_config.allow) {
        let text = format!(
            "The target {target} is neither configured nor allowed. Add it as a probe, or to probe_allow in [serve].\n"
        );
        let response = (StatusCode::FORBIDDEN, text).into_response();
        return refuse(&shared, Refusal::TargetNotAllowed, response);
    }
    if shared.probe_rate.check().is_err() {
        return refuse(
            &shared,
            Refusal::RateLimited,
            not_now("more requests to /probe than serve.probe_rate allows in a second; try again"),
        );
    }
    let Ok(_permit) = shared.probes.try_acquire() else {
        return refuse(&shared, Refusal::Saturated, too_busy("requests to /probe"));
    };
    let call = ProbeRequest {
        target,
        kind: kind.clone(),
        timeout,
        transcript: query.debug,
    };
    let result = (shared.take)(call).await;
    let page = BlackboxPage {
        kind: &kind,
        timeout,
        result: Some(result.result),
        steps: result.steps,
    };
    answer(&page, module, query.debug, format)
}

fn answer(
    page: &BlackboxPage<'_>,
    module: &ModuleConfig,
    debug: bool,
    format: MetricsFormat,
) -> Response {
    if debug {
        let text = blackbox::debug_page(page, module);
        return ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response();
    }
    page_response(blackbox::metrics_page(page, format), format, false)
}

/// The known parameters; others are ignored, and the first of each name counts.
#[derive(Default)]
struct ProbeQuery {
    target: Option<String>,
    module: String,
    hostname: Option<String>,
    debug: bool,
}

impl ProbeQuery {
    fn read(text: &str) -> Self {
        let (mut query, mut module) = (Self::default(), None);
        for (key, value) in url::form_urlencoded::parse(text.as_bytes()) {
            match key.as_ref() {
                "target" if query.target.is_none() => query.target = Some(value.into_owned()),
                "module" if module.is_none() => module = Some(value.into_owned()),
                "hostname" if query.hostname.is_none() => query.hostname = Some(value.into_owned()),
                "debug" => query.debug = value == "true",
                _ => {}
            }
        }
        query.module = module
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| DEFAULT_MODULE.into());
        query
    }
}

/// A target that was percent-encoded twice, as some relabelling rules do.
fn decoded(target: &str) -> String {
    if target.contains("://") || !target.contains('%') {
        return target.to_owned();
    }
    percent_decoded(target).unwrap_or_else(|| target.to_owned())
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = rest.get(2..)?;
    }
    String::from_utf8(bytes).ok()
}

/// Sets the host name that the target sees, if `target` is an address.
fn set_hostname(kind: &mut ProbeKind, hostname: String) -> Result<(), String> {
    match kind {
        ProbeKind::Http(http) => {
            if http.host.is_some() {
                return Err(
                    "The host is set by the module, and by the parameter hostname as well.\n"
                        .into(),
                );
            }
            let fits = !hostname.is_empty()
                && hostname.len() <= 253 + 6
                && hostname
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b));
            if !fits {
                return Err("The parameter hostname is not a host name.\n".into());
            }
            if http.connect.tls.server_name.is_none() {
                let name = hostname
                    .rsplit_once(':')
                    .map_or(hostname.as_str(), |(name, _)| name);
                http.connect.tls.server_name = Some(name.to_owned());
            }
            http.host = Some(hostname);
        }
        ProbeKind::Tcp(tcp) => {
            if tcp.connect.tls.server_name.is_none() {
                tcp.connect.tls.server_name = Some(hostname);
            }
        }
    }
    Ok(())
}

/// The scraper's announced timeout, if any.
fn announced(headers: &HeaderMap) -> Result<Option<Duration>, String> {
    let Some(value) = headers.get(SCRAPE_TIMEOUT) else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
    match text.trim().parse::<f64>() {
        Ok(0.0) => Ok(None),
        Ok(seconds) if seconds > 0.0 && seconds.is_finite() => Ok(Some(Duration::from_secs_f64(
            seconds.min(DEFAULT_SCRAPE_TIMEOUT.as_secs_f64()),
        ))),
        Ok(_) | Err(_) => Err(text.chars().take(40).collect()),
    }
}

/// The module's own timeout, or less if the scraper does not wait for that long.
fn timeout_of(module: &ModuleConfig, scrape: Option<Duration>, offset: Duration) -> Duration {
    let scrape = scrape.unwrap_or(DEFAULT_SCRAPE_TIMEOUT);
    // A scraper that waits for less than the offset gets what it asks for, and not a timeout of nothing.
    let room = scrape
        .checked_sub(offset)
        .filter(|room| !room.is_zero())
        .unwrap_or(scrape);
    module.timeout.map_or(room, |own| own.min(room))
}

fn is_allowed(
    target: &Target,
    configured: &std::collections::HashSet<String>,
    allow: &[Pattern],
) -> bool {
    let text = target.to_string();
    configured.contains(&text)
        || allow.iter().any(|pattern| {
            pattern
                .0
                .find(&text)
                .is_some_and(|hit| hit.len() == text.len())
        })
}

fn failure(text: String) -> Response {
    (StatusCode::BAD_REQUEST, text).into_response()
}

fn names<'a>(names: impl Iterator<Item = &'a String>) -> String {
    names
        .take(20)
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::{ConnectConfig, TcpProbeConfig};

    #[test]
    fn the_shorter_of_module_and_scrape_timeout_counts() {
        check("H02", None, Some(15.0), 0.5, 14.5);
        check("H02 without offset", None, Some(15.0), 0.0, 15.0);
        check("H03 a longer module", Some(20.0), Some(15.0), 0.5, 14.5);
        check("H03 a shorter module", Some(5.0), Some(15.0), 0.5, 5.0);
        check("H03 no announcement", Some(10.0), None, 0.5, 10.0);
        check("H03 equal", Some(10.0), Some(10.0), 0.5, 9.5);
        check("H03 an offset of a second", Some(9.5), None, 1.0, 9.5);
        check("H04", None, None, 0.5, 119.5);
        check("H04 without offset", None, None, 0.0, 120.0);
        check(
            "an offset that leaves nothing is not taken off",
            None,
            Some(0.4),
            0.5,
            0.4,
        );
    }

    #[track_caller]
    fn check(row: &str, module: Option<f64>, scrape: Option<f64>, offset: f64, expected: f64) {
        let kind = ProbeKind::Tcp(Box::new(TcpProbeConfig {
            dialogue: Vec::new(),
            tls: false,
            connect: ConnectConfig::default(),
            max_latency: None,
            certificate_valid_for: None,
        }));
        let module = ModuleConfig {
            name: "m".into(),
            kind,
            timeout: module.map(Duration::from_secs_f64),
        };
        let timeout = timeout_of(
            &module,
            scrape.map(Duration::from_secs_f64),
            Duration::from_secs_f64(offset),
        );
        assert!(
            (timeout.as_secs_f64() - expected).abs() < 1e-9,
            "{row}: {timeout:?}"
        );
    }

    #[test]
    fn targets_encoded_twice_are_decoded() {
        assert_eq!(decoded("host%3A8080"), "host:8080");
        assert_eq!(
            decoded("http%3A%2F%2Fhost%3A8080%2Fx"),
            "http://host:8080/x"
        );
        assert_eq!(decoded("http://host/a%20b"), "http://host/a%20b");
        assert_eq!(decoded("host%zz"), "host%zz");
        assert_eq!(decoded("host%"), "host%");
        assert_eq!(decoded("host%€"), "host%€");
    }

    #[test]
    fn an_allow_list_matches_whole_targets() {
        let allow = [Pattern(
            regex::Regex::new("https://.*\\.example\\.com/").unwrap(),
        )];
        let none = std::collections::HashSet::new();
        let target = |text| Target::parse(text, "http").unwrap();
        assert!(is_allowed(&target("https://a.example.com/"), &none, &allow));
        assert!(!is_allowed(
            &target("https://a.example.com/x"),
            &none,
            &allow
        ));
        assert!(!is_allowed(
            &target("http://evil/?https://a.example.com/"),
            &none,
            &allow
        ));
    }

    proptest::proptest! {
        #[test]
        fn any_query_is_read_without_a_panic(text in ".{0,300}") {
            let query = ProbeQuery::read(&text);
            let _ = Target::parse(&decoded(query.target.as_deref().unwrap_or("")), "http");
        }
    }
}
