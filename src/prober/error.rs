//! Classifies what went wrong: one reason of a closed list, and an explanation.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::time::Duration;

use rustix::io::Errno;

use super::timing::{ProbeStage, cut};
use crate::core::probe_result::{Outcome, ProbeResult, Reason, UnknownReason};

/// A probe without a success.
#[derive(Debug, Clone)]
pub(super) struct ProbeError {
    pub(super) outcome: Outcome,
    pub(super) explanation: String,
    /// Caused by the other side: it answered, refused, or closed. So packets travel.
    pub(super) is_of_other_side: bool,
    /// The other side says that it never began with the request, or it was never sent: it may be sent again.
    pub(super) is_unprocessed: bool,
    /// No name server answered.
    pub(super) is_unanswered: bool,
}

impl ProbeError {
    pub(super) fn bad(reason: Reason, explanation: impl AsRef<str>) -> Self {
        Self {
            outcome: Outcome::Failure(reason),
            explanation: cut(explanation.as_ref(), ProbeResult::MAX_EXPLANATION),
            is_of_other_side: false,
            is_unprocessed: false,
            is_unanswered: false,
        }
    }

    pub(super) fn unknown(reason: UnknownReason, explanation: impl AsRef<str>) -> Self {
        Self {
            outcome: Outcome::Unknown(reason),
            explanation: cut(explanation.as_ref(), ProbeResult::MAX_EXPLANATION),
            is_of_other_side: false,
            is_unprocessed: false,
            is_unanswered: false,
        }
    }

    /// It is what the other side said.
    pub(super) fn reached(mut self) -> Self {
        self.is_of_other_side = true;
        self
    }

    /// The same with another text.
    pub(super) fn saying(mut self, explanation: &str) -> Self {
        self.explanation = cut(explanation, ProbeResult::MAX_EXPLANATION);
        self
    }

    /// No name server answered.
    pub(super) fn unanswered(mut self) -> Self {
        self.is_unanswered = true;
        self
    }

    fn unprocessed(mut self) -> Self {
        self.is_unprocessed = true;
        self
    }

    /// The deadline passed in this stage; `seen` is what arrived instead of the expected.
    pub(super) fn timeout(stage: ProbeStage, timeout: Duration, seen: Option<&str>) -> Self {
        let (reason, what) = match stage {
            ProbeStage::Resolve => (Reason::Resolve, "no address"),
            ProbeStage::Connect => (Reason::ConnectTimeout, "no connection"),
            ProbeStage::Proxy => (Reason::Proxy, "no answer of the proxy"),
            ProbeStage::Tls => (Reason::Tls, "no TLS handshake"),
            ProbeStage::Processing => (Reason::HeaderTimeout, "no answer"),
            ProbeStage::Dialogue => (Reason::Dialogue, "no end of the dialogue"),
            ProbeStage::Transfer => (Reason::BodyTimeout, "no end of the answer"),
        };
        let seen = seen.map_or_else(String::new, |seen| format!("; {seen}"));
        Self {
            is_unanswered: reason == Reason::Resolve,
            ..Self::bad(
                reason,
                format!("{what} within the timeout of {timeout:?}{seen}"),
            )
        }
    }

    /// A connection could not be made; the system's error decides whose trouble it is.
    pub(super) fn connecting(error: &io::Error, doing: &str) -> Self {
        let text = format!("{doing}: {error}");
        if let Some(reason) = own_trouble(error) {
            return Self::unknown(reason, text);
        }
        let reason = match error.kind() {
            ErrorKind::ConnectionRefused => Reason::ConnectRefused,
            ErrorKind::TimedOut => Reason::ConnectTimeout,
            ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted => Reason::Reset,
            _ => Reason::ConnectUnreachable,
        };
        Self {
            is_of_other_side: is_of_other_side(error),
            ..Self::bad(reason, text)
        }
    }

