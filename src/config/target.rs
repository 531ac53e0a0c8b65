//! The address of a target, parsed once and known to be usable.

use std::fmt;

use url::{Host, Url};

/// `http://…`, `https://…` or `tcp://host:port`, with a host and a port, and without user info.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target(Url);

/// Why a text is not a target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTarget {
    /// Not a URL at all.
    #[error("is not a URL: {0}")]
    NotUrl(url::ParseError),
    /// A scheme that no prober speaks.
    #[error("has the scheme {0:?}; http, https and tcp can be probed")]
    Scheme(String),
    /// No host.
    #[error("names no host")]
    NoHost,
    /// A TCP target without a port.
    #[error("names no port, which a tcp target needs, as in tcp://db:5432")]
    NoPort,
    /// `user:password@`.
    #[error(
        "carries credentials; give them as `username` and `password_file`, or as `bearer_token_file`"
    )]
    UserInfo,
    /// Something behind `tcp://host:port`.
    #[error("has a path, which a tcp target has not")]
    TcpPath,
    /// Longer than [`Target::MAX_LEN`].
    #[error("is longer than {} bytes", Target::MAX_LEN)]
    TooLong,
}

impl Target {
    /// Longer URLs are refused by most servers anyway.
    pub const MAX_LEN: usize = 8 * 1024;

    /// Reads a URL; a text without `scheme://` is taken to start with `default_scheme://`.
    pub fn parse(text: &str, default_scheme: &str) -> Result<Self, InvalidTarget> {
        if text.len() > Self::MAX_LEN {
            return Err(InvalidTarget::TooLong);
        }
        let given = if text.contains("://") {
            text.to_owned()
        } else {
            format!("{default_scheme}://{text}")
        };
        let url = Url::parse(&given).map_err(InvalidTarget::NotUrl)?;
        Self::of(url)
    }

    /// Takes a URL that was already parsed, as that of a redirect.
    pub fn of(mut url: Url) -> Result<Self, InvalidTarget> {
        if !matches!(url.scheme(), "http" | "https" | "tcp") {
            return Err(InvalidTarget::Scheme(url.scheme().to_owned()));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(InvalidTarget::UserInfo);
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err(InvalidTarget::NoHost);
        }
        if url.port_or_known_default().is_none() {
            return Err(InvalidTarget::NoPort);
        }
        if url.scheme() == "tcp" && (!matches!(url.path(), "" | "/") || url.query().is_some()) {
            return Err(InvalidTarget::TcpPath);
        }
        url.set_fragment(None);
        Ok(Self(url))
    }

    /// The URL.
    pub const fn url(&self) -> &Url {
        &self.0
    }

    /// The URL for people and pages: without what its query says, which may be a token.
    pub fn shown(&self) -> String {
        let query = self.0.query().map_or("", |_| "?…");
        format!("{}{query}", &self.0[..url::Position::AfterPath])
    }

    /// Name or address, the latter without brackets.
    pub fn host(&self) -> String {
        match self.0.host() {
            // The url crate does not know `tcp` as a scheme whose hosts may be IPv4 addresses, so that comes as a name.
            Some(Host::Domain(name)) => name.to_owned(),
            Some(Host::Ipv4(ip)) => ip.to_string(),
            Some(Host::Ipv6(ip)) => ip.to_string(),
            None => String::new(),
        }
    }

    /// The port, also where the scheme implies it.
    pub fn port(&self) -> u16 {
        self.0.port_or_known_default().unwrap_or(0)
    }

    /// Whether the scheme is https.
    pub fn is_https(&self) -> bool {
        self.0.scheme() == "https"
    }

    /// Whether the scheme is tcp.
    pub fn is_tcp(&self) -> bool {
        self.0.scheme() == "tcp"
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes_hosts_and_ports() {
        check("example.com/health", Ok("http://example.com/health"));
        check("HtTpS://Example.com", Ok("https://example.com/"));
        check("tcp://10.0.0.1:5432", Ok("tcp://10.0.0.1:5432"));
        check("http://[::1]:8080/x", Ok("http://[::1]:8080/x"));
        check("invalid://x", Err(InvalidTarget::Scheme("invalid".into())));
        check("tcp://db", Err(InvalidTarget::NoPort));
        check("tcp://db:1/path", Err(InvalidTarget::TcpPath));
        check("http://u:p@x/", Err(InvalidTarget::UserInfo));
        check(
            "http://",
            Err(InvalidTarget::NotUrl(url::ParseError::EmptyHost)),
        );
    }

    #[track_caller]
    fn check(text: &str, expected: Result<&str, InvalidTarget>) {
        let got = Target::parse(text, "http").map(|t| t.to_string());
        assert_eq!(got, expected.map(str::to_owned), "{text}");
    }
}
