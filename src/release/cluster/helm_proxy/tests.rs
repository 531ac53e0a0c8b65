//! What helm may ask for, and what reaches the API server of it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test may end where it stands"
)]

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;

use super::*;
use crate::platform::clock;
use crate::platform::permit::HeldLease;

const ROLE: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles/reader";

const WEB: &str = "/apis/apps/v1/namespaces/shop/deployments/web";

fn reach() -> HelmReach {
    HelmReach {
        namespaces: ["shop".to_owned(), "tools".to_owned()].into(),
        cluster_scoped: [("storage.k8s.io".to_owned(), "storageclasses".to_owned())].into(),
        left_alone: [(ROLE.to_owned(), json!({"kind": "ClusterRole"}))].into(),
        keeps_pods: [WEB.to_owned()].into(),
    }
}

#[test]
fn the_path_of_a_request_decides() {
    let reach = reach();
    for (method, path) in [
        ("GET", "/version"),
        ("GET", "/api"),
        ("GET", "/apis"),
        ("GET", "/api/v1"),
        ("GET", "/apis/apps/v1"),
        ("GET", "/openapi/v3/apis/apps/v1"),
        ("GET", "/api/v1/namespaces/shop/secrets"),
        ("POST", "/api/v1/namespaces/shop/secrets"),
        ("PATCH", "/apis/apps/v1/namespaces/tools/deployments/web"),
        ("DELETE", "/api/v1/namespaces/shop/configmaps/status"),
        ("GET", "/api/v1/namespaces/shop/pods/web-1/log"),
        ("POST", "/apis/storage.k8s.io/v1/storageclasses"),
        ("PATCH", "/apis/storage.k8s.io/v1/storageclasses/fast"),
        ("DELETE", "/apis/storage.k8s.io/v1/storageclasses/fast"),
    ] {
        assert_eq!(
            reach.decide(&method.parse().unwrap(), path),
            ProxyDecision::Pass,
            "{method} {path}"
        );
    }
    for (reason, method, path) in [
        (
            "foreign_namespace",
            "GET",
            "/api/v1/namespaces/kube-system/secrets",
        ),
        (
            "foreign_namespace",
            "POST",
            "/api/v1/namespaces/kube-system/pods",
        ),
        (
            "foreign_namespace",
            "PATCH",
            "/apis/apps/v1/namespaces/Shop/deployments/web",
        ),
        (
            "cluster_scoped",
            "POST",
            "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
        ),
        ("cluster_scoped", "DELETE", "/api/v1/namespaces/shop"),
        ("cluster_scoped", "POST", "/api/v1/namespaces"),
        ("cluster_scoped", "GET", "/api/v1/pods"),
        // Of another group.
        (
            "cluster_scoped",
            "POST",
            "/apis/example.com/v1/storageclasses",
        ),
        ("cluster_scoped", "DELETE", ROLE),
        ("path", "PUT", "/api/v1/namespaces/shop/finalize"),
        (
            "path",
            "POST",
            "/api/v1/namespaces/shop/serviceaccounts/web/token",
        ),
        ("path", "POST", "/api/v1/namespaces/shop/pods/web-1/exec"),
        (
            "path",
            "GET",
            "/api/v1/namespaces/shop/services/web/proxy/x",
        ),
        ("path", "GET", "/api/v1/nodes/one/proxy"),
        ("path", "GET", "/logs"),
        ("path", "GET", "/"),
        ("path", "GET", "//api/v1/namespaces/shop/pods"),
        ("path", "GET", "/api/v1/namespaces/shop/../kube-system/pods"),
        (
            "path",
            "GET",
            "/api/v1/namespaces/shop/..%2fkube-system/pods",
        ),
        ("path", "POST", "/version"),
        // All of a kind at once.
        ("path", "DELETE", "/api/v1/namespaces/shop/secrets"),
        (
            "path",
            "DELETE",
            "/apis/apps/v1/namespaces/tools/deployments",
        ),
        ("path", "DELETE", "/apis/storage.k8s.io/v1/storageclasses"),
    ] {
        let decision = reach.decide(&method.parse().unwrap(), path);
        let ProxyDecision::Refuse(why) = &decision else {
            panic!("{method} {path}: {decision:?}");
        };
        assert!(
            why.starts_with(&format!("{reason}: ")),
            "{method} {path}: {why}"
        );
    }
    for method in [Method::GET, Method::PATCH] {
        assert!(matches!(
            reach.decide(&method, ROLE),
            ProxyDecision::Answer(_)
        ));
    }
}