    /// A connection that stood failed. That it timed out or lost its route is one way to break.
    pub(super) fn broken(error: &io::Error, otherwise: Reason, doing: &str) -> Self {
        let text = format!("{doing}: {error}");
        if tls_error(error).is_some() {
            return Self::bad(Reason::Tls, text).reached();
        }
        if let Some(reason) = own_trouble(error) {
            return Self::unknown(reason, text);
        }
        let reason = match error.kind() {
            ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::ConnectionRefused
            | ErrorKind::BrokenPipe
            | ErrorKind::NotConnected
            | ErrorKind::UnexpectedEof
            | ErrorKind::TimedOut
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::NetworkDown
            | ErrorKind::PermissionDenied => Reason::Reset,
            _ => otherwise,
        };
        Self {
            is_of_other_side: is_of_other_side(error),
            ..Self::bad(reason, text)
        }
    }

    /// What hyper says about a connection that stood.
    pub(super) fn hyper(error: &hyper::Error, stage: ProbeStage, http2: bool) -> Self {
        if let Some(cause) = cause::<h2::Error>(error) {
            return Self::http2(cause);
        }
        if let Some(cause) = cause::<io::Error>(error) {
            // With HTTP/1 it may be a chunk that breaks the rules. HTTP/2 hands on no more than the kind and the text
            // of what failed below it, and what can be invalid there are the records of TLS.
            let otherwise = if http2 { Reason::Tls } else { Reason::Protocol };
            return Self::broken(cause, otherwise, "the connection failed");
        }
        if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
            let what = if stage == ProbeStage::Transfer {
                "before the answer was complete"
            } else {
                "without an answer"
            };
            let probe_error = Self::bad(Reason::Reset, format!("the connection was closed {what}"));
            // What HTTP/2 cancels for itself has not been sent.
            return Self {
                is_unprocessed: http2 && error.is_canceled(),
                ..probe_error.reached()
            };
        }
        if http2 && error.is_user() {
            // It waited for its turn while the target went away.
            let text = "the connection was closed before the request was sent";
            return Self::bad(Reason::Reset, text).reached().unprocessed();
        }
        let mut text = format!("the answer breaks the rules of HTTP: {error}");
        if let Some(cause) = error.source() {
            text = format!("{text}: {cause}");
        }
        Self::bad(Reason::Protocol, text)
    }

    fn http2(error: &h2::Error) -> Self {
        if let Some(cause) = error.get_io() {
            return Self::broken(cause, Reason::Tls, "the connection failed");
        }
        let of_target = error.is_remote() && (error.is_go_away() || error.is_reset());
        let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        // A stream fails with the connection's goodbye when it is not among those that the target still answers.
        let unprocessed = error.is_remote() && (error.is_go_away() || refused);
        let probe_error = match error.reason() {
            // The ways in which HTTP/2 says that it goes away, or will not answer this.
            Some(h2::Reason::NO_ERROR | h2::Reason::REFUSED_STREAM | h2::Reason::CANCEL)
                if of_target =>
            {
                Self::bad(
                    Reason::Reset,
                    format!("the connection was closed without an answer: {error}"),
                )
            }
            _ => Self::bad(
                Reason::Protocol,
                format!("the answer breaks the rules of HTTP/2: {error}"),
            ),
        };
        Self {
            is_unprocessed: unprocessed,
            ..probe_error.reached()
        }
    }

    /// Attributes a failure to the proxy; trouble of our own stays ours.
    pub(super) fn of_proxy(self) -> Self {
        match self.outcome {
            Outcome::Failure(_) => Self {
                is_of_other_side: self.is_of_other_side,
                ..Self::bad(Reason::Proxy, format!("proxy: {}", self.explanation))
            },
            Outcome::Success | Outcome::Unknown(_) => self,
        }
    }
}

/// What rustls says, where that is what failed.
pub(super) fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// Errors that only a packet of the other side can lead to.
fn is_of_other_side(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionRefused
            | ErrorKind::ConnectionReset
            | ErrorKind::BrokenPipe
            | ErrorKind::UnexpectedEof
    )
}

/// The first error of a kind in the chain of causes.
fn cause<E: Error + 'static>(error: &hyper::Error) -> Option<&E> {
    let mut next = error.source();
    while let Some(inner) = next {
        if let Some(found) = inner.downcast_ref() {
            return Some(found);
        }
        next = inner.source();
    }
    None
}

