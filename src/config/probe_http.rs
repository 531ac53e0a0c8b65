//! The keys of an HTTP request: method, headers, body, credentials.

use std::path::PathBuf;

use http::header::{ACCEPT_ENCODING, AUTHORIZATION, COOKIE, HOST, PROXY_AUTHORIZATION};
use http::{HeaderName, HeaderValue, Method};

use super::layers::NodeKind;
use super::settings::{Auth, Compression, RequestBody, Secret};
use super::source_location::SourceLocation;
use super::value_reader::{ConfigTable, ConfigValue, ReaderNotes};

/// The largest body that is sent.
const MAX_BODY: usize = 1024 * 1024;

/// Headers of one request.
const MAX_HEADERS: usize = 100;

pub(super) fn method(table: &mut ConfigTable, notes: &mut ReaderNotes) -> Method {
    let Some((text, item)) = table.text("method", notes) else {
        return Method::GET;
    };
    let known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    if known.contains(&text.as_str())
        && let Ok(method) = Method::from_bytes(text.as_bytes())
    {
        return method;
    }
    notes.diagnostic(
        &item,
        format!("{text:?} is no method that can be asked with"),
        format!("write one of {}", known.join(", ")),
    );
    Method::GET
}

pub(super) fn body(table: &mut ConfigTable, notes: &mut ReaderNotes) -> RequestBody {
    let inline = table.text("body", notes);
    let file = path(table, "body_file", notes);
    match (inline, file) {
        (Some((_, item)), Some(_)) => {
            notes.diagnostic(&item, "stands beside body_file", "give one of the two");
            RequestBody::None
        }
        (Some((text, item)), None) if text.len() > MAX_BODY => {
            notes.diagnostic(&item, "is larger than 1 MiB", "send less");
            RequestBody::None
        }
        (Some((text, _)), None) => RequestBody::Inline(text.into()),
        (None, Some(path)) => RequestBody::File(path),
        (None, None) => RequestBody::None,
    }
}

/// The headers, and the Host among them.
pub(super) fn headers(
    table: &mut ConfigTable,
    compression: Option<Compression>,
    notes: &mut ReaderNotes,
) -> (Vec<(HeaderName, HeaderValue)>, Option<String>) {
    let host = table.text("host", notes);
    if let Some((text, item)) = &host
        && (text.is_empty()
            || HeaderValue::from_str(text).is_err()
            || text.contains(['/', ' ', '@']))
    {
        notes.diagnostic(
            item,
            format!("{text:?} is no host"),
            "write a name, or name:port",
        );
    }
    let mut host = host.map(|(text, _)| text);
    let mut headers = Vec::new();
    let Some(item) = table.take("headers") else {
        return (headers, host);
    };
    let mut table = ConfigTable::of(item, notes);
    for (name, item) in table.rest() {
        let values = match item.node.kind {
            NodeKind::Array(ref items) => items
                .iter()
                .map(|node| ConfigValue {
                    path: item.path.clone(),
                    node: node.clone(),
                })
                .collect(),
            _ => vec![item],
        };
        for item in values {
            let Some((name, value)) = header(&name, &item, notes) else {
                continue;
            };
            if name == HOST {
                host = value.to_str().ok().map(str::to_owned);
                continue;
            }
            if name == ACCEPT_ENCODING
                && let Some(coding) = compression
            {
                check_accepts(coding, &value, &item, notes);
            }
            headers.push((name, value));
        }
        if headers.len() > MAX_HEADERS {
            notes.complain(
                &table.path,
                &table.location,
                format!("holds more than {MAX_HEADERS} headers"),
                None,
            );
            break;
        }
    }
    (headers, host)
}

fn header(
    name: &str,
    item: &ConfigValue,
    notes: &mut ReaderNotes,
) -> Option<(HeaderName, HeaderValue)> {
    let Ok(parsed) = HeaderName::from_bytes(name.as_bytes()) else {
        notes.diagnostic(
            item,
            format!("{name:?} is no name of a header"),
            "use letters, digits and dashes",
        );
        return None;
    };
    let secret = [AUTHORIZATION, PROXY_AUTHORIZATION, COOKIE].contains(&parsed);
    if secret && matches!(item.node.location, SourceLocation::File { .. }) {
        let location = item.node.location.of_key();
        let help =
            "use bearer_token_file, or username and password_file; a variable may hold it as well";
        notes.complain(
            &item.path,
            &location,
            "is a secret and must not stand in a file of settings",
            Some(help.into()),
        );
        return None;
    }
    let Some(value) = item
        .text()
        .and_then(|text| HeaderValue::from_str(text).ok())
    else {
        notes.diagnostic(
            item,
            "is no value of a header",
            "write a text in quotes, without line breaks",
        );
        return None;
    };
    let shown = if secret {
        "<secret>".to_owned()
    } else {
        format!("{:?}", item.text().unwrap_or(""))
    };
    notes.holds(&item.path, shown, &item.node.location);
    Some((parsed, value))
}

