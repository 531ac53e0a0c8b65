//! Overriding answers while pods run, and the kubelet's logs.
//!
//! `POST 127.0.0.1:9900/dependency?namespace=N&path=/api/health/db&answer=status:503`: all pods of a namespace;
//! `POST …/pod?namespace=N&pod=P&path=/&answer=hang`: one pod. Without `answer` the override ends.
//! `POST …/registry?namespace=N&workload=W`: pods of the workload that start from now on cannot pull their images.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use rustix::process::Signal;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;

use crate::behaviour::Answer;
use crate::pods::World;

type Asked = Query<HashMap<String, String>>;

pub(crate) async fn serve(world: Arc<World>) {
    let router = Router::new()
        .route("/dependency", post(set))
        .route("/pod", post(set))
        .route("/registry", post(registry))
        .route("/signal", post(signal))
        .with_state(world);
    let listener = TcpListener::bind("127.0.0.1:9900")
        .await
        .expect("the control port");
    axum::serve(listener, router)
        .await
        .expect("the control server");
}

async fn set(State(world): State<Arc<World>>, Query(asked): Asked) -> StatusCode {
    let text = |key: &str| asked.get(key).cloned().unwrap_or_default();
    let key = (text("namespace"), text("pod"), text("path"));
    let mut overrides = world.overrides.lock().unwrap();
    match asked.get("answer").map(|answer| Answer::parse(answer)) {
        Some(Some(answer)) => {
            overrides.insert(key, answer);
        }
        Some(None) => return StatusCode::BAD_REQUEST,
        None => {
            overrides.remove(&key);
        }
    }
    StatusCode::NO_CONTENT
}

async fn registry(State(world): State<Arc<World>>, Query(asked): Asked) -> StatusCode {
    let text = |key: &str| asked.get(key).cloned().unwrap_or_default();
    let mut without = world.without_registry.lock().unwrap();
    without.insert((text("namespace"), text("workload")));
    StatusCode::NO_CONTENT
}

/// `POST …/signal?namespace=N&pod=P&signal=KILL`, also `STOP` and `CONT`: to a pod that is no simulation.
async fn signal(State(world): State<Arc<World>>, Query(asked): Asked) -> StatusCode {
    let text = |key: &str| asked.get(key).cloned().unwrap_or_default();
    let signal = match text("signal").as_str() {
        "KILL" => Signal::KILL,
        "STOP" => Signal::STOP,
        "CONT" => Signal::CONT,
        _ => return StatusCode::BAD_REQUEST,
    };
    let pods = world.pods.lock().unwrap();
    let pod = pods.get(&(text("namespace"), text("pod")));
    if pod.is_some_and(|pod| pod.signal(signal)) {
        StatusCode::NO_CONTENT
    } else {
        StatusCode::NOT_FOUND
    }
}

/// `GET /containerLogs/NAMESPACE/POD/CONTAINER`, as the API server asks for it.
pub(crate) async fn kubelet(world: Arc<World>, cert: String, key: String) {
    let chain: Vec<CertificateDer> = CertificateDer::pem_file_iter(cert)
        .expect("the certificate")
        .map(|one| one.expect("a certificate"))
        .collect();
    let key = PrivateKeyDer::from_pem_file(key).expect("the key");
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key);
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config.expect("a usable certificate")));
    let router = Router::new()
        .route("/containerLogs/{namespace}/{pod}/{container}", get(logs))
        .with_state(world);
    let listener = TcpListener::bind("127.0.0.1:10250")
        .await
        .expect("the kubelet's port");
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let (acceptor, router) = (acceptor.clone(), router.clone());
        tokio::spawn(async move {
            if let Ok(stream) = acceptor.accept(stream).await {
                let service = TowerToHyperService::new(router);
                let connection = hyper::server::conn::http1::Builder::new();
                let _ = connection
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            }
        });
    }
}

async fn logs(
    State(world): State<Arc<World>>,
    Path((namespace, pod, _)): Path<(String, String, String)>,
    Query(asked): Asked,
) -> Result<String, StatusCode> {
    let pods = world.pods.lock().unwrap();
    let running = pods.get(&(namespace, pod)).ok_or(StatusCode::NOT_FOUND)?;
    let logs = running.logs.lock().unwrap();
    let is_previous = asked.get("previous").is_some_and(|value| value == "true");
    let lines = if is_previous { &logs.1 } else { &logs.0 };
    let most = asked
        .get("tailLines")
        .and_then(|most| most.parse().ok())
        .unwrap_or(usize::MAX);
    let skipped = lines.len().saturating_sub(most);
    let mut text = String::new();
    for line in lines.iter().skip(skipped) {
        text.push_str(line);
        text.push('\n');
    }
    Ok(text)
}
