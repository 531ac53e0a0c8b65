//! The tcp section of a module.

use regex::bytes::Regex;

use super::http::{addresses, tls};
use super::module::{ImportedModule, YamlSection};
use super::{pattern, toml_text};

/// Steps of one dialogue that our reader takes.
const MAX_STEPS: usize = 64;

pub(super) fn import(mut tcp: YamlSection, module: &mut ImportedModule) {
    addresses(&mut tcp, module);
    tcp.foreign(
        &[(
            "source_ip_address",
            "the source address is always the system's choice",
        )],
        module,
    );
    if tcp.switch("tls", module) == Some(true) {
        module.set("start_with_tls", true);
    }
    tls(tcp.section("tls_config", module), module);
    dialogue(&mut tcp, module);
    tcp.end(module);
}

/// Each entry waits, then sends, then starts TLS.
fn dialogue(tcp: &mut YamlSection, module: &mut ImportedModule) {
    let mut steps = Vec::new();
    let mut has_waited = false;
    for (index, entry) in tcp.list("query_response", module).into_iter().enumerate() {
        let path = tcp.path_of(&format!("query_response[{index}]"));
        let Some(mut entry) = YamlSection::of(entry, path, module) else {
            continue;
        };
        entry.foreign(
            &[
                ("labels", "what a line holds becomes no label"),
                ("expect_bytes", "only lines are waited for, not bytes"),
            ],
            module,
        );
        let mut waits_for = None;
        if let Some(text) = entry.text("expect", module) {
            match pattern::ours(&text) {
                Ok(pattern) => {
                    steps.push(format!("{{ expect_line = {} }}", toml_text::text(&pattern)));
                    waits_for = Regex::new(&pattern).ok();
                    has_waited = true;
                }
                Err(why) => module.refuse(&entry.path_of("expect"), why),
            }
        }
        if let Some(text) = entry.scalar("send", module) {
            let path = entry.path_of("send");
            let text = match &waits_for {
                Some(regex) => filled_in_later(&text, regex),
                None => Some(text).filter(|text| !(has_waited && text.contains("${"))),
            };
            match text {
                // There, each send ends a line.
                Some(text) => {
                    let line = toml_text::text(&format!("{text}\n"));
                    steps.push(format!("{{ send = {line} }}"));
                }
                None => module.refuse(&path, "a ${ that is meant as it stands cannot be sent"),
            }
        }
        if entry.switch("starttls", module) == Some(true) {
            steps.push("{ start_tls = true }".to_owned());
        }
        entry.end(module);
    }
    if steps.len() > MAX_STEPS {
        let path = tcp.path_of("query_response");
        module.refuse(&path, format!("more than {MAX_STEPS} steps are not taken"));
    } else if !steps.is_empty() {
        module.set("dialogue", toml_text::tall_list(&steps));
    }
}

/// The text with its places for groups in our notation: `$1` and `$name` become `${1}` and `${name}`, `$$` a dollar, and
/// a group that the pattern does not have nothing. `None` when a `${` would remain that is no such place.
fn filled_in_later(text: &str, waits_for: &Regex) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some(next) = after.strip_prefix('$') {
            if next.starts_with('{') {
                return None;
            }
            out.push('$');
            rest = next;
            continue;
        }
        let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
        let (name, next) = match after.strip_prefix('{') {
            Some(braced) => braced.split_once('}')?,
            None => after.split_at(after.find(|c| !part_of_name(c)).unwrap_or(after.len())),
        };
        if name.is_empty() || !name.chars().all(part_of_name) {
            // No place at all: there, such a dollar stays as it is.
            if after.starts_with('{') {
                return None;
            }
            out.push('$');
            rest = after;
            continue;
        }
        let has_name = waits_for
            .capture_names()
            .flatten()
            .any(|known| known == name);
        let has_number = name
            .parse::<usize>()
            .is_ok_and(|number| number < waits_for.captures_len());
        if has_name || has_number {
            out.push_str(&format!("${{{name}}}"));
        }
        rest = next;
    }
    out.push_str(rest);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_for_groups_are_written_in_our_notation() {
        let regex = Regex::new("^PING (?P<who>.*)$").unwrap();
        for (text, expected) in [
            ("PONG $1", Some("PONG ${1}")),
            ("PONG ${1}x", Some("PONG ${1}x")),
            ("PONG $who!", Some("PONG ${who}!")),
            ("PONG $1x", Some("PONG ")),
            ("PONG $7", Some("PONG ")),
            ("$$5", Some("$5")),
            ("5$", Some("5$")),
            ("5$ ", Some("5$ ")),
            ("$${1}", None),
            ("${", None),
            ("${a b}", None),
        ] {
            let got = filled_in_later(text, &regex);
            assert_eq!(got.as_deref(), expected, "{text:?}");
        }
    }
}