fn policy(permit: Permit, folder: &Path) -> RollbackPolicy {
    RollbackPolicy {
        helm_memory: 256 << 20,
        helm: "helm".into(),
        scratch: folder.to_owned(),
        cluster: "cluster".into(),
        may: crate::config::settings::RollbackPermissions::default(),
        permit,
        enforces: true,
        by_person: false,
    }
}

type Seen = Arc<Mutex<Vec<String>>>;

async fn note(State(seen): State<Seen>, request: axum::extract::Request) -> &'static str {
    let names = [
        "authorization",
        "proxy-authorization",
        "impersonate-user",
        "x-of-helm",
    ];
    let mut line = format!("{} {}", request.method(), request.uri());
    for name in names {
        if let Some(value) = request.headers().get(name) {
            line += &format!(" {name}={}", value.to_str().unwrap());
        }
    }
    let body = axum::body::to_bytes(request.into_body(), 1000)
        .await
        .unwrap();
    line += &format!(" {}", String::from_utf8_lossy(&body));
    seen.lock().unwrap().push(line);
    "{}"
}

/// What the proxy answers, without its end of the connection.
async fn asked(proxy: &HelmProxy, password: &str, rest: &str) -> String {
    sent(proxy, password, rest, "text/plain", "body").await
}

async fn sent(proxy: &HelmProxy, password: &str, rest: &str, kind: &str, body: &str) -> String {
    let length = body.len();
    let credentials = STANDARD.encode(format!("helm:{password}"));
    let (method, rest) = rest.split_once(' ').unwrap();
    let head = format!(
        "{method} http://kubernetes{rest} HTTP/1.1\r\nHost: kubernetes\r\nProxy-Authorization: Basic {credentials}\r\n\
         Impersonate-User: root\r\nAuthorization: Bearer stolen\r\nX-Of-Helm: yes\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    let mut stream = TcpStream::connect(proxy.listener.local_addr().unwrap())
        .await
        .unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = async {
        stream.read_to_string(&mut answer).await.unwrap();
    };
    tokio::select! {
        () = read => {}
        never = proxy.serve() => match never {},
    }
    answer
}

#[tokio::test]
async fn only_what_is_allowed_arrives_and_with_our_own_credentials() {
    let seen = Seen::default();
    let routes = Router::new().fallback(note).with_state(Arc::clone(&seen));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let _serving = tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
    let mut config = kube::Config::new(format!("http://{address}/below").parse().unwrap());
    config.auth_info.token = Some("ours".to_owned().into());
    let client = Client::try_from(config).unwrap();
    let (tell, permit) = watch::channel(Some(HeldLease {
        until: clock::now() + Duration::from_secs(60),
        fence: 1,
    }));
    let folder = tempfile::tempdir().unwrap();
    let policy = policy(Permit::of(permit), folder.path());
    let proxy = HelmProxy::new(client, reach(), &policy);
    let proxy = proxy.await.unwrap();
    let text = std::fs::read_to_string(proxy.kubeconfig()).unwrap();
    assert!(
        text.contains(&proxy.password) && !text.contains("ours"),
        "{text}"
    );
    let mode =
        std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(proxy.kubeconfig()).unwrap());
    assert_eq!(mode & 0o777, 0o600);

    let password = proxy.password.clone();
    let own = "POST /api/v1/namespaces/shop/secrets?fieldManager=helm";
    let answer = asked(&proxy, "guessed", own).await;
    assert!(answer.starts_with("HTTP/1.1 407 "), "{answer}");
    let answer = asked(&proxy, &password, own).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(proxy.refused(), None);
    let answer = asked(
        &proxy,
        &password,
        "POST /api/v1/namespaces/kube-system/pods",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    assert!(answer.contains("foreign_namespace"), "{answer}");
    assert!(proxy.refused().unwrap().contains("kube-system"));
    let answer = asked(&proxy, &password, &format!("PATCH {ROLE}?force=true")).await;
    assert!(
        answer.contains("200 OK") && answer.contains("ClusterRole"),
        "{answer}"
    );
    // Whoever may not act any more reads at most.
    tell.send_replace(None);
    let answer = asked(&proxy, &password, own).await;
    assert!(answer.contains("another replica acts"), "{answer}");
    let expected = "POST /below/api/v1/namespaces/shop/secrets?fieldManager=helm authorization=Bearer ours x-of-helm=yes body";
    assert_eq!(*seen.lock().unwrap(), [expected]);
    let file = proxy.kubeconfig().to_owned();
    drop(proxy);
    assert!(!file.exists());
}

#[tokio::test]
async fn a_workload_keeps_the_pods_that_an_autoscaler_has_made() {
    let seen = Seen::default();
    let live = || async { r#"{"spec": {"replicas": 40}}"# };
    let routes = Router::new()
        .route(WEB, axum::routing::get(live).patch(note))
        .fallback(note)
        .with_state(Arc::clone(&seen));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let _serving = tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
    let config = kube::Config::new(format!("http://{address}").parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let policy = policy(Permit::always(), folder.path());
    let proxy = HelmProxy::new(Client::try_from(config).unwrap(), reach(), &policy);
    let proxy = proxy.await.unwrap();
    let password = proxy.password.clone();
    let patch = async |path: &str, kind: &str, body: &str| {
        let request = format!("PATCH {path}?fieldManager=helm");
        let answer = sent(&proxy, &password, &request, kind, body).await;
        let last = seen.lock().unwrap().pop();
        (answer, last.unwrap_or_default())
    };
    let (merge, apply) = (
        "application/strategic-merge-patch+json",
        "application/apply-patch+yaml",
    );
    let two = r#"{"spec":{"replicas":2}}"#;
    for (path, kind, body, arrives) in [
        (WEB, merge, two, r#"{"spec":{"replicas":40}}"#),
        (WEB, apply, two, r#"{"spec":{"replicas":40}}"#),
        (WEB, merge, r#"{"spec":{}}"#, r#"{"spec":{}}"#),
        (WEB, apply, r#"{"spec":{}}"#, r#"{"spec":{"replicas":40}}"#),
        // Another workload, which nobody scales.
        (&WEB.replace("web", "api"), merge, two, two),
    ] {
        let (answer, last) = patch(path, kind, body).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let expected = format!("PATCH {path}?fieldManager=helm x-of-helm=yes {arrives}");
        assert_eq!(last, expected);
    }
    let (answer, last) = patch(WEB, apply, "spec: {replicas: 2}").await;
    assert!(
        answer.starts_with("HTTP/1.1 403 ") && last.is_empty(),
        "{answer}"
    );
    assert_eq!(reason(&proxy.refused().unwrap()), "replicas_lost");
}

#[tokio::test]
async fn a_folder_that_is_named_from_where_we_run_is_found_by_helm_in_it() {
    let folder = tempfile::tempdir_in(".").unwrap();
    let name = folder.path().file_name().unwrap();
    let client = Client::try_from(kube::Config::new("http://127.0.0.1:9".parse().unwrap()));
    let policy = policy(Permit::always(), Path::new(name));
    let proxy = HelmProxy::new(client.unwrap(), reach(), &policy);
    let proxy = proxy.await.unwrap();
    assert!(proxy.kubeconfig().is_absolute(), "{:?}", proxy.kubeconfig());
    assert!(proxy.kubeconfig().exists());
}

#[tokio::test]
async fn an_api_server_that_is_away_is_told_as_helm_tells_it() {
    use crate::helm::error::HelmError;

    // Nobody listens there.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let client = Client::try_from(kube::Config::new(
        format!("http://{address}").parse().unwrap(),
    ));
    let folder = tempfile::tempdir().unwrap();
    let policy = policy(Permit::always(), folder.path());
    let proxy = HelmProxy::new(client.unwrap(), reach(), &policy);
    let proxy = proxy.await.unwrap();
    let password = proxy.password.clone();
    let answer = asked(&proxy, &password, "GET /version").await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert_eq!(HelmError::of(&answer), HelmError::Transient, "{answer}");
}
