//! Whatever a target answers, a result ends with an outcome.

#![no_main]

use std::cell::RefCell;
use std::sync::OnceLock;
use std::time::Duration;

use leadsman::config::settings::ProbeKind;
use leadsman::config::{self, Sources, Target};
use leadsman::platform::clock;
use leadsman::prober::{Prober, ProberContext};
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

const PROBES: &str = r#"
[[release]]
name = "mykadoo"
namespace = "shop"
base_url = "http://127.0.0.1:9"
[[release.probe]]
name = "api"
path = "/"
redirects = 2
expect = { status = "200-399", json = { "/status" = "ok" }, body_matches = ["[a-z]+ok$"], body_not_matches = ["(error|panic)"] }
"#;

fn kind() -> ProbeKind {
    static QUESTION: OnceLock<ProbeKind> = OnceLock::new();
    let made = QUESTION.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("probes.toml");
        std::fs::write(&file, PROBES).expect("written");
        let sources = Sources {
            files: vec![file],
            environment: Vec::new(),
            flags: Vec::new(),
            discovered: Vec::new(),
        };
        let loaded = config::load(&sources).unwrap_or_else(|diagnostics| panic!("{diagnostics}"));
        let mut probes = loaded.settings.probes();
        probes.next().expect("a probe").kind.clone()
    });
    made.clone()
}

thread_local! {
    static RUNTIME: RefCell<Runtime> = RefCell::new(
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime"),
    );
}

async fn asked(data: &[u8]) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/", listener.local_addr().expect("an address"));
    let target = Target::parse(&url, "http").expect("a URL");
    let prober = Prober::new(&ProberContext::new(clock::now), target, kind());
    let timeout = Duration::from_millis(500);
    let answers = async {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else {
                return;
            };
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(data).await;
        }
    };
    tokio::select! {
        result = prober.sound(clock::now(), timeout, None) => {
            assert!(result.latency() <= timeout * 3, "{result:?}");
        }
        () = answers => {}
    }
}

fuzz_target!(|data: &[u8]| {
    RUNTIME.with(|runtime| runtime.borrow().block_on(asked(data)));
});