/// Errors caused by a lack of our own resources.
fn own_trouble(error: &io::Error) -> Option<UnknownReason> {
    match Errno::from_io_error(error)? {
        Errno::MFILE | Errno::NFILE => Some(UnknownReason::NoFileDescriptors),
        Errno::ADDRNOTAVAIL => Some(UnknownReason::NoLocalPorts),
        Errno::NOMEM | Errno::NOBUFS => Some(UnknownReason::NoMemory),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errno(errno: Errno) -> io::Error {
        io::Error::from_raw_os_error(errno.raw_os_error())
    }

    #[test]
    fn what_the_system_says_of_a_connection_that_cannot_be_made() {
        use Outcome::{Failure, Unknown};
        for (error, expected) in [
            (Errno::CONNREFUSED, Failure(Reason::ConnectRefused)),
            (Errno::TIMEDOUT, Failure(Reason::ConnectTimeout)),
            (Errno::HOSTUNREACH, Failure(Reason::ConnectUnreachable)),
            (Errno::NETUNREACH, Failure(Reason::ConnectUnreachable)),
            (Errno::ACCESS, Failure(Reason::ConnectUnreachable)),
            (Errno::PERM, Failure(Reason::ConnectUnreachable)),
            (Errno::AFNOSUPPORT, Failure(Reason::ConnectUnreachable)),
            (Errno::CONNRESET, Failure(Reason::Reset)),
            (Errno::MFILE, Unknown(UnknownReason::NoFileDescriptors)),
            (Errno::NFILE, Unknown(UnknownReason::NoFileDescriptors)),
            (Errno::ADDRNOTAVAIL, Unknown(UnknownReason::NoLocalPorts)),
            (Errno::NOMEM, Unknown(UnknownReason::NoMemory)),
            (Errno::NOBUFS, Unknown(UnknownReason::NoMemory)),
        ] {
            let probe_error = ProbeError::connecting(&errno(error), "connecting");
            assert_eq!(probe_error.outcome, expected, "{error:?}");
        }
    }

    #[test]
    fn a_connection_that_stood_is_reset_however_it_breaks() {
        for error in [
            Errno::CONNRESET,
            Errno::PIPE,
            Errno::TIMEDOUT,
            Errno::HOSTUNREACH,
            Errno::NETUNREACH,
        ] {
            let probe_error = ProbeError::broken(&errno(error), Reason::Protocol, "reading");
            assert_eq!(
                probe_error.outcome,
                Outcome::Failure(Reason::Reset),
                "{error:?}"
            );
        }
        let end = io::Error::from(ErrorKind::UnexpectedEof);
        let probe_error = ProbeError::broken(&end, Reason::Protocol, "reading");
        assert_eq!(probe_error.outcome, Outcome::Failure(Reason::Reset));
        let tls = io::Error::other(rustls::Error::DecryptError);
        let probe_error = ProbeError::broken(&tls, Reason::Protocol, "reading");
        assert_eq!(probe_error.outcome, Outcome::Failure(Reason::Tls));
        let other = io::Error::from(ErrorKind::InvalidData);
        let probe_error = ProbeError::broken(&other, Reason::Dialogue, "reading");
        assert_eq!(probe_error.outcome, Outcome::Failure(Reason::Dialogue));
    }

    #[test]
    fn an_explanation_is_bounded_and_shows_control_characters() {
        let probe_error = ProbeError::bad(
            Reason::Status,
            format!("a\r\n\u{1b}[31m{}", "é".repeat(400)),
        );
        assert!(probe_error.explanation.starts_with("a\\r\\n\\u{1b}[31m"));
        assert!(probe_error.explanation.len() <= ProbeResult::MAX_EXPLANATION);
        assert!(probe_error.explanation.ends_with('…'));
    }

    #[test]
    fn trouble_of_our_own_is_not_the_proxys() {
        let ours = ProbeError::unknown(UnknownReason::NoFileDescriptors, "none left").of_proxy();
        assert_eq!(
            ours.outcome,
            Outcome::Unknown(UnknownReason::NoFileDescriptors)
        );
        let its = ProbeError::bad(Reason::ConnectRefused, "refused").of_proxy();
        assert_eq!(its.outcome, Outcome::Failure(Reason::Proxy));
    }
}
