//! The http section of a module, and what it shares with tcp.

use http::header::{ACCEPT_ENCODING, AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION};
use http::{HeaderName, HeaderValue};

use rustls::pki_types::ServerName;

use super::module::{ImportedModule, YamlSection, as_text};
use super::{expect, notation, toml_text};
use crate::config::Target;

/// Rules of one kind, and headers, that our reader takes.
const MAX_RULES: usize = 100;

/// The largest limit of a body, and the largest body to send, that our reader takes.
const MAX_BODY_LIMIT: u64 = 64 * 1024 * 1024;
const MAX_BODY: usize = 1024 * 1024;

/// Redirects that are followed there at most.
const REDIRECTS: u8 = 10;

/// What to do about a secret that stands in the file; the name of our key follows.
const INLINE: &str = "stands in the file itself, which is not imported; put it into a file of its own, and name it as";

/// What to do about a certificate or key that stands in the file, or in a store.
const PEM_INLINE: &str = "put it into a file of its own, and name that";
const NO_STORE: &str = "there is no store of secrets; name a file";

const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

pub(super) fn import(mut http: YamlSection, module: &mut ImportedModule) {
    request(&mut http, module);
    credentials(&mut http, module);
    connection(&mut http, module);
    tls(http.section("tls_config", module), module);
    expect::import(&mut http, module);
    foreign(&mut http, module);
    http.end(module);
}

fn foreign(http: &mut YamlSection, module: &mut ImportedModule) {
    http.foreign(
        &[
            ("oauth2", "tokens are not fetched; let something put one into a file, and name it as bearer_token_file"),
            ("source_ip_address", "the source address is always the system's choice"),
            ("no_proxy", "a proxy that is given is always used"),
            ("proxy_from_environment", "a proxy is never taken from the environment; give it as proxy"),
            ("proxy_connect_header", "no headers are sent to a proxy"),
            ("proxy_connect_headers", "no headers are sent to a proxy"),
            ("http_headers", "give them as headers"),
            ("enable_http3", "HTTP/3 is not spoken"),
            ("fail_if_body_json_matches_cel", "there is no CEL; write the rule as expect.json"),
            ("fail_if_body_json_not_matches_cel", "there is no CEL; write the rule as expect.json"),
        ],
        module,
    );
}

fn request(http: &mut YamlSection, module: &mut ImportedModule) {
    if let Some(method) = http.text("method", module) {
        if METHODS.contains(&method.as_str()) {
            module.set_text("method", &method);
        } else {
            let path = http.path_of("method");
            module.refuse(&path, format!("cannot be {method:?}"));
        }
    }
    headers(http, module);
    let body = http.scalar("body", module);
    let file = http.file("body_file", module);
    match (body, file) {
        (Some(_), Some(_)) => {
            let path = http.path_of("body_file");
            module.refuse(&path, "stands beside body");
        }
        (Some(body), None) if body.len() > MAX_BODY => {
            let path = http.path_of("body");
            module.refuse(&path, "is larger than 1 MiB");
        }
        (Some(body), None) => module.set_text("body", &body),
        (None, Some(file)) => module.set_text("body_file", &file),
        (None, None) => {}
    }
    // The older key wins there, too, when both are given.
    let follows = http.switch("follow_redirects", module).unwrap_or(true);
    let stays = http.switch("no_follow_redirects", module);
    if stays.map_or(follows, |stays| !stays) {
        module.set(
            "redirects",
            format!("{{ max = {REDIRECTS}, scope = \"all\" }}"),
        );
    }
}

