//! The errors of `helm rollback`, and what may be done about each.
//!
//! Helm has one exit code for every error, so only its text tells them apart. The texts are those of Helm 3.21 and 4.2
//! and of the Kubernetes client inside. An unknown text is [`HelmError::Other`], which is left to people.

use crate::core::evidence::redacted_to;

/// The class of an error of helm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HelmError {
    /// The release no longer exists.
    ReleaseGone,
    /// The target revision is gone.
    TargetGone,
    /// Another program has created the next revision.
    Overtaken,
    /// Another operation is running.
    Pending,
    /// The API server cannot be reached; nothing was written.
    Unreachable,
    /// A right is missing.
    Forbidden,
    /// The manifest names a kind that the cluster does not have, or no longer has.
    UnknownKind,
    /// The manifest cannot be read.
    Manifest,
    /// An object exists, but helm has no record of it to start from.
    NoOriginal,
    /// The API server rejects an object, for example because a field is immutable.
    Invalid,
    /// Another manager owns a field.
    Conflict,
    /// The record is larger than a Secret can be.
    TooLarge,
    /// Helm ended for lack of memory.
    OutOfMemory,
    /// A hook failed or took too long.
    Hook,
    /// Everything is applied, but helm waited in vain; Leadsman's own verification decides.
    NotReady,
    /// An object could not be removed.
    CleanUp,
    /// Helm looks for a deployed revision, and there is none.
    NoneDeployed,
    /// Helm does not accept this combination of flags, a bug of ours.
    Flags,
    /// Leadsman itself did not let a request of helm through to the API server.
    NotLetThrough,
    /// The network or the API server's store had trouble for a moment.
    Transient,
    /// None of these.
    Other,
}

/// Lower-case texts, all of which an error of the class contains; the first class that fits counts.
const TEXTS: &[(HelmError, &[&str])] = &[
    // Go's words for it; behind them stands what each of its threads did.
    (HelmError::OutOfMemory, &["fatal error: ", "out of memory"]),
    (
        HelmError::OutOfMemory,
        &["fatal error: ", "cannot allocate memory"],
    ),
    (HelmError::OutOfMemory, &["runtime: cannot allocate memory"]),
    (HelmError::OutOfMemory, &["runtime: out of memory"]),
    // Go's collector does not survive that it gets no memory; goroutine 0 is its own, not one of helm's code.
    (
        HelmError::OutOfMemory,
        &["sigsegv: segmentation violation", "goroutine 0 "],
    ),
    (HelmError::Unreachable, &["cluster unreachable"]),
    (HelmError::ReleaseGone, &["release: not found"]),
    (HelmError::TargetGone, &["release has no ", " version"]),
    (HelmError::Overtaken, &["release: already exists"]),
    (
        HelmError::Pending,
        &["another operation (install/upgrade/rollback) is in progress"],
    ),
    (HelmError::Forbidden, &["is forbidden: user"]),
    (HelmError::UnknownKind, &["no matches for kind"]),
    (HelmError::UnknownKind, &["resource mapping not found"]),
    (
        HelmError::TooLarge,
        &["too long: must have at most 1048576"],
    ),
    (HelmError::TooLarge, &["may not be more than 1048576"]),
    (HelmError::NoneDeployed, &["has no deployed releases"]),
    (HelmError::Flags, &["forceconflicts enabled when"]),
    (
        HelmError::Flags,
        &["cannot use server-side apply and force replace"],
    ),
    (
        HelmError::Conflict,
        &["conflict occurred while applying object"],
    ),
    (HelmError::Conflict, &["apply failed with"]),
    (HelmError::NoOriginal, &[" with the name \"", " found"]),
    (HelmError::NoOriginal, &["original object", "not found"]),
    (HelmError::Invalid, &["field is immutable"]),
    (HelmError::Invalid, &["is invalid:"]),
    // The network may fail at anything that helm does, as while an object is patched or a hook made, and says nothing of
    // that.
    (HelmError::Transient, &["connection refused"]),
    (HelmError::Transient, &["connection reset by peer"]),
    (HelmError::Transient, &["client connection lost"]),
    (HelmError::Transient, &["no route to host"]),
    (HelmError::Transient, &["network is unreachable"]),
    (HelmError::Transient, &["i/o timeout"]),
    (HelmError::Transient, &["tls handshake timeout"]),
    (HelmError::Transient, &["etcdserver:"]),
    (HelmError::Transient, &["goaway"]),
    (HelmError::Transient, &["unexpected eof"]),
    (HelmError::Transient, &[": eof"]),
    (
        HelmError::Transient,
        &["currently unable to handle the request"],
    ),
    (HelmError::Transient, &["too many requests"]),
    (
        HelmError::Transient,
        &["unable to return a response in the time allotted"],
    ),
    // Helm 4 waits by watches; when these end, it knows nothing of what it waited for.
    (HelmError::Transient, &[" not ready. status: unknown"]),
    (HelmError::Manifest, &["unable to build kubernetes objects"]),
    (HelmError::Hook, &["warning: hook "]),
    (HelmError::Invalid, &["cannot patch \""]),
    (
        HelmError::CleanUp,
        &["an error occurred while cleaning up resources"],
    ),
    (HelmError::Hook, &["backofflimitexceeded"]),
    (HelmError::Hook, &["job ", " failed: "]),
    (HelmError::Hook, &["pod ", " failed"]),
    (
        HelmError::NotReady,
        &["timed out waiting for the condition"],
    ),
    (HelmError::NotReady, &["context deadline exceeded"]),
    (HelmError::NotReady, &[" not ready. status: "]),
];

