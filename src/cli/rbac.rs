//! `leadsman rbac`: prints the least rights that Leadsman needs for the configured releases.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;

use super::{BAD_CONFIGURATION, ConfigArgs, runtime, terminal};
use crate::config::settings::{KubernetesConfig, Settings};
use crate::config::{self, DiscoveredRelease};
use crate::core::rollout::Mode;
use crate::core::units::Namespace;
use crate::platform::clock::Timeline;
use crate::release::cluster::{self, ApiAccess, NamespaceCache, RbacRights};

/// Options of `leadsman rbac`.
#[derive(Debug, Args)]
#[command(
    after_help = "What is printed is made of the stored revisions of each release: every kind of object that a \
    rollback may change is in it. Objects of other namespaces, or of none, are left out, with a warning, unless\n\
    release.rollback.namespaces or release.rollback.cluster_scoped allows them: the latter takes kinds of Kubernetes\nitself, as ClusterRole, and others with their API group, as ClusterIssuer.cert-manager.io.\nA chart that gets a new kind of object needs new rights; leadsman_rollback_ready tells.\n\n\
    Exit code: 0; 1 when the cluster cannot be asked; 2 for a mistake in the configuration.\n\n\
    Example:\n  leadsman rbac --service-account leadsman --account-namespace monitoring | kubectl apply -f -"
)]
pub struct RbacArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The service account that is bound
    #[arg(long, default_value = "leadsman", value_name = "NAME")]
    service_account: String,
    /// The namespace of that account
    #[arg(long, default_value = "leadsman", value_name = "NAMESPACE")]
    account_namespace: String,
    /// The name of the Roles
    #[arg(long, default_value = "leadsman", value_name = "NAME")]
    name: String,
}

pub(super) fn run(args: &RbacArgs) -> ExitCode {
    let loaded = match args.config.load() {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let Some(kubernetes) = loaded.settings.kubernetes.clone() else {
        complain!("leadsman: the configuration names no cluster; add [kubernetes]");
        return ExitCode::from(BAD_CONFIGURATION);
    };
    let Some(runtime) = runtime(1) else {
        return ExitCode::FAILURE;
    };
    let found = runtime.block_on(rights(args, &loaded.settings, &kubernetes));
    runtime.shutdown_background();
    match found {
        Ok((mut rights, of_helm)) => {
            if let Some(map) = &loaded.settings.state_map {
                let namespace = map.namespace.as_deref().unwrap_or(&args.account_namespace);
                rights.extend(RbacRights::to_keep_state(namespace));
            }
            if let Some(lease) = &loaded.settings.lease {
                let namespace = lease.namespace.as_deref();
                let namespace = namespace.unwrap_or(&args.account_namespace);
                rights.extend(RbacRights::to_hold_lease(namespace));
            }
            let text = rights.manifest(&args.name, &args.service_account, &args.account_namespace);
            let mut text = text.trim_end().to_owned();
            for (namespace, rights) in of_helm {
                let account = kubernetes.impersonate.as_deref().unwrap_or_default();
                let name = format!("{}-helm-{namespace}", args.name);
                let manifest = rights.manifest(&name, account, &namespace);
                text = format!("{text}\n{}", manifest.trim_end());
            }
            if loaded.settings.serve.kubernetes_auth {
                text = format!("{text}\n{}", delegation(args));
            }
            match terminal::print_document(&text) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    complain!("leadsman: cannot print the Roles: {error}");
                    ExitCode::FAILURE
                }
            }
        }
        Err(why) => {
            complain!("leadsman: {why}");
            ExitCode::FAILURE
        }
    }
}

/// The right to ask who a caller is and what they may. Kubernetes gives it for the whole cluster or not at all.
fn delegation(args: &RbacArgs) -> String {
    let RbacArgs {
        name,
        service_account,
        account_namespace,
        ..
    } = args;
    format!(
        "---\napiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata:\n  name: {name}-auth-delegator-{account_namespace}\n\
         roleRef:\n  apiGroup: rbac.authorization.k8s.io\n  kind: ClusterRole\n  name: system:auth-delegator\nsubjects:\n  - kind: ServiceAccount\n    \
         name: {service_account}\n    namespace: {account_namespace}"
    )
}

fn cache(
    client: &kube::Client,
    kubernetes: &KubernetesConfig,
    namespace: &Namespace,
) -> Arc<NamespaceCache> {
    let (client, namespace) = (client.clone(), namespace.clone());
    NamespaceCache::new(client, namespace, kubernetes.driver, Timeline::start())
}

/// What Leadsman's own account needs, and by namespace what the account needs that helm acts as, where that is another.
async fn rights(
    args: &RbacArgs,
    settings: &Settings,
    kubernetes: &KubernetesConfig,
) -> Result<(RbacRights, BTreeMap<String, RbacRights>), String> {
    let client = cluster::connect(&ApiAccess::of(kubernetes)).await?;
    let mut rights = RbacRights::default();
    let mut of_helm: BTreeMap<String, RbacRights> = BTreeMap::new();
    let mut discovered = Vec::new();
    for selection in &settings.selections {
        let namespace = &selection.namespace;
        // Also where none is selected yet: one that comes must be seen.
        rights.extend(RbacRights::to_analyze(
            namespace.as_str(),
            kubernetes.driver,
        ));
        let found = cache(&client, kubernetes, namespace).discover().await;
        let found = found.map_err(|why| format!("the releases of {namespace}: {why}"))?;
        let is_own = |release: &DiscoveredRelease| {
            kubernetes.own_release.as_ref().is_some_and(|(own, name)| {
                release.namespace.as_str() == own && release.name.as_str() == name
            })
        };
        // As the daemon does: whoever wants Leadsman judged by itself names it.
        discovered.extend(
            found
                .into_iter()
                .filter(|release| selection.takes(release) && !is_own(release)),
        );
    }
    let expanded = if discovered.is_empty() {
        settings.clone()
    } else {
        let mut sources = args.config.sources();
        sources.discovered = discovered;
        let loaded = config::load(&sources).map_err(|diagnostics| diagnostics.render(false))?;
        loaded.settings
    };
    for release in expanded
        .releases
        .iter()
        .filter(|release| release.in_cluster)
    {
        let cache = cache(&client, kubernetes, &release.namespace);
        let named = format!("{}/{}", release.namespace, release.name);
        let impersonate = kubernetes.impersonate.as_deref();
        let needed = cluster::needed(&cache, release, impersonate).await;
        let needed = needed.map_err(|why| format!("{named}: {why}"))?;
        rights.extend(needed.own);
        if impersonate.is_none() {
            rights.extend(needed.helm);
        } else if release.controller.mode == Mode::Enforce {
            let namespace = release.namespace.as_str().to_owned();
            of_helm.entry(namespace).or_default().extend(needed.helm);
        }
        // To people; what is printed may go to kubectl.
        for why in needed.left_out {
            complain!("leadsman: {named}: {why}; what only that revision needs is left out");
        }
        for warning in needed.warnings {
            complain!("leadsman: {named}: {warning}");
        }
    }
    Ok((rights, of_helm))
}
