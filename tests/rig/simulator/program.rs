//! A pod that is no simulation: the real program, in a root of its own, with what its pod says it gets.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret, Service, ServiceAccount};
use kube::api::{ListParams, PostParams};
use kube::{Api, ResourceExt};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, Command};

use crate::pods::Running;

/// How often files of ConfigMaps and Secrets are brought up to date; a kubelet takes a minute.
const REFRESH: Duration = Duration::from_secs(1);

/// The programs that images stand for: `NAME=PATH`, divided by commas.
const PROGRAMS: &str = "LEADSMAN_RIG_PROGRAMS";

/// The program that an image stands for, if it does.
pub(crate) fn of(image: &str) -> Option<PathBuf> {
    let name = image.rsplit('/').next()?.split([':', '@']).next()?;
    let programs = std::env::var(PROGRAMS).ok()?;
    let mut all = programs.split(',').filter_map(|one| one.split_once('='));
    let (_, path) = all.find(|(known, _)| *known == name)?;
    Some(PathBuf::from(path))
}

/// A container that runs.
pub(crate) struct Program {
    child: Child,
    root: PathBuf,
}

impl Program {
    /// Starts it in a root that holds nothing but the program, what it needs to start, and the volumes of its pod.
    pub(crate) async fn start(
        pod: &Arc<Running>,
        spec: &Pod,
        program: &Path,
    ) -> Result<Self, String> {
        let container = spec.spec.as_ref().and_then(|spec| spec.containers.first());
        let container = container.ok_or("no container")?;
        let rig = std::env::var("LEADSMAN_RIG").map_err(|_| "no rig".to_owned())?;
        let root = Path::new(&rig)
            .join("roots")
            .join(format!("{}.{}", pod.namespace, pod.name));
        let said = |error: std::io::Error| error.to_string();
        std::fs::create_dir_all(&root).map_err(said)?;
        refresh(pod, spec, container, &root).await?;
        credentials(pod, spec, &root, Path::new(&rig)).await?;
        names(pod, &root).await?;
        let address = pod.address().to_string();
        // All pods share one network, so everybody listens at the address of its own pod.
        let own = |text: &str| {
            text.replace("$(POD_IP)", &address)
                .replace("0.0.0.0:", &format!("{address}:"))
        };
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rig/container");
        let mut command = Command::new(here);
        command
            .arg(&root)
            .arg(program)
            .args(container.args.iter().flatten().map(|text| own(text)))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOSTNAME", &pod.name)
            .env("KUBERNETES_SERVICE_HOST", "127.0.0.1")
            .env("KUBERNETES_SERVICE_PORT", "6443")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        for variable in container.env.iter().flatten() {
            let field = variable
                .value_from
                .as_ref()
                .and_then(|from| from.field_ref.as_ref());
            let value = match field.map(|field| field.field_path.as_str()) {
                Some("status.podIP") => address.clone(),
                Some("metadata.name") => pod.name.clone(),
                Some(other) => return Err(format!("the field {other} is not simulated")),
                None => own(variable.value.as_deref().unwrap_or("")),
            };
            command.env(&variable.name, value);
        }
        let mut child = command.spawn().map_err(said)?;
        keep(pod, child.stdout.take());
        keep(pod, child.stderr.take());
        Ok(Self { child, root })
    }

    /// Brings its volumes up to date until it ends; its exit code.
    pub(crate) async fn run(&mut self, pod: &Arc<Running>, spec: &Pod) -> i32 {
        let container = spec.spec.as_ref().and_then(|spec| spec.containers.first());
        loop {
            tokio::select! {
                ended = self.child.wait() => {
                    return ended.ok().and_then(|status| status.code()).unwrap_or(137);
                }
                () = tokio::time::sleep(REFRESH) => {
                    if let Some(container) = container {
                        let _ = refresh(pod, spec, container, &self.root).await;
                    }
                }
            }
        }
    }

    pub(crate) fn id(&self) -> Option<u32> {
        self.child.id()
    }
}

fn keep(pod: &Arc<Running>, from: Option<impl AsyncRead + Unpin + Send + 'static>) {
    let Some(from) = from else { return };
    let pod = Arc::clone(pod);
    tokio::spawn(async move {
        let mut lines = BufReader::new(from).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            pod.log(&line);
        }
    });
}

