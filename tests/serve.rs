//! The running program, seen from outside: its HTTP pages, its signals, its exit codes.
//!
//! Rows of the scenario table that are refused on purpose, so without a test:
//!
//! | row | why |
//! |---|---|
//! | H12: a history of results to look up by id | the last 60 outcomes and the last explanation are in the API; the rest is Prometheus' |
//! | H10: a page with the configuration | `leadsman check --print` shows it, to those who may read the file |
//! | C04: an interval shorter than the timeout is refused | the loop is open; `check` gives a hint |
//! | C05, C13: several requests per probe, retries | one result is one question; a retry would hide a failure |
//! | C08, C09, C16, C17: thresholds before a state changes | a result is what it is; rules over many are Prometheus' |
//! | M06: gauges that are dropped after 10 minutes | a probe that is configured is asked; one that is not has no series |

mod clients;
mod crowd;
pub(crate) mod guarded;
mod replica;
mod replicas;
mod spread;

use std::time::Duration;

use crate::program::{App, Leadsman, until, unused_port};

#[test]
fn the_first_results_are_on_the_page_within_two_seconds() {
    let app = App::start();
    let leadsman = Leadsman::run(&config(&app, "interval = \"1s\""), &[]);
    until("all four probes answered", || {
        let page = leadsman.get("/metrics");
        ["api", "db", "redis", "web"].iter().all(|probe| {
            let line = format!("leadsman_probe_success{{namespace=\"shop\",release=\"mykadoo\",probe=\"{probe}\"}} 1");
            page.body.contains(&line)
        })
    });
    assert_eq!(leadsman.get("/-/ready").status, 200);
    assert_eq!(leadsman.get("/-/healthy").status, 200);
}

#[test]
fn the_format_of_the_page_is_negotiated() {
    let app = App::start();
    let leadsman = Leadsman::run(&config(&app, ""), &[]);
    let plain = leadsman.get("/metrics");
    assert_eq!(
        plain.header("content-type"),
        "text/plain; version=0.0.4; charset=utf-8"
    );
    let open = leadsman.get_with(
        "/metrics",
        &[("Accept", "application/openmetrics-text;version=1.0.0")],
    );
    assert_eq!(
        open.header("content-type"),
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    );
    assert!(open.body.ends_with("# EOF\n"));
    let packed = leadsman.get_with("/metrics", &[("Accept-Encoding", "gzip")]);
    assert_eq!(packed.header("content-encoding"), "gzip");
    assert_eq!(packed.raw.get(..2), Some(&[0x1f, 0x8b][..]));
}

#[test]
fn wrong_requests_get_an_answer_that_says_so() {
    let app = App::start();
    let leadsman = Leadsman::run(&config(&app, ""), &[]);
    let missing = leadsman.get("/nothing/here");
    assert_eq!(
        (missing.status, missing.header("content-type")),
        (404, "application/problem+json")
    );
    assert_eq!(leadsman.request("POST", "/metrics", &[]).status, 405);
    assert_eq!(leadsman.get("/probe?module=nonsense&target=x").status, 400);
    assert_eq!(leadsman.get("/probe?module=http_2xx").status, 400);
    let long = "x".repeat(100_000);
    assert!(matches!(
        leadsman.get(&format!("/{long}")).status,
        400 | 414 | 431
    ));
    let page = leadsman.get("/metrics").body;
    assert!(
        page.contains("leadsman_http_requests_total{code=\"404\",handler=\"other\"} 1"),
        "{page}"
    );
}

#[test]
fn probe_answers_as_blackbox_exporter_does() {
    let app = App::start();
    let leadsman = Leadsman::run(&config(&app, ""), &[]);
    let success = leadsman.get(&format!("/probe?target={}/api/health", app.url()));
    assert_eq!(success.status, 200);
    for line in [
        "probe_success 1",
        "probe_http_status_code 200",
        "probe_http_ssl 0",
        "probe_http_redirects 0",
        "probe_http_version 1.1",
        "probe_ip_protocol 4",
        "probe_failed_due_to_regex 0",
        "probe_http_content_length 16",
    ] {
        assert!(
            success.body.lines().any(|l| l == line),
            "{line} is missing:\n{}",
            success.body
        );
    }
    for phase in ["resolve", "connect", "tls", "processing", "transfer"] {
        assert!(
            success.body.contains(&format!(
                "probe_http_duration_seconds{{phase=\"{phase}\"}} "
            )),
            "{phase}"
        );
    }
    assert!(
        !success.body.contains("probe_ssl_earliest_cert_expiry"),
        "a plain target has no certificate"
    );
}

