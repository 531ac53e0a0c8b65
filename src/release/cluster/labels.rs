//! Labels and annotations: ours, and those of GitOps tools.

/// Label of a record that our rollback made. Its value is the record's own revision, since Helm copies labels to later
/// revisions.
pub(super) const MADE: &str = "leadsman.io/made";

/// Label: the rejected revision.
pub(super) const TURNED_BACK: &str = "leadsman.io/turned-back";

/// Label: the first characters of the digest of the restored contents.
pub(super) const DIGEST: &str = "leadsman.io/digest";

/// Label: the fencing token of our last write; see [`super::Engine::acts_as`].
pub(super) const FENCE: &str = "leadsman.io/fence";

/// Annotation of a chart, or label of a record: `deny` forbids rollbacks. Helm copies the label to later revisions.
pub(super) const ROLLBACK: &str = "leadsman.io/rollback";

/// The GitOps tool that writes this label or annotation.
pub(super) fn gitops_owner(key: &str) -> Option<&'static str> {
    match key {
        "helm.toolkit.fluxcd.io/name" | "kustomize.toolkit.fluxcd.io/name" => Some("Flux"),
        "argocd.argoproj.io/instance" | "argocd.argoproj.io/tracking-id" => Some("Argo CD"),
        _ => None,
    }
}

/// Whether a label is ours.
pub(super) fn is_ours(key: &str) -> bool {
    key.starts_with("leadsman.io/")
}
