//! `leadsman probe NAME or URL`: one probe with its phases, like a person would use curl.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::{BAD_CONFIGURATION, ConfigArgs, runtime};
use crate::config;
use crate::config::Target;
use crate::config::settings::{ProbeConfig, ProbeKind, Settings};
use crate::core::probe_result::{HttpVersion, Outcome, ProbeResult};
use crate::platform::clock;
use crate::prober::{Prober, ProberContext, Transcript};

/// Options of `leadsman probe`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit code: 0 when every result was good, 1 when one was not, 2 for a wrong configuration.\n\n\
    Examples:\n  leadsman probe db\n  leadsman probe https://example.com/health --count 5\n  \
    leadsman probe tcp://127.0.0.1:5432"
)]
pub struct ProbeArgs {
    /// The name of a configured probe (as db, mykadoo/db or namespace/mykadoo/db), or a URL
    #[arg(value_name = "NAME or URL")]
    what: String,
    /// How many results
    #[arg(long, short = 'n', default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    count: u32,
    /// From one result to the next, when there are several
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    interval: Duration,
    /// How long one may take [default: the probe's own, or 10s for a URL]
    #[arg(long, value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// For a URL: the module that says how to ask
    #[arg(long, default_value = "http_2xx")]
    module: String,
    /// One JSON object per result
    #[arg(long)]
    json: bool,
    /// Show each step
    #[arg(long, short)]
    verbose: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

/// For a URL, unless told otherwise; as long as the longest timeout of the runbook.
const URL_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn run(args: &ProbeArgs) -> ExitCode {
    // A URL can be asked without any configuration, as curl does.
    let settings = if args.what.contains("://") && !args.config.is_there() {
        config::built_in()
    } else {
        match args.config.load() {
            Ok(loaded) => loaded.settings,
            Err(code) => return code,
        }
    };
    let (name, target, kind, timeout) = match find(args, &settings) {
        Ok(found) => found,
        Err(text) => {
            complain!("leadsman: {text}");
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    let Some(runtime) = runtime(1) else {
        return ExitCode::FAILURE;
    };
    let all_good = runtime.block_on(async {
        let prober = Prober::new(&ProberContext::new(clock::now), target.clone(), kind);
        let mut all_good = true;
        let mut due = clock::now();
        for number in 0..args.count {
            if number > 0 {
                due = due + args.interval;
                tokio::time::sleep(due.since(clock::now())).await;
            }
            let mut transcript = args.verbose.then(Transcript::default);
            let began = clock::now();
            let result = prober.sound(began, timeout, transcript.as_mut()).await;
            if let Some(transcript) = transcript {
                transcript
                    .lines()
                    .iter()
                    .for_each(|line| complain!("  {line}"));
            }
            all_good &= result.outcome == Outcome::Success;
            if args.json {
                say!("{}", as_json(&name, &target, &result));
            } else {
                print(&name, &target, &result);
            }
        }
        all_good
    });
    runtime.shutdown_background();
    if all_good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

type ProbeRun = (String, Target, ProbeKind, Duration);

fn find(args: &ProbeArgs, settings: &Settings) -> Result<ProbeRun, String> {
    if args.what.contains("://") {
        let target = // The URL may hold the credentials that are complained about.
            Target::parse(&args.what, "http").map_err(|error| format!("the URL {error}"))?;
        let name = if target.is_tcp() && args.module == "http_2xx" {
            "tcp_connect"
        } else {
            args.module.as_str()
        };
        let module = settings.modules.get(name).ok_or_else(|| {
            let known: Vec<_> = settings.modules.keys().map(String::as_str).collect();
            format!(
                "there is no module {name:?}; known are {}",
                known.join(", ")
            )
        })?;
        if target.is_tcp() != matches!(module.kind, ProbeKind::Tcp(_)) {
            return Err(format!(
                "the module {name:?} does not speak {}",
                target.url().scheme()
            ));
        }
        let timeout = args.timeout.or(module.timeout).unwrap_or(URL_TIMEOUT);
        return Ok((name.to_owned(), target, module.kind.clone(), timeout));
    }
    let called = |probe: &ProbeConfig| {
        let id = &probe.id;
        [
            id.to_string(),
            format!("{}/{}", id.release, id.probe),
            id.probe.to_string(),
        ]
        .contains(&args.what)
    };
    let found: Vec<&Arc<ProbeConfig>> = settings
        .probes()
        .chain(&settings.dependencies)
        .filter(|probe| called(probe))
        .collect();
    match found.as_slice() {
        [probe] => Ok((
            probe.id.to_string(),
            probe.target.clone(),
            probe.kind.clone(),
            args.timeout.unwrap_or(probe.timeout),
        )),
        [] => {
            let known: Vec<_> = settings
                .probes()
                .take(20)
                .map(|probe| probe.id.to_string())
                .collect();
            Err(format!(
                "there is no probe {:?}; known are {}",
                args.what,
                known.join(", ")
            ))
        }
        several => {
            let ids: Vec<_> = several
                .iter()
                .take(20)
                .map(|probe| probe.id.to_string())
                .collect();
            Err(format!(
                "{:?} names {} probes: {}",
                args.what,
                several.len(),
                ids.join(", ")
            ))
        }
    }
}

fn print(name: &str, target: &Target, result: &ProbeResult) {
    let (outcome, reason) = result.outcome.words();
    let status = result
        .answer
        .status
        .map_or_else(String::new, |status| format!("  {status}"));
    let version = result.answer.http_version.map_or("", HttpVersion::as_str);
    let version = if version.is_empty() {
        String::new()
    } else {
        format!("  HTTP/{version}")
    };
    let reason = reason.map_or_else(String::new, |reason| format!(" ({reason})"));
    say!(
        "{outcome}{reason}  {name}  {}{status}{version}  {}",
        target.shown(),
        millis(result.duration())
    );
    if let Some(why) = &result.explanation {
        say!("  why         {why}");
    }
    for (phase, span) in result.phases.named() {
        say!("  {phase:<10}  {:>12}", millis(span));
    }
    if let Some(ip) = result.answer.ip {
        say!("  address     {ip}");
    }
    if let Some(tls) = &result.answer.tls {
        let days = (tls.earliest_expiry as f64 - clock::unix_seconds()) / 86_400.0;
        say!(
            "  TLS         {}, certificate of {} valid for {days:.0} days",
            tls.version,
            tls.subject
        );
    }
    if result.answer.status.is_some() {
        say!("  body        {} bytes", result.answer.unpacked_bytes);
    }
}

fn millis(span: Duration) -> String {
    format!("{:.2} ms", span.as_secs_f64() * 1e3)
}

fn as_json(name: &str, target: &Target, result: &ProbeResult) -> serde_json::Value {
    let (outcome, reason) = result.outcome.words();
    let phases: serde_json::Map<_, _> = result
        .phases
        .named()
        .iter()
        .map(|(phase, span)| ((*phase).to_owned(), json!(span.as_secs_f64())))
        .collect();
    json!({
        "probe": name,
        "target": target.shown(),
        "result": outcome,
        "reason": reason,
        "explanation": result.explanation,
        "duration_seconds": result.duration().as_secs_f64(),
        "phases_seconds": phases,
        "status": result.answer.status,
        "http_version": result.answer.http_version,
        "redirects": result.answer.redirects,
        "address": result.answer.ip,
        "body_bytes": result.answer.unpacked_bytes,
        "certificate_expiry_timestamp_seconds": result.answer.tls.as_ref().map(|tls| tls.earliest_expiry),
    })
}