#[test]
fn a_refused_connection_is_a_page_with_every_metric_of_the_dashboards() {
    let app = App::start();
    let refused = unused_port();
    let more =
        format!("[[release.probe]]\nname = \"gone\"\nurl = \"http://127.0.0.1:{refused}/\"\n");
    let leadsman = Leadsman::run(&(config(&app, "") + &more), &[]);
    let page = leadsman.get(&format!("/probe?target=http://127.0.0.1:{refused}/"));
    assert_eq!(page.status, 200);
    for line in [
        "probe_success 0",
        "probe_http_status_code 0",
        "probe_http_duration_seconds{phase=\"tls\"} 0",
    ] {
        assert!(
            page.body.lines().any(|l| l == line),
            "{line} is missing:\n{}",
            page.body
        );
    }
    let duration = page
        .body
        .lines()
        .find_map(|l| l.strip_prefix("probe_duration_seconds "))
        .unwrap();
    assert!(duration.parse::<f64>().unwrap() > 0.0);
}

#[test]
fn targets_that_nobody_configured_are_refused() {
    let app = App::start();
    let leadsman = Leadsman::run(&config(&app, ""), &[]);
    assert_eq!(
        leadsman.get("/probe?target=http://127.0.0.1:1/").status,
        403
    );
    assert_eq!(
        leadsman
            .get("/probe?target=http://169.254.169.254/latest")
            .status,
        403
    );
    let allow = "probe_allow = ['http://127\\.0\\.0\\.1:.*']\n[[release]]";
    let open = config(&app, "").replacen("[[release]]", allow, 1);
    let leadsman = Leadsman::run(&open, &[]);
    assert_eq!(
        leadsman.get("/probe?target=http://127.0.0.1:1/").status,
        200
    );
    assert_eq!(
        leadsman.get("/probe?target=http://127.0.0.2:1/").status,
        403
    );
}

#[test]
fn the_scrape_timeout_shortens_a_result() {
    let hanging = crate::program::hanging_server();
    let app = App::start();
    let more = format!("[[release.probe]]\nname = \"slow\"\nurl = \"http://{hanging}/\"\n");
    let leadsman = Leadsman::run(&(config(&app, "") + &more), &[]);
    let page = leadsman.get_with(
        &format!("/probe?target=http://{hanging}/"),
        &[("X-Prometheus-Scrape-Timeout-Seconds", "1")],
    );
    assert_eq!(page.status, 200);
    assert!(page.body.contains("probe_success 0"));
    assert!(
        page.body.contains("probe_timeout_seconds 0.5"),
        "{}",
        page.body
    );
    let nonsense = leadsman.get_with(
        &format!("/probe?target=http://{hanging}/"),
        &[("X-Prometheus-Scrape-Timeout-Seconds", "soon")],
    );
    assert_eq!(nonsense.status, 500);
}

#[test]
fn debug_shows_the_steps_and_no_secret() {
    let app = App::start();
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "t0p-s3cret-t0ken\n").unwrap();
    let module = format!(
        "[[module]]\nname = \"inside\"\nbearer_token_file = {:?}\n",
        secret.path()
    );
    let leadsman = Leadsman::run(&(module + &config(&app, "")), &[]);
    let page = leadsman.get(&format!(
        "/probe?debug=true&module=inside&target={}/api/health",
        app.url()
    ));
    assert_eq!(page.status, 200);
    assert!(page.body.contains("probe_success 1"), "{}", page.body);
    assert!(page.body.contains("<secret in "), "{}", page.body);
    assert!(!page.body.contains("t0p-s3cret-t0ken"));
}

