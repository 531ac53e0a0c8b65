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

/// `deny` is the wish that this is not rolled back: an annotation of a chart, or a label of a record. A label is handed
/// on by Helm to the revisions that follow.
pub(super) const ROLLBACK: &str = "leadsman.io/rollback";

/// The tool that leaves this label or annotation.
pub(super) fn gitops_owner(key: &str) -> Option<&'static str> {
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