impl HelmError {
    /// The class of helm's standard error. Log lines of the Kubernetes client and of helm are ignored: a warning beside
    /// the error must not decide.
    pub fn of(stderr: &str) -> Self {
        let text = message(stderr).to_lowercase();
        let fits = |parts: &[&str]| {
            let mut rest = text.as_str();
            parts.iter().all(|part| match rest.find(part) {
                Some(at) => {
                    rest = &rest[at + part.len()..];
                    true
                }
                None => false,
            })
        };
        TEXTS
            .iter()
            .find(|(_, parts)| fits(parts))
            .map_or(Self::Other, |(class, _)| *class)
    }

    /// Whether the same rollback may be retried if no record of it was created.
    pub const fn may_be_tried_again(self) -> bool {
        matches!(self, Self::Unreachable | Self::Transient)
    }

    /// Whether an API server that is away, or has just started, may be the cause. Other errors come from one that
    /// works.
    pub const fn may_be_of_an_outage(self) -> bool {
        match self {
            Self::Unreachable
            | Self::Forbidden
            | Self::UnknownKind
            | Self::Manifest
            | Self::Hook
            | Self::NotReady
            | Self::CleanUp
            | Self::Transient
            | Self::Other => true,
            Self::ReleaseGone
            | Self::TargetGone
            | Self::Overtaken
            | Self::Pending
            | Self::NoOriginal
            | Self::Invalid
            | Self::Conflict
            | Self::TooLarge
            | Self::OutOfMemory
            | Self::NoneDeployed
            | Self::NotLetThrough
            | Self::Flags => false,
        }
    }
}

/// The error itself: from the last line that begins with `Error: ` to the end, or everything that is not a log line.
pub fn message(stderr: &str) -> String {
    let lines: Vec<&str> = stderr.lines().filter(|line| !is_log(line)).collect();
    let from = lines
        .iter()
        .rposition(|line| line.starts_with("Error: "))
        .unwrap_or(0);
    lines[from..].join("\n").trim().to_owned()
}

/// Characters of helm's text that are shown.
const MAX_SHOWN: usize = 1000;

