//! Why a result is a failure or unknown: closed lists that metrics, logs and texts share.

use serde::Serialize;

macro_rules! closed_list {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[repr(u8)]
        pub enum $name {
            $($(#[$vdoc])* #[serde(rename = $text)] $variant,)+
        }

        impl $name {
            /// Every member, in order: `ALL[r.index()] == r`.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The value of the `reason` label.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// Its place in [`Self::ALL`].
            pub const fn index(self) -> usize {
                self as usize
            }
        }
    };
}

closed_list! {
    /// Why a result is a failure.
    Reason {
        /// The name has no usable address.
        Resolve = "resolve",
        /// The host refuses connections at this port.
        ConnectRefused = "connect_refused",
        /// No connection within the timeout.
        ConnectTimeout = "connect_timeout",
        /// No route to the host or network, or refused by a firewall.
        ConnectUnreachable = "connect_unreachable",
        /// The proxy refused or failed.
        Proxy = "proxy",
        /// The TLS handshake failed or did not end in time.
        Tls = "tls",
        /// The certificate is not trusted, not for this name, or not valid for long enough.
        Certificate = "certificate",
        /// The request could not be sent.
        Request = "request",
        /// No answer's head within the timeout.
        HeaderTimeout = "header_timeout",
        /// The head came, the end of the body did not within the timeout.
        BodyTimeout = "body_timeout",
        /// The connection was closed or reset before the answer was complete.
        Reset = "reset",
        /// The answer is not what the protocol allows.
        Protocol = "protocol",
        /// The status is not an expected one.
        Status = "status",
        /// The version of HTTP is not an expected one, or TLS is missing or not wanted.
        Version = "version",
        /// The JSON is not as expected, or not valid.
        Json = "json",
        /// The body is not as expected.
        Body = "body",
        /// A header is not as expected.
        Header = "header",
        /// The body is larger than allowed, on the wire or unpacked.
        TooLarge = "too_large",
        /// The answer was good but took too long.
        TooSlow = "too_slow",
        /// A redirect that may not be followed, or one too many.
        Redirect = "redirect",
        /// The TCP dialogue ended otherwise than expected.
        Dialogue = "dialogue",
    }
}

impl Reason {
    /// Whether no complete answer came: the kind of failure that our own network could also cause.
    pub const fn is_transport(self) -> bool {
        match self {
            Self::Resolve
            | Self::ConnectRefused
            | Self::ConnectTimeout
            | Self::ConnectUnreachable
            | Self::Proxy
            | Self::Tls
            | Self::Request
            | Self::HeaderTimeout
            | Self::BodyTimeout
            | Self::Reset => true,
            Self::Certificate
            | Self::Protocol
            | Self::Status
            | Self::Version
            | Self::Json
            | Self::Body
            | Self::Header
            | Self::TooLarge
            | Self::TooSlow
            | Self::Redirect
            | Self::Dialogue => false,
        }
    }
}

closed_list! {
    /// Why a result is unknown: the trouble is ours.
    UnknownReason {
        /// It started or ended much later than it should have: we were starved or suspended.
        Late = "late",
        /// We have no file descriptor left.
        NoFileDescriptors = "no_file_descriptors",
        /// We have no local port left.
        NoLocalPorts = "no_local_ports",
        /// We have no memory or buffers for a socket.
        NoMemory = "no_memory",
        /// Too many lookups of names hang.
        ResolverBusy = "resolver_busy",
        /// The targets of several hosts all fail at once.
        AllTargets = "all_targets",
        /// The control probe fails.
        Control = "control",
        /// A file that the probe needs (credentials, certificate, body) cannot be read.
        File = "file",
        /// We stopped before it ended.
        Shutdown = "shutdown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_leads_back_to_its_member() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), index);
        }
        for (index, reason) in UnknownReason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), index);
        }
        // The window packs outcomes into six bits.
        const { assert!(Reason::COUNT < 63) }
    }
}