fn headers(http: &mut YamlSection, module: &mut ImportedModule) {
    let unpacks = http.has("compression");
    let mut headers = http.section("headers", module);
    for (index, (name, value)) in headers.rest().into_iter().enumerate() {
        let path = headers.path_of(&name);
        if index >= MAX_RULES {
            module.refuse(&path, format!("more than {MAX_RULES} headers are not sent"));
            return;
        }
        let Ok(parsed) = HeaderName::from_bytes(name.as_bytes()) else {
            module.refuse(&path, "is no name of a header");
            continue;
        };
        if [AUTHORIZATION, PROXY_AUTHORIZATION, COOKIE].contains(&parsed) {
            module.leave_out(
                &path,
                "is a secret that does not belong into settings; use bearer_token_file, or username and password_file",
            );
            continue;
        }
        if unpacks && parsed == ACCEPT_ENCODING {
            module.leave_out(&path, "is sent as compression says");
            continue;
        }
        match as_text(&value).filter(|text| HeaderValue::from_str(text).is_ok()) {
            Some(text) => {
                let key = format!("headers.{}", toml_text::key(&name));
                module.set_text(&key, &text);
            }
            None => module.refuse(&path, "is no text that a header can hold; put it in quotes"),
        }
    }
}

/// Credentials, where they are in files. Without them the target's answer shows that they are missing.
fn credentials(http: &mut YamlSection, module: &mut ImportedModule) {
    let mut basic = http.section("basic_auth", module);
    let user = basic.scalar("username", module);
    let password_file = basic.file("password_file", module);
    if basic.take("password").is_some() {
        let path = basic.path_of("password");
        module.leave_out(&path, format!("{INLINE} password_file, beside username"));
    }
    basic.foreign(
        &[
            (
                "username_file",
                "the user's name is not read from a file; give it as username",
            ),
            ("username_ref", "there is no store of secrets"),
            ("password_ref", "there is no store of secrets"),
        ],
        module,
    );
    let basic_path = http.path_of("basic_auth");
    basic.end(module);

    let mut authorization = http.section("authorization", module);
    let scheme = authorization.text("type", module);
    let is_bearer = scheme.is_none_or(|scheme| scheme.trim().eq_ignore_ascii_case("bearer"));
    if authorization.take("credentials").is_some() {
        let path = authorization.path_of("credentials");
        module.leave_out(&path, format!("{INLINE} bearer_token_file"));
    }
    let mut token_file = authorization.file("credentials_file", module);
    if token_file.is_some() && !is_bearer {
        let path = authorization.path_of("type");
        module.leave_out(&path, "only Bearer is known; for Basic use basic_auth");
        token_file = None;
    }
    authorization.foreign(
        &[("credentials_ref", "there is no store of secrets")],
        module,
    );
    authorization.end(module);

    if http.take("bearer_token").is_some() {
        let path = http.path_of("bearer_token");
        module.leave_out(&path, format!("{INLINE} bearer_token_file"));
    }
    let token_file = http.file("bearer_token_file", module).or(token_file);

    match (user, password_file, token_file) {
        (Some(user), Some(file), None) if !user.contains(':') => {
            module.set_text("username", &user);
            module.set_text("password_file", &file);
        }
        (None, None, Some(file)) => module.set_text("bearer_token_file", &file),
        (None, None, None) => {}
        (Some(_), None, None) => {
            module.leave_out(&basic_path, "has no password_file, so no user is sent");
        }
        (Some(_), Some(_), None) => {
            module.leave_out(&basic_path, "has a colon in the user's name");
        }
        (None, Some(_), None) => module.leave_out(&basic_path, "has no username"),
        (_, _, Some(file)) => {
            module.leave_out(&basic_path, "stands beside a bearer token, which is used");
            module.set_text("bearer_token_file", &file);
        }
    }
}