#[test]
fn the_api_tells_the_last_results_and_reasons() {
    let app = App::start();
    let refused = unused_port();
    let more = format!(
        "[[release.probe]]\nname = \"gone\"\nurl = \"http://127.0.0.1:{refused}/\"\ninterval = \"1s\"\n"
    );
    let leadsman = Leadsman::run(&(config(&app, "interval = \"1s\"") + &more), &[]);
    until("the failing probe is in the API", || {
        let list: serde_json::Value =
            serde_json::from_str(&leadsman.get("/api/v1/probes").body).unwrap();
        let probes = list["probes"].as_array().unwrap().clone();
        probes.iter().any(|p| {
            p["probe"] == "gone"
                && p["last"]["result"] == "failure"
                && p["last"]["reason"] == "connect_refused"
                && p["window"]["failure"]["connect_refused"].as_u64() > Some(0)
        }) && probes
            .iter()
            .any(|p| p["probe"] == "api" && p["last"]["result"] == "success")
    });
}

#[test]
fn reloading_keeps_counters_and_drops_the_series_of_a_removed_probe() {
    let app = App::start();
    let leadsman = Leadsman::run(&config(&app, "interval = \"1s\""), &[]);
    let total = |page: &str, probe: &str| -> Option<f64> {
        let start = format!(
            "leadsman_probes_total{{namespace=\"shop\",release=\"mykadoo\",probe=\"{probe}\",result=\"success\"}} "
        );
        page.lines()
            .find_map(|line| line.strip_prefix(&start))
            .and_then(|value| value.parse().ok())
    };
    until("api was asked three times", || {
        total(&leadsman.get("/metrics").body, "api") >= Some(3.0)
    });
    let before = total(&leadsman.get("/metrics").body, "api");
    let text = config(&app, "interval = \"1s\"");
    let at = text.rfind("[[release.probe]]").unwrap();
    leadsman.rewrite(&text[..at]);
    leadsman.signal("HUP");
    until("web is gone", || {
        total(&leadsman.get("/metrics").body, "web").is_none()
    });
    let page = leadsman.get("/metrics").body;
    assert!(
        total(&page, "api") >= before,
        "the counter of a probe that stays went back"
    );
    assert!(!page.contains("probe=\"web\""));
    // The look at the files comes every two seconds, and what a signal had read is no change to it.
    std::thread::sleep(Duration::from_secs(5));
    let log = leadsman.log();
    let times = log.matches("The configuration is in force").count();
    assert_eq!(times, 2, "at the start, and by the signal: {log}");

    leadsman.rewrite("nonsense = [");
    leadsman.signal("HUP");
    until("the failed reload shows", || {
        leadsman
            .get("/metrics")
            .body
            .contains("leadsman_config_last_reload_successful 0")
    });
    assert!(
        total(&leadsman.get("/metrics").body, "api").is_some(),
        "a bad file changes nothing"
    );
}

#[test]
fn while_the_control_probe_fails_failures_are_unknown_and_it_shows() {
    let (app, refused) = (App::start(), unused_port());
    let more = format!(
        "[[release.probe]]\nname = \"gone\"\nurl = \"http://127.0.0.1:{refused}/\"\n\
         [self_check]\ncontrol = {{ url = \"tcp://127.0.0.1:{refused}\", interval = \"100ms\" }}\n"
    );
    let leadsman = Leadsman::run(&(config(&app, "interval = \"1s\"") + &more), &[]);
    let of = |page: &str, start: &str| -> f64 {
        let line = page.lines().find_map(|line| line.strip_prefix(start));
        line.and_then(|value| value.trim().parse().ok())
            .unwrap_or(0.0)
    };
    let gone = "leadsman_probe_unknown_total{namespace=\"shop\",release=\"mykadoo\",probe=\"gone\",reason=\"control\"}";
    until("failures are unknown", || {
        of(&leadsman.get("/metrics").body, gone) >= 2.0
    });
    let page = leadsman.get("/metrics").body;
    assert!(
        page.contains("leadsman_self_check_failing{reason=\"control\"} 1"),
        "{page}"
    );
    assert!(
        page.contains("probe=\"api\",result=\"unknown\"} 0"),
        "a good answer stays good: {page}"
    );
    assert!(
        !page.contains("probe=\"control\""),
        "the control probe is of no release"
    );
}