/// The same for people: redacted, and without the values that the API server rejects, which it prints whole (a pod's
/// template with its environment).
pub fn shown(stderr: &str) -> String {
    described(&message(stderr))
}

/// The same for the description of a record, which may contain such an error, or any text of a user.
pub fn described(text: &str) -> String {
    redacted_to(&without_values(text), MAX_SHOWN)
}

/// The text without what follows `Invalid value:` and the like, up to the reason behind it.
pub fn without_values(text: &str) -> String {
    const MARKS: [&str; 3] = [
        "Invalid value: ",
        "Unsupported value: ",
        "Duplicate value: ",
    ];
    let mut kept = String::new();
    let mut rest = text;
    loop {
        let next = MARKS
            .iter()
            .filter_map(|mark| Some(rest.find(mark)? + mark.len()))
            .min();
        let Some(at) = next else {
            kept.push_str(rest);
            return kept;
        };
        kept.push_str(&rest[..at]);
        kept.push('…');
        rest = &rest[at..];
        rest = &rest[value_length(rest)..];
    }
}

/// The length of a dumped value: up to the `: ` outside of all brackets and quotes, or to the end.
fn value_length(text: &str) -> usize {
    let mut depth = 0_u32;
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match (quote, char) {
            (Some(_), '\\') => {
                chars.next();
            }
            (Some(open), char) if open == char => quote = None,
            (None, '"' | '`') => quote = Some(char),
            (None, '{' | '[' | '(') => depth += 1,
            (None, '}' | ']' | ')') if depth == 0 => return at,
            (None, '}' | ']' | ')') => depth -= 1,
            (None, ':') if depth == 0 && text[at..].starts_with(": ") => return at,
            (Some(_) | None, _) => {}
        }
    }
    text.len()
}