fn connection(http: &mut YamlSection, module: &mut ImportedModule) {
    addresses(http, module);
    if http.switch("enable_http2", module) == Some(false) {
        module.set_text("http", "1.1");
    }
    let skips = http.switch("skip_resolve_phase_with_proxy", module) == Some(true);
    if let Some(url) = http.text("proxy_url", module) {
        match Target::parse(&url, "http") {
            Ok(proxy) if !proxy.is_https() && !proxy.is_tcp() => {
                module.set_text("proxy", &proxy.to_string());
                if skips {
                    module.set("proxy_resolves", true);
                }
            }
            // The URL may hold a password, so it is not shown.
            Ok(_) => module.refuse(
                &http.path_of("proxy_url"),
                "only a plain http proxy is used",
            ),
            Err(error) => module.refuse(&http.path_of("proxy_url"), format!("the URL {error}")),
        }
    }
    if let Some(coding) = http.text("compression", module) {
        match coding.as_str() {
            "gzip" | "deflate" | "br" => module.set_text("compression", &coding),
            "identity" => {}
            _ => {
                let path = http.path_of("compression");
                module.refuse(&path, format!("{coding:?} is not unpacked"));
            }
        }
    }
    if let Some(text) = http.scalar("body_size_limit", module) {
        let path = http.path_of("body_size_limit");
        match notation::size(&text) {
            None => module.leave_out(&path, "is no size, as \"10MB\" is one"),
            Some(0) => {}
            Some(bytes) => {
                if bytes > MAX_BODY_LIMIT {
                    module.leave_out(&path, "is brought down to 64 MiB");
                }
                module.set("body_limit", size(bytes.min(MAX_BODY_LIMIT)));
            }
        }
    }
}

/// A size as our reader takes it.
fn size(bytes: u64) -> String {
    const KIB: u64 = 1024;
    const MIB: u64 = 1024 * KIB;
    match bytes {
        _ if bytes.is_multiple_of(MIB) => format!("\"{} MiB\"", bytes / MIB),
        _ if bytes.is_multiple_of(KIB) => format!("\"{} KiB\"", bytes / KIB),
        _ => bytes.to_string(),
    }
}

/// Which addresses of a name are used: there, IPv6 before IPv4 unless something else is said.
pub(super) fn addresses(section: &mut YamlSection, module: &mut ImportedModule) {
    let family = section.text("preferred_ip_protocol", module);
    let fallback = section
        .switch("ip_protocol_fallback", module)
        .unwrap_or(true);
    let ip = match family.as_deref() {
        None | Some("ip6") => "6",
        Some("ip4") => "4",
        Some(other) => {
            let path = section.path_of("preferred_ip_protocol");
            module.leave_out(&path, format!("{other:?} is neither ip4 nor ip6"));
            return;
        }
    };
    module.set_text("ip", ip);
    module.set("ip_fallback", fallback);
}

pub(super) fn tls(mut tls: YamlSection, module: &mut ImportedModule) {
    for key in ["ca_file", "server_name"] {
        let text = match key {
            "ca_file" => tls.file(key, module),
            _ => tls.text(key, module),
        };
        let Some(text) = text else {
            continue;
        };
        if key == "server_name" && ServerName::try_from(text.as_str()).is_err() {
            module.refuse(&tls.path_of(key), "is no name of a server");
            continue;
        }
        module.set_text(&format!("tls.{key}"), &text);
    }
    let (certificate, key) = (tls.file("cert_file", module), tls.file("key_file", module));
    match (certificate, key) {
        (Some(certificate), Some(key)) => {
            module.set_text("tls.cert_file", &certificate);
            module.set_text("tls.key_file", &key);
        }
        (None, None) => {}
        (Some(_), None) => module.refuse(&tls.path_of("cert_file"), "has no key_file"),
        (None, Some(_)) => module.refuse(&tls.path_of("key_file"), "has no cert_file"),
    }
    if tls.switch("insecure_skip_verify", module) == Some(true) {
        module.set("tls.insecure_skip_verify", true);
    }
    match tls.text("min_version", module).as_deref() {
        None | Some("TLS12") => {}
        Some("TLS13") => module.set_text("tls.min_version", "1.3"),
        Some(_) => {
            let path = tls.path_of("min_version");
            module.leave_out(&path, "TLS before 1.2 is not spoken; 1.2 is the least");
        }
    }
    if tls
        .text("max_version", module)
        .is_some_and(|most| most != "TLS13")
    {
        let path = tls.path_of("max_version");
        module.leave_out(&path, "the newest version that both know is used");
    }
    tls.foreign(
        &[
            ("ca", PEM_INLINE),
            ("cert", PEM_INLINE),
            ("key", PEM_INLINE),
            ("ca_ref", NO_STORE),
            ("cert_ref", NO_STORE),
            ("key_ref", NO_STORE),
        ],
        module,
    );
    tls.end(module);
}
