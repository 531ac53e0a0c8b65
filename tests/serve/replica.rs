//! The listener with its pages, in this process, with a board that the test writes.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc as std_mpsc};
use std::time::Duration;

use leadsman::config::Sources;
use leadsman::config::settings::{ServeConfig, Settings, TlsConfig as LeaseTls};
use leadsman::core::probe_stats::TrackedProbe;
use leadsman::http::status::{GuardView, RolloutView};
use leadsman::http::{
    self, AcceptedOrder, AccessReview, AppState, Dependencies, LeaderProxy, LeaderRoute,
    ListenerTls, ReloadRequest, RollbackOrder, Routing, ServingConfig,
};
use leadsman::metrics::{Metrics, ProbeSeries};
use leadsman::platform::clock;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::program::{Reply, post, request};

/// Longer than anything here takes, on the slowest machine.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// What a replica is made of.
pub(crate) struct Made {
    pub(crate) token_file: Option<PathBuf>,
    pub(crate) review: Option<AccessReview>,
    pub(crate) recording: Vec<u8>,
    pub(crate) max_connections: usize,
    pub(crate) tls: Option<ListenerTls>,
    pub(crate) at: SocketAddr,
}

impl Default for Made {
    fn default() -> Self {
        Self {
            token_file: None,
            review: None,
            recording: b"{}\n".to_vec(),
            max_connections: 64,
            tls: None,
            at: SocketAddr::from(([127, 0, 0, 1], 0)),
        }
    }
}

/// A replica that guards the release shop/mykadoo, or says who does.
pub(crate) struct Replica {
    pub(crate) shared: Arc<AppState>,
    pub(crate) address: SocketAddr,
    stop: CancellationToken,
    ended: std_mpsc::Receiver<()>,
    pub(crate) orders: mpsc::Sender<RollbackOrder>,
    done: Arc<AtomicUsize>,
    /// The ids of the orders that came, the newest last.
    pub(crate) order_ids: Arc<Mutex<Vec<String>>>,
    pub(crate) token_file: Option<PathBuf>,
    review: Option<AccessReview>,
    _runtime: Runtime,
}

impl Replica {
    pub(crate) fn start(created_revision: Made) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let done = Arc::new(AtomicUsize::new(0));
        let (orders, mut ordered) = mpsc::channel::<RollbackOrder>(4);
        let (reload, mut reloads) = mpsc::channel::<ReloadRequest>(4);
        let counted = Arc::clone(&done);
        let order_ids = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&order_ids);
        runtime.spawn(async move {
            loop {
                tokio::select! {
                    Some(order) = ordered.recv() => {
                        let accepted = AcceptedOrder {
                            // As it was named by whoever sent it, so that a test sees that the name comes through.
                            id: order.key.as_deref().unwrap_or("unnamed").to_owned(),
                            revision: 2,
                            target: order.target,
                            joined: false,
                        };
                        kept.lock().unwrap().push(accepted.id.clone());
                        let _ = order.answer.send(Ok(accepted));
                     }
                    Some(order) = reloads.recv() => { let _ = order.send(Ok(())); }
                    else => break,
                }
                counted.fetch_add(1, Ordering::SeqCst);
            }
        });
        let recording = created_revision.recording;
        let dependencies = Dependencies {
            metrics: Arc::new(Metrics::new().unwrap()),
            clock: clock::now,
            beat: Box::new(clock::now),
            refresh: Box::new(|| {}),
            troubles: Box::new(Vec::new),
            take: Arc::new(|_| Box::pin(std::future::pending())),
            recording: Arc::new(move |_, _, _| Some(recording.clone())),
            reload,
        };
        let serve = ServeConfig {
            listen: created_revision.at,
            max_connections: created_revision.max_connections,
            probe_allow: Vec::new(),
            probe_rate: 10,
            timeout_offset: Duration::ZERO,
            token_file: None,
            kubernetes_auth: false,
            tls: None,
            external_url: None,
        };
        let shared = Arc::new(AppState::new(dependencies, empty(), &serve));
        let listener = runtime
            .block_on(TcpListener::bind(created_revision.at))
            .unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let (end, ended) = std_mpsc::channel();
        let serving = http::serve(
            listener,
            http::router(Arc::clone(&shared)),
            created_revision.max_connections,
            created_revision.tls.map(Arc::new),
            stop.clone(),
        );
        runtime.spawn(async move {
            serving.await;
            let _ = end.send(());
        });
        let replica = Self {
            shared,
            address,
            stop,
            ended,
            orders,
            done,
            order_ids,
            token_file: created_revision.token_file,
            review: created_revision.review,
            _runtime: runtime,
        };
        replica.controllers(&[]);
        replica.shared.set_ready(true);
        replica
    }

    /// Another one that passes on to an address.
    pub(crate) fn follower(address: &str, tls: &LeaseTls) -> Self {
        let replica = Self::start(Made::default());
        replica.follows(address, tls);
        replica
    }

    pub(crate) fn follows(&self, address: &str, tls: &LeaseTls) {
        self.shared
            .set_answers(Routing::One(LeaderRoute::Elsewhere {
                identity: "leadsman-1".into(),
                forward: LeaderProxy::to(address, tls).map(Arc::new),
            }));
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Puts the release on the board, with watches that have ended.
    pub(crate) fn controllers(&self, rollouts: &[RolloutView]) {
        let view = GuardView {
            namespace: "shop".into(),
            release: "mykadoo".into(),
            mode: "enforce",
            engine: Some("embedded"),
            phase: "analyzing".into(),
            says: "it is watched".into(),
            revision: Some(2),
            at_hand: Some(2),
            rollouts: rollouts.to_vec(),
            ..GuardView::default()
        };
        let key = ("shop".to_owned(), "mykadoo".to_owned());
        self.shared.replace_serving_config(ServingConfig {
            series: series(&settings(&["mykadoo"])),
            controllers: vec![watch::channel(Arc::new(view)).1],
            orders: [(key, self.orders.clone())].into(),
            token_file: self.token_file.clone(),
            review: self.review.clone(),
            ..empty()
        });
    }

    /// A board on which no release has been put.
    pub(crate) fn guards_nothing(&self) {
        self.shared.replace_serving_config(empty());
    }

    /// Orders and reloads that have been carried out.
    pub(crate) fn done(&self) -> usize {
        self.done.load(Ordering::SeqCst)
    }

    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits for the end of the listener.
    pub(crate) fn ends(&self) {
        let ended = self.ended.recv_timeout(LONG);
        ended.expect("the listener ends, whatever its clients do");
    }

    pub(crate) fn get(&self, path: &str, token: Option<&str>) -> Reply {
        let headers = bearer(token);
        request(self.address, "GET", path, &pairs(&headers))
    }

    pub(crate) fn post(&self, path: &str, token: Option<&str>, body: &str) -> Reply {
        let headers = bearer(token);
        post(self.address, path, &pairs(&headers), body.as_bytes())
    }
}