/// Writes ConfigMaps and Secrets as a kubelet does: a folder for each state, and a link that is set anew.
async fn refresh(
    pod: &Arc<Running>,
    spec: &Pod,
    container: &Container,
    root: &Path,
) -> Result<(), String> {
    let volumes = spec
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten());
    for volume in volumes {
        let mount = container.volume_mounts.iter().flatten();
        let Some(mount) = mount.into_iter().find(|mount| mount.name == volume.name) else {
            continue;
        };
        let folder = root.join(mount.mount_path.trim_start_matches('/'));
        std::fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
        let files: Vec<(String, Vec<u8>)> = if let Some(map) = &volume.config_map {
            let api: Api<ConfigMap> = Api::namespaced(pod.client(), &pod.namespace);
            let map = api
                .get(&map.name)
                .await
                .map_err(|error| error.to_string())?;
            let data = map.data.unwrap_or_default();
            data.into_iter()
                .map(|(name, text)| (name, text.into_bytes()))
                .collect()
        } else if let Some(secret) = &volume.secret {
            let api: Api<Secret> = Api::namespaced(pod.client(), &pod.namespace);
            let name = secret.secret_name.as_deref().unwrap_or("");
            let secret = api.get(name).await.map_err(|error| error.to_string())?;
            let data = secret.data.unwrap_or_default();
            data.into_iter()
                .map(|(name, bytes)| (name, bytes.0))
                .collect()
        } else {
            // An emptyDir: everybody in the pod may write there.
            let all = std::fs::Permissions::from_mode(0o777);
            std::fs::set_permissions(&folder, all).map_err(|error| error.to_string())?;
            continue;
        };
        publish(&folder, &files).map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn publish(folder: &Path, files: &[(String, Vec<u8>)]) -> std::io::Result<()> {
    let is_same = files
        .iter()
        .all(|(name, bytes)| std::fs::read(folder.join(name)).is_ok_and(|there| there == *bytes));
    if is_same && folder.join("..data").exists() {
        return Ok(());
    }
    let old = std::fs::read_link(folder.join("..data")).ok();
    let name = format!("..{:x}", fastrand::u64(..));
    std::fs::create_dir(folder.join(&name))?;
    for (file, bytes) in files {
        std::fs::write(folder.join(&name).join(file), bytes)?;
        let link = folder.join(file);
        if link.symlink_metadata().is_err() {
            std::os::unix::fs::symlink(Path::new("..data").join(file), link)?;
        }
    }
    let new = folder.join("..new");
    std::os::unix::fs::symlink(&name, &new)?;
    std::fs::rename(&new, folder.join("..data"))?;
    if let Some(old) = old {
        std::fs::remove_dir_all(folder.join(old))?;
    }
    Ok(())
}

/// There is no DNS: the Services of its namespace stand in the file of hosts.
async fn names(pod: &Arc<Running>, root: &Path) -> Result<(), String> {
    let services: Api<Service> = Api::namespaced(pod.client(), &pod.namespace);
    let services = services.list(&ListParams::default()).await;
    let services = services.map_err(|error| error.to_string())?;
    let mut hosts = String::from("127.0.0.1 localhost\n");
    for service in services {
        let name = service.name_any();
        if let Some(address) = service.spec.and_then(|spec| spec.cluster_ip) {
            hosts += &format!("{address} {name} {name}.{}.svc\n", pod.namespace);
        }
    }
    let written = std::fs::create_dir_all(root.join("etc"))
        .and_then(|()| std::fs::write(root.join("etc/hosts"), hosts));
    written.map_err(|error| error.to_string())
}

/// The token of its service account, bound to the pod, with the authority and the namespace.
async fn credentials(
    pod: &Arc<Running>,
    spec: &Pod,
    root: &Path,
    rig: &Path,
) -> Result<(), String> {
    let wanted = spec.spec.as_ref();
    if wanted.and_then(|spec| spec.automount_service_account_token) == Some(false) {
        return Ok(());
    }
    let account = wanted.and_then(|spec| spec.service_account_name.clone());
    let accounts: Api<ServiceAccount> = Api::namespaced(pod.client(), &pod.namespace);
    let request = TokenRequest {
        spec: TokenRequestSpec {
            expiration_seconds: Some(3600),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: Some(pod.name.clone()),
                uid: spec.uid(),
            }),
            ..TokenRequestSpec::default()
        },
        ..TokenRequest::default()
    };
    let account = account.unwrap_or_else(|| "default".into());
    let token = accounts
        .create_token_request(&account, &PostParams::default(), &request)
        .await
        .map_err(|error| format!("{account}: {error}"))?;
    let token = token.status.map(|status| status.token).unwrap_or_default();
    let folder = root.join("var/run/secrets/kubernetes.io/serviceaccount");
    let written = (|| {
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("token"), token)?;
        std::fs::copy(rig.join("pki/ca.crt"), folder.join("ca.crt"))?;
        std::fs::write(folder.join("namespace"), &pod.namespace)
    })();
    written.map_err(|error: std::io::Error| error.to_string())
}
