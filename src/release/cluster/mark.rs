//! The marks that we leave on what we write, and those that others leave on what is theirs.

/// Label of a record that a rollback of ours made: its own number, since Helm hands labels on to later revisions.
pub(super) const MADE: &str = "leadsman.io/made";

/// Label: the revision that was found bad.
pub(super) const TURNED_BACK: &str = "leadsman.io/turned-back";

/// Label: the first characters of the digest of the contents that were gone back to.
pub(super) const DIGEST: &str = "leadsman.io/digest";

/// Label: whose turn it was when this was last written by us. Whoever comes later has a higher number; see
/// [`super::Engine::acts_as`].
pub(super) const FENCE: &str = "leadsman.io/fence";

/// Annotation of a chart that wants no rollback: `deny`.
pub(super) const CHART_ROLLBACK: &str = "leadsman.io/rollback";

/// The tool that leaves this label or annotation.
pub(super) fn keeper(key: &str) -> Option<&'static str> {
    match key {
        "helm.toolkit.fluxcd.io/name" | "kustomize.toolkit.fluxcd.io/name" => Some("Flux"),
        "argocd.argoproj.io/instance" | "argocd.argoproj.io/tracking-id" => Some("Argo CD"),
        _ => None,
    }
}

/// Whether a label is one of ours.
pub(super) fn is_ours(key: &str) -> bool {
    key.starts_with("leadsman.io/")
}