fn bearer(token: Option<&str>) -> Vec<(&'static str, String)> {
    let token = token.map(|token| ("Authorization", format!("Bearer {token}")));
    token.into_iter().collect()
}

fn pairs<'a>(headers: &'a [(&'static str, String)]) -> Vec<(&'static str, &'a str)> {
    let pairs = headers.iter().map(|(name, value)| (*name, value.as_str()));
    pairs.collect()
}

/// Releases with a probe each, since what has none is not shown, and an alert of the same name.
pub(crate) fn settings(releases: &[&str]) -> Settings {
    let file = tempfile::NamedTempFile::new().unwrap();
    let texts = releases.iter().map(|name| {
        format!(
            "[[release]]\nname = {name:?}\nnamespace = \"shop\"\n\
             [[release.probe]]\nname = \"api\"\nurl = \"tcp://127.0.0.1:1\"\n\
             [[release.alert]]\nmatch = {{ alertname = \"both|{name}\" }}\n"
        )
    });
    let serve = "[serve]\ntoken_file = \"/nowhere\"\n".to_owned();
    let text: String = std::iter::once(serve).chain(texts).collect();
    std::fs::write(file.path(), text).unwrap();
    let sources = Sources {
        files: vec![file.path().to_owned()],
        ..Sources::default()
    };
    leadsman::config::load(&sources).unwrap().settings
}

pub(crate) fn series(settings: &Settings) -> Vec<ProbeSeries> {
    let tracked_probe = settings
        .probes()
        .map(|probe| Arc::new(TrackedProbe::new(Arc::clone(probe), clock::now())));
    tracked_probe.map(ProbeSeries::new).collect()
}

pub(crate) fn empty() -> ServingConfig {
    ServingConfig {
        series: Vec::new(),
        modules: std::collections::BTreeMap::new(),
        targets: std::collections::HashSet::new(),
        allow: Vec::new(),
        timeout_offset: Duration::ZERO,
        controllers: Vec::new(),
        orders: std::collections::HashMap::new(),
        alerts: Vec::new(),
        token_file: None,
        review: None,
        files: Vec::new(),
    }
}

/// A file with the token `tok-right`.
pub(crate) fn token() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "tok-right\n").unwrap();
    (folder, file)
}
