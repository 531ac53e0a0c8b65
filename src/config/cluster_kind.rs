//! Kinds of objects without a namespace, as written in the configuration.
//!
//! A kind alone means that of Kubernetes itself. Other kinds need their group: anyone may define a kind of the same
//! name in a group of their own, and allowing one must not allow the other.

use std::fmt;
use std::str::FromStr;

/// Kinds of Kubernetes itself that live in no namespace, with their groups.
const BUILT_IN: [(&str, &str); 29] = [
    ("", "Namespace"),
    ("", "Node"),
    ("", "PersistentVolume"),
    ("admissionregistration.k8s.io", "MutatingAdmissionPolicy"),
    (
        "admissionregistration.k8s.io",
        "MutatingAdmissionPolicyBinding",
    ),
    (
        "admissionregistration.k8s.io",
        "MutatingWebhookConfiguration",
    ),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy"),
    (
        "admissionregistration.k8s.io",
        "ValidatingAdmissionPolicyBinding",
    ),
    (
        "admissionregistration.k8s.io",
        "ValidatingWebhookConfiguration",
    ),
    ("apiextensions.k8s.io", "CustomResourceDefinition"),
    ("apiregistration.k8s.io", "APIService"),
    ("certificates.k8s.io", "CertificateSigningRequest"),
    ("certificates.k8s.io", "ClusterTrustBundle"),
    ("flowcontrol.apiserver.k8s.io", "FlowSchema"),
    ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration"),
    ("networking.k8s.io", "IPAddress"),
    ("networking.k8s.io", "IngressClass"),
    ("networking.k8s.io", "ServiceCIDR"),
    ("node.k8s.io", "RuntimeClass"),
    ("rbac.authorization.k8s.io", "ClusterRole"),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"),
    ("resource.k8s.io", "DeviceClass"),
    ("resource.k8s.io", "ResourceSlice"),
    ("scheduling.k8s.io", "PriorityClass"),
    ("storage.k8s.io", "CSIDriver"),
    ("storage.k8s.io", "CSINode"),
    ("storage.k8s.io", "StorageClass"),
    ("storage.k8s.io", "VolumeAttachment"),
    ("storage.k8s.io", "VolumeAttributesClass"),
];

/// A kind of objects in no namespace, with the group of its API.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClusterKind {
    group: String,
    kind: String,
}

impl ClusterKind {
    /// Of a group of the API, empty for the core one.
    pub fn new(group: &str, kind: &str) -> Self {
        Self {
            group: group.to_owned(),
            kind: kind.to_owned(),
        }
    }

    /// Whether a group is one of Kubernetes itself, as far as it has such kinds.
    pub fn has_group(group: &str) -> bool {
        BUILT_IN.iter().any(|(own, _)| *own == group)
    }

    /// Whether it is one of Kubernetes itself.
    pub fn is_built_in(&self) -> bool {
        BUILT_IN.contains(&(self.group.as_str(), self.kind.as_str()))
    }
}

/// As it is written in the configuration.
impl fmt::Display for ClusterKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_built_in() {
            return f.write_str(&self.kind);
        }
        write!(f, "{}.{}", self.kind, self.group)
    }
}

/// Why a text names no kind of objects in no namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InvalidKind {
    /// It is not written as a kind, or as a kind with a group.
    Malformed,
    /// Kubernetes itself has no such kind outside namespaces, and it has no group.
    WithoutGroup,
}

impl FromStr for ClusterKind {
    type Err = InvalidKind;

    fn from_str(text: &str) -> Result<Self, InvalidKind> {
        let (kind, group) = match text.split_once('.') {
            Some((kind, group)) => (kind, Some(group)),
            None => (text, None),
        };
        let is_written_well = kind.starts_with(|c: char| c.is_ascii_uppercase())
            && kind.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !is_written_well || group.is_some_and(|group| !is_group(group)) {
            return Err(InvalidKind::Malformed);
        }
        if let Some(group) = group {
            return Ok(Self::new(group, kind));
        }
        let mut built_in = BUILT_IN.iter();
        let (group, _) = built_in
            .find(|(_, known)| *known == kind)
            .ok_or(InvalidKind::WithoutGroup)?;
        Ok(Self::new(group, kind))
    }
}

/// Labels of a DNS name, as groups of an API are made of.
fn is_group(text: &str) -> bool {
    let is_label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(inner)
    };
    text.len() <= 253 && text.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_read_with_its_group_and_written_as_short_as_it_may_be() {
        let of = |text: &str| ClusterKind::from_str(text);
        let role = ClusterKind::new("rbac.authorization.k8s.io", "ClusterRole");
        assert_eq!(of("ClusterRole"), Ok(role.clone()));
        assert_eq!(of("ClusterRole.rbac.authorization.k8s.io"), Ok(role));
        assert_eq!(of("Namespace"), Ok(ClusterKind::new("", "Namespace")));
        for text in ["ClusterRole", "Namespace", "ClusterIssuer.cert-manager.io"] {
            assert_eq!(of(text).map(|kind| kind.to_string()), Ok(text.to_owned()));
        }
        // The same name in another group is another kind.
        assert_ne!(of("ClusterRole.example.com"), of("ClusterRole"));
        for text in ["ClusterIssuer", "Deployment"] {
            assert_eq!(of(text), Err(InvalidKind::WithoutGroup), "{text}");
        }
        for text in [
            "",
            "clusterroles",
            "ClusterRole.",
            "ClusterRole..io",
            "ClusterRole.-a.io",
            "ClusterRole.Example.com",
            "ClusterRole/v1",
            "Cluster Role",
            ".example.com",
            "example.com",
        ] {
            assert_eq!(of(text), Err(InvalidKind::Malformed), "{text:?}");
        }
    }
}
