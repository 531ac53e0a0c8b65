//! `leadsman demo --app-only`: a small app with the runbook's four endpoints, to have something to probe.

use std::net::SocketAddr;
use std::process::ExitCode;

use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use clap::Args;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{runtime, signals};
use crate::serve;

/// Connections at a time. Far more than a walk-through needs, and still a bound.
const MAX_CONNECTIONS: usize = 20_000;

/// Options of `leadsman demo`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  leadsman demo --app-only --listen 127.0.0.1:8080")]
pub struct DemoArgs {
    /// Serve the app and nothing else, until Ctrl-C
    #[arg(long, required = true)]
    app_only: bool,
    /// Where the app listens
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
}

pub(super) fn run(args: &DemoArgs) -> ExitCode {
    let Some(runtime) = runtime(1) else {
        return ExitCode::FAILURE;
    };
    runtime.block_on(async {
        let listener = match TcpListener::bind(args.listen).await {
            Ok(listener) => listener,
            Err(error) => {
                eprintln!("leadsman: cannot listen at {}: {error}; choose another with --listen", args.listen);
                return ExitCode::FAILURE;
            }
        };
        let address = listener.local_addr().unwrap_or(args.listen);
        say!("The app answers at http://{address}/, /api/health, /api/health/db and /api/health/redis.");
        say!("Stop it with Ctrl-C.");
        let stop = CancellationToken::new();
        let asked = stop.clone();
        let stopper = async move {
            signals::wait_for_stop().await;
            asked.cancel();
        };
        tokio::join!(serve::serve(listener, app(), MAX_CONNECTIONS, stop), stopper);
        ExitCode::SUCCESS
    })
}

/// The four endpoints of the runbook, all well.
fn app() -> Router {
    let ok = || async {
        (
            [(header::CONTENT_TYPE, "application/json")],
            r#"{"status": "ok"}"#,
        )
            .into_response()
    };
    let page =
        || async { ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], PAGE).into_response() };
    Router::new()
        .route("/", get(page))
        .route("/api/health", get(ok))
        .route("/api/health/db", get(ok))
        .route("/api/health/redis", get(ok))
}

const PAGE: &str =
    "<!doctype html><title>Demo app</title><p>The app that Leadsman takes soundings of.</p>\n";