#[test]
fn a_full_house_is_counted_and_its_slots_are_missed() {
    let hanging = crate::program::hanging_server();
    let text = format!(
        "max_in_flight = 1\n[serve]\nlisten = \"127.0.0.1:0\"\n[[release]]\nname = \"a\"\nnamespace = \"b\"\n\
         base_url = \"http://{hanging}\"\ninterval = \"100ms\"\ntimeout = \"60s\"\n\
         [[release.probe]]\nname = \"one\"\npath = \"/\"\n[[release.probe]]\nname = \"two\"\npath = \"/\"\n"
    );
    let leadsman = Leadsman::run(&text, &[]);
    until("the cap shows", || {
        let page = leadsman.get("/metrics").body;
        let saturated = page
            .lines()
            .find_map(|l| l.strip_prefix("leadsman_schedule_saturated_total "));
        let missed = page
            .lines()
            .filter(|l| l.starts_with("leadsman_probe_missed_total{"));
        page.contains("leadsman_schedule_in_flight 1\n")
            && saturated.and_then(|n| n.parse::<f64>().ok()) >= Some(5.0)
            && missed
                .filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok())
                .sum::<f64>()
                >= 5.0
    });
}

/// C19: while we stand still, targets do nothing wrong.
#[test]
fn a_process_that_was_stopped_makes_up_no_failures_and_no_results() {
    let app = App::start();
    let leadsman = Leadsman::run(
        &config(&app, "interval = \"200ms\"\ntimeout = \"500ms\""),
        &[],
    );
    let sum = |page: &str, family: &str, label: &str| -> f64 {
        let lines = page
            .lines()
            .filter(|l| l.starts_with(family) && l.contains(label));
        lines
            .filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    };
    let success = "result=\"success\"";
    until("results are good", || {
        sum(
            &leadsman.get("/metrics").body,
            "leadsman_probes_total{",
            success,
        ) >= 20.0
    });
    let before = sum(
        &leadsman.get("/metrics").body,
        "leadsman_probes_total{",
        success,
    );
    leadsman.signal("STOP");
    // The standstill itself; nothing is waited for.
    std::thread::sleep(Duration::from_secs(5));
    leadsman.signal("CONT");
    until("the gap is counted", || {
        sum(
            &leadsman.get("/metrics").body,
            "leadsman_probe_missed_total{",
            "",
        ) >= 4.0 * 15.0
    });
    let page = leadsman.get("/metrics").body;
    let failure = sum(&page, "leadsman_probes_total{", "result=\"failure\"");
    assert!(
        failure < 1.0,
        "{failure} failures were made up:
{page}"
    );
    let started = sum(&page, "leadsman_probes_total{", "") - before;
    assert!(
        started < 4.0 * 20.0,
        "a burst of {started} results after the gap"
    );
    assert_eq!(leadsman.get("/-/healthy").status, 200, "it goes on");
}

/// Its one probe hangs for a minute.
fn with_a_hanging_target() -> Leadsman {
    let hanging = crate::program::hanging_server();
    let text = format!(
        "[serve]\nlisten = \"127.0.0.1:0\"\n[[release]]\nname = \"a\"\nnamespace = \"b\"\nbase_url = \"http://{hanging}\"\n\
         [[release.probe]]\nname = \"slow\"\npath = \"/\"\ntimeout = \"60s\"\ninterval = \"1s\"\n"
    );
    Leadsman::run(&text, &[])
}

#[test]
fn sigterm_ends_with_0_also_while_a_target_hangs() {
    let mut leadsman = with_a_hanging_target();
    until("a result hangs", || {
        let page = leadsman.get("/metrics").body;
        page.lines().any(|l| {
            l.strip_prefix("leadsman_schedule_in_flight ")
                .is_some_and(|n| n != "0")
        })
    });
    leadsman.signal("TERM");
    assert_eq!(leadsman.exit_code(Duration::from_secs(50)), Some(0));
}