/// A target that is asked not to pack must not be expected to (H13, H15).
fn check_accepts(
    compression: Compression,
    value: &HeaderValue,
    item: &ConfigValue,
    notes: &mut ReaderNotes,
) {
    let wanted = match compression {
        Compression::Gzip => "gzip",
        Compression::Deflate => "deflate",
        Compression::Brotli => "br",
    };
    let weight = |coding: &str| {
        let text = value.to_str().unwrap_or("");
        text.split(',').find_map(|entry| {
            let mut parts = entry.split(';').map(str::trim);
            let named = parts.next()?.eq_ignore_ascii_case(coding);
            let weight = parts
                .find_map(|part| part.strip_prefix("q=")?.parse::<f32>().ok())
                .unwrap_or(1.0);
            named.then_some(weight)
        })
    };
    if weight(wanted)
        .or_else(|| weight("*"))
        .is_none_or(|weight| weight <= 0.0)
    {
        let message = format!("does not accept {wanted}, which compression expects");
        notes.diagnostic(
            item,
            message,
            format!("add {wanted}, or take the header out: it is sent by itself"),
        );
    }
}

pub(super) fn auth(table: &mut ConfigTable, notes: &mut ReaderNotes) -> Option<Auth> {
    let username = table.text("username", notes);
    let password = secret(table, "password", "password_file", notes);
    let token = secret(table, "bearer_token", "bearer_token_file", notes);
    let location = table.location.clone();
    match (username, password, token) {
        (None, None, None) => None,
        (None, None, Some(token)) => Some(Auth::Bearer(token)),
        (Some((username, _)), Some(password), None) if !username.contains(':') => {
            Some(Auth::Basic { username, password })
        }
        (Some((_, item)), Some(_), None) => {
            notes.diagnostic(
                &item,
                "holds a colon, which ends a user name",
                "take the colon out",
            );
            None
        }
        (Some((_, item)), None, None) => {
            notes.diagnostic(&item, "has no password", "add password_file = \"…\"");
            None
        }
        (None, Some(_), None) => {
            notes.complain(
                &table.path,
                &location,
                "has a password and no user",
                Some("add username = \"…\"".into()),
            );
            None
        }
        (_, _, Some(_)) => {
            let help = "give either bearer_token_file, or username and password_file";
            notes.complain(
                &table.path,
                &location,
                "has two kinds of credentials",
                Some(help.into()),
            );
            None
        }
    }
}

/// A secret: from a file of its own, or from the environment. What stands in a file of settings is refused, unseen.
pub(super) fn secret(
    table: &mut ConfigTable,
    key: &'static str,
    file_key: &'static str,
    notes: &mut ReaderNotes,
) -> Option<Secret> {
    let inline = table.take(key);
    let file = path(table, file_key, notes);
    let Some(item) = inline else {
        return file.map(Secret::File);
    };
    if matches!(
        item.node.location,
        SourceLocation::File { .. } | SourceLocation::Flag(_)
    ) {
        let variable = format!(
            "LEADSMAN__{}",
            item.path
                .to_uppercase()
                .replace('.', "__")
                .replace('-', "_")
        );
        let help = format!("use {file_key} = \"…\", or the variable {variable}");
        let location = item.node.location.of_key();
        notes.complain(
            &item.path,
            &location,
            "is a secret and must not stand in a file of settings or a flag",
            Some(help),
        );
        return None;
    }
    if file.is_some() {
        notes.diagnostic(
            &item,
            format!("stands beside {file_key}"),
            "give one of the two",
        );
        return None;
    }
    notes.holds(&item.path, "<secret>", &item.node.location);
    item.text().map(|text| Secret::Value(text.to_owned()))
}

/// A path of a file. Whether it can be read shows when it is: secrets and certificates come and go.
pub(super) fn path(
    table: &mut ConfigTable,
    key: &'static str,
    notes: &mut ReaderNotes,
) -> Option<PathBuf> {
    let (text, item) = table.text(key, notes)?;
    if text.is_empty() || text.contains('\0') {
        notes.diagnostic(&item, "names no file", "write a path");
        return None;
    }
    Some(text.into())
}