/// A line of helm 4's log (`level=WARN msg=…`), or of the Kubernetes client's (`W1123 10:00:00.000000 …`).
fn is_log(line: &str) -> bool {
    let klog = |line: &str| {
        let mut bytes = line.bytes();
        let severity = bytes.next();
        matches!(severity, Some(b'I' | b'W' | b'E' | b'F'))
            && bytes.by_ref().take(4).all(|byte| byte.is_ascii_digit())
            && bytes.next() == Some(b' ')
    };
    line.starts_with("level=") || line.starts_with("time=") || klog(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_of_helm_has_its_class() {
        for (text, class) in [
            ("Error: release: not found", HelmError::ReleaseGone),
            ("Error: release has no 7 version", HelmError::TargetGone),
            ("Error: release: already exists", HelmError::Overtaken),
            (
                "Error: UPGRADE FAILED: another operation (install/upgrade/rollback) is in progress",
                HelmError::Pending,
            ),
            (
                "Error: Kubernetes cluster unreachable: Get \"https://10.0.0.1/version\": dial tcp: connection refused",
                HelmError::Unreachable,
            ),
            (
                "Error: query: failed to query with labels: secrets is forbidden: User \"x\" cannot list resource",
                HelmError::Forbidden,
            ),
            (
                "Error: unable to build kubernetes objects from current release manifest: resource mapping not found for name: \"a\" namespace: \"\" from \"\": no matches for kind \"Gone\" in version \"v1\"",
                HelmError::UnknownKind,
            ),
            (
                "Error: unable to build kubernetes objects from new release manifest: error parsing",
                HelmError::Manifest,
            ),
            (
                "Error: no ConfigMap with the name \"web\" found",
                HelmError::NoOriginal,
            ),
            (
                "Error: original object Deployment with the name \"web\" not found",
                HelmError::NoOriginal,
            ),
            (
                "Error: cannot patch \"web\" with kind Deployment: Deployment.apps \"web\" is invalid: spec.selector: field is immutable",
                HelmError::Invalid,
            ),
            (
                "Error: conflict occurred while applying object prod/web apps/v1, Kind=Deployment: Apply failed with 1 conflict",
                HelmError::Conflict,
            ),
            (
                "Error: timed out waiting for the condition",
                HelmError::NotReady,
            ),
            (
                "Error: resource Deployment/prod/web not ready. status: InProgress",
                HelmError::NotReady,
            ),
            (
                "Error: resource Job/prod/migrate not ready. status: Unknown, message:",
                HelmError::Transient,
            ),
            (
                "Error: warning: Hook pre-rollback web/hook.yaml failed: context deadline exceeded",
                HelmError::Hook,
            ),
            (
                "Error: job migrate failed: BackoffLimitExceeded",
                HelmError::Hook,
            ),
            (
                "Error: create: failed to create: Secret \"x\" is invalid: data: Too long: must have at most 1048576 bytes",
                HelmError::TooLarge,
            ),
            (
                "Error: an error occurred while cleaning up resources. original rollback error: x",
                HelmError::CleanUp,
            ),
            (
                "runtime: out of memory: cannot allocate 4194304-byte block (63700992 in use)\nfatal error: out of memory\n\ngoroutine 1 [running]:",
                HelmError::OutOfMemory,
            ),
            (
                "fatal error: runtime: out of memory\n\nruntime stack:",
                HelmError::OutOfMemory,
            ),
            (
                "runtime: mmap: fatal error: runtime: cannot allocate memory",
                HelmError::OutOfMemory,
            ),
            (
                "SIGSEGV: segmentation violation\nPC=0x437c7d m=0 sigcode=1 addr=0x0\n\ngoroutine 0 gp=0x43bd960 m=0 mp=0x43bf480 [idle]:\nruntime.(*spanQueue).tryDrain(0x7ffe00000800?)",
                HelmError::OutOfMemory,
            ),
            (
                "Error: UPGRADE FAILED: \"web\" has no deployed releases",
                HelmError::NoneDeployed,
            ),
            (
                "Error: forceConflicts enabled when serverSideApply disabled",
                HelmError::Flags,
            ),
            (
                "Error: cannot use server-side apply and force replace together",
                HelmError::Flags,
            ),
            ("Error: etcdserver: request timed out", HelmError::Transient),
            (
                "Error: warning: Hook pre-rollback web/hook.yaml failed: server-side apply failed for object prod/migrate batch/v1, Kind=Job: Patch \"https://10.0.0.1/apis\": dial tcp 10.0.0.1:443: connect: connection refused",
                HelmError::Transient,
            ),
            (
                "Error: unable to build kubernetes objects from new release manifest: Get \"https://10.0.0.1/openapi/v3\": dial tcp 10.0.0.1:443: i/o timeout",
                HelmError::Transient,
            ),
            (
                "Error: an error occurred while cleaning up resources. original rollback error: Patch \"https://10.0.0.1/apis\": net/http: TLS handshake timeout",
                HelmError::Transient,
            ),
            (
                "Error: cannot patch \"web\" with kind Deployment: Patch \"https://10.0.0.1/apis\": EOF",
                HelmError::Transient,
            ),
            (
                "Error: Get \"https://10.0.0.1/api\": read tcp 10.1.0.1:1->10.0.0.1:443: read: connection reset by peer",
                HelmError::Transient,
            ),
            (
                "Error: http2: server sent GOAWAY and closed the connection; LastStreamID=1",
                HelmError::Transient,
            ),
            ("Error: http2: client connection lost", HelmError::Transient),
            (
                "Error: dial tcp 10.0.0.1:443: connect: no route to host",
                HelmError::Transient,
            ),
            (
                "Error: the server is currently unable to handle the request",
                HelmError::Transient,
            ),
            (
                "Error: the server has received too many requests and has asked us to try again later",
                HelmError::Transient,
            ),
            (
                "Error: the server was unable to return a response in the time allotted, but may still be processing the request",
                HelmError::Transient,
            ),
            ("Error: unexpected EOF", HelmError::Transient),
            ("Error: something quite new", HelmError::Other),
            ("", HelmError::Other),
        ] {
            assert_eq!(HelmError::of(text), class, "{text}");
        }
    }

    #[test]
    fn what_the_api_server_dumps_of_a_value_is_not_shown() {
        let selector = "Error: cannot patch \"web\" with kind Deployment: Deployment.apps \"web\" is invalid: spec.selector: Invalid value: v1.LabelSelector{MatchLabels:map[string]string{\"app\":\"web\"}, MatchExpressions:[]v1.LabelSelectorRequirement(nil)}: field is immutable";
        assert_eq!(
            shown(selector),
            "Error: cannot patch \"web\" with kind Deployment: Deployment.apps \"web\" is invalid: spec.selector: Invalid value: …: field is immutable"
        );
        let job = r#"Error: Job.batch "migrate" is invalid: spec.template: Invalid value: core.PodTemplateSpec{Spec:core.PodSpec{Containers:[]core.Container{core.Container{Name:"m", Command:[]string{"sh", "-c", "curl -H \"x: y\" }}: z"}, Env:[]core.EnvVar{core.EnvVar{Name:"DB_URL", Value:"hunter2"}}}}}}: field is immutable"#;
        assert_eq!(
            shown(job),
            r#"Error: Job.batch "migrate" is invalid: spec.template: Invalid value: …: field is immutable"#
        );
        let two = r#"is invalid: [spec.a: Invalid value: "hunter2": must be a number, spec.b: Invalid value: {"a":"hunter2"}: must be set]"#;
        assert_eq!(
            without_values(two),
            "is invalid: [spec.a: Invalid value: …: must be a number, spec.b: Invalid value: …: must be set]"
        );
        let cut = r#"is invalid: spec: Invalid value: core.PodSpec{Env:"hunter2"#;
        assert_eq!(without_values(cut), "is invalid: spec: Invalid value: …");
        assert_eq!(without_values("Invalid value: "), "Invalid value: …");
        assert_eq!(described("time=now for more"), "time=now for more");
        let url = "Error: Get \"https://app:hunter2@repo/index.yaml\": no such host";
        assert!(!shown(url).contains("hunter2"), "{}", shown(url));
        assert!(
            shown(&format!("Error: {}", "é".repeat(5000)))
                .chars()
                .count()
                <= MAX_SHOWN + 1
        );
    }

    #[test]
    fn log_lines_beside_the_error_do_not_decide() {
        let text = "W1123 10:00:00.000000   1 warnings.go:70] release: not found\n\
                    level=WARN msg=\"etcdserver: slow\"\n\
                    Error: release has no 7 version\n";
        assert_eq!(HelmError::of(text), HelmError::TargetGone);
        assert_eq!(message(text), "Error: release has no 7 version");
        // An error may have several lines, and the first of them may not be the last `Error: `.
        assert_eq!(message("Error: a\nError: b\n  more\n"), "Error: b\n  more");
        assert_eq!(message("killed"), "killed");
        assert_eq!(message("I am no log line"), "I am no log line");
    }

    #[test]
    fn only_what_wrote_nothing_is_tried_again() {
        assert!(HelmError::of("Error: Kubernetes cluster unreachable").may_be_tried_again());
        for class in [
            HelmError::Conflict,
            HelmError::Flags,
            HelmError::NoneDeployed,
            HelmError::NotReady,
            HelmError::Hook,
            HelmError::Other,
        ] {
            assert!(!class.may_be_tried_again(), "{class:?}");
        }
    }

    #[test]
    fn whatever_is_written_ends_in_a_class() {
        for text in [
            "\0\0",
            "é\u{301}\n\n",
            "Error: ",
            "İ cannot patch \"",
            "E\n",
            "W11",
        ] {
            let _ = HelmError::of(text);
        }
        assert_eq!(HelmError::of(&"x".repeat(1_000_000)), HelmError::Other);
    }
}