#[test]
fn a_second_signal_ends_at_once() {
    let mut leadsman = with_a_hanging_target();
    until("a result hangs", || {
        !leadsman
            .get("/metrics")
            .body
            .contains("leadsman_schedule_in_flight 0\n")
    });
    leadsman.signal("TERM");
    until("it is stopping", || leadsman.said("Stopping"));
    leadsman.signal("TERM");
    assert_eq!(leadsman.exit_code(Duration::from_secs(50)), Some(1));
}

#[test]
fn an_address_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let app = App::start();
    let (code, text) = crate::program::run_to_end(
        &config(&app, "").replace("127.0.0.1:0", &address.to_string()),
        &["run"],
    );
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains(&address.to_string()) && text.contains("in use"),
        "{text}"
    );
}

#[test]
fn a_wrong_configuration_ends_with_2_and_shows_all_mistakes() {
    let (code, text) = crate::program::run_to_end(
        "[[release]]\nnam = \"x\"\n[[release.probe]]\ntimeout = \"0s\"\n",
        &["run"],
    );
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("nam") && text.contains("timeout"), "{text}");
}

#[test]
fn a_client_that_dribbles_its_request_does_not_hold_up_others() {
    use std::io::Write as _;
    let app = App::start();
    let leadsman = Leadsman::run(&config(&app, ""), &[]);
    let mut slow: Vec<_> = (0..50)
        .map(|_| std::net::TcpStream::connect(leadsman.address()).unwrap())
        .collect();
    for stream in &mut slow {
        stream.write_all(b"GET /metrics HTT").unwrap();
    }
    assert_eq!(leadsman.get("/-/healthy").status, 200);
}

/// Also where the node pipes cores into a program, which looks at another thing than the limit: see `leave_no_core`.
#[test]
fn a_daemon_leaves_no_core() {
    let leadsman = Leadsman::run(CONFIG_OF_RUNBOOK, &[]);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", leadsman.pid())).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"));
    let words: Vec<&str> = core.unwrap().split_whitespace().collect();
    assert_eq!(words[4..6], ["0", "0"], "{limits}");
    // It still sees what it needs of itself.
    let page = leadsman.get("/metrics").body;
    assert!(page.contains("process_open_fds "), "{page}");
    assert!(page.contains("process_resident_memory_bytes "), "{page}");
}

/// The runbook's four probes against the app; `release` is added to the release.
fn config(app: &App, release: &str) -> String {
    let mut text = format!(
        "[serve]\nlisten = \"127.0.0.1:0\"\n[[release]]\nname = \"mykadoo\"\nnamespace = \"shop\"\nbase_url = \"{}\"\n{release}\n",
        app.url()
    );
    for (name, path) in [
        ("api", "/api/health"),
        ("db", "/api/health/db"),
        ("redis", "/api/health/redis"),
        ("web", "/"),
    ] {
        text += &format!("[[release.probe]]\nname = \"{name}\"\npath = \"{path}\"\n");
        if name != "web" {
            text += "expect = { status = 200, json = { \"/status\" = \"ok\" } }\n";
        }
    }
    text
}

/// Every alert has its part of the runbook, where its link leads.
#[test]
fn the_runbook_has_a_part_for_each_alert() {
    let leadsman = Leadsman::run(CONFIG_OF_RUNBOOK, &[]);
    let reply = leadsman.get("/runbook");
    assert_eq!(reply.status, 200);
    for kind in leadsman::core::alerts::AlertKind::ALL {
        let id = format!("id=\"{}\"", kind.name().to_lowercase());
        assert!(reply.body.contains(&id), "{id}");
    }
}

const CONFIG_OF_RUNBOOK: &str = "[[release]]\nname = \"a\"\nnamespace = \"b\"\n[[release.probe]]\nname = \"c\"\nurl = \"tcp://127.0.0.1:1\"\n";
