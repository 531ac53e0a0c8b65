//! Expectations in the http section of a module.

use http::HeaderName;

use super::module::{ImportedModule, YamlSection, as_text};
use super::yaml::Yaml;
use super::{pattern, toml_text};

/// Rules of one kind that our reader takes.
const MAX_RULES: usize = 100;

/// What it means when a rule is lost.
const WEAKER: &str = "so a good answer is easier to give";

pub(super) fn import(http: &mut YamlSection, module: &mut ImportedModule) {
    statuses(http, module);
    versions(http, module);
    let forbidden = http.switch("fail_if_ssl", module) == Some(true);
    let required = http.switch("fail_if_not_ssl", module) == Some(true);
    match (forbidden, required) {
        (true, true) => {
            let path = http.path_of("fail_if_ssl");
            module.refuse(
                &path,
                "stands beside fail_if_not_ssl, so nothing can be good",
            );
        }
        (true, false) => module.set_text("expect.tls", "forbidden"),
        (false, true) => module.set_text("expect.tls", "required"),
        (false, false) => {}
    }
    for (there, here) in [
        ("fail_if_body_not_matches_regexp", "expect.body_matches"),
        ("fail_if_body_matches_regexp", "expect.body_not_matches"),
    ] {
        let mut patterns = Vec::new();
        for (index, item) in http.list(there, module).into_iter().enumerate() {
            let path = format!("{}[{index}]", http.path_of(there));
            if let Some(pattern) = pattern_of(&item, &path, index, module) {
                patterns.push(toml_text::text(&pattern));
            }
        }
        if !patterns.is_empty() {
            module.set(here, toml_text::list(&patterns));
        }
    }
    header_rules(http, module);
}

/// A pattern in our notation. One that is lost makes a module that is weaker; that is said and not hidden.
fn pattern_of(
    item: &Yaml,
    path: &str,
    index: usize,
    module: &mut ImportedModule,
) -> Option<String> {
    if index >= MAX_RULES {
        module.leave_out(
            path,
            format!("more than {MAX_RULES} are not kept, {WEAKER}"),
        );
        return None;
    }
    let Some(text) = as_text(item) else {
        module.leave_out(path, format!("is {} and no pattern, {WEAKER}", item.name()));
        return None;
    };
    pattern::ours(&text)
        .inspect_err(|why| module.leave_out(path, format!("{why}, {WEAKER}")))
        .ok()
}

fn statuses(http: &mut YamlSection, module: &mut ImportedModule) {
    let mut statuses = Vec::new();
    for (index, item) in http.list("valid_status_codes", module).iter().enumerate() {
        match as_text(item).and_then(|text| text.parse::<u16>().ok()) {
            Some(status) if (100..=999).contains(&status) => statuses.push(status.to_string()),
            Some(_) | None => {
                let path = format!("{}[{index}]", http.path_of("valid_status_codes"));
                module.leave_out(&path, "is no status from 100 to 999");
            }
        }
    }
    if !statuses.is_empty() {
        module.set("expect.status", toml_text::list(&statuses));
    }
}

fn versions(http: &mut YamlSection, module: &mut ImportedModule) {
    let mut versions = Vec::new();
    for (index, item) in http.list("valid_http_versions", module).iter().enumerate() {
        let version = match as_text(item).as_deref() {
            Some("HTTP/1.0") => "\"1.0\"",
            Some("HTTP/1.1") => "\"1.1\"",
            Some("HTTP/2" | "HTTP/2.0") => "\"2\"",
            Some(_) | None => {
                let path = format!("{}[{index}]", http.path_of("valid_http_versions"));
                module.leave_out(&path, "is no version of HTTP that is spoken here");
                continue;
            }
        };
        if !versions.iter().any(|known| known == version) {
            versions.push(version.to_owned());
        }
    }
    if !versions.is_empty() {
        module.set("expect.http_version", toml_text::list(&versions));
    }
}

/// What is asked of one header; a header has one rule of each kind here.
#[derive(Default)]
struct HeaderRules {
    name: String,
    matches: Option<String>,
    not_matches: Vec<String>,
    is_needed: bool,
}

fn header_rules(http: &mut YamlSection, module: &mut ImportedModule) {
    let mut all: Vec<HeaderRules> = Vec::new();
    for (key, fails_on_match) in [
        ("fail_if_header_not_matches", false),
        ("fail_if_header_matches", true),
    ] {
        for (index, item) in http.list(key, module).into_iter().enumerate() {
            let path = format!("{}[{index}]", http.path_of(key));
            let Some(mut rule) = YamlSection::of(item, path.clone(), module) else {
                continue;
            };
            let name = rule.text("header", module).unwrap_or_default();
            let regexp = rule.take("regexp").unwrap_or(Yaml::Null);
            let may_miss = rule.switch("allow_missing", module).unwrap_or(false);
            rule.end(module);
            if HeaderName::from_bytes(name.as_bytes()).is_err() {
                module.leave_out(&path, format!("names no header, {WEAKER}"));
                continue;
            }
            let Some(pattern) = pattern_of(&regexp, &path, index, module) else {
                continue;
            };
            let at = all
                .iter()
                .position(|known| known.name.eq_ignore_ascii_case(&name));
            let at = at.unwrap_or_else(|| {
                all.push(HeaderRules {
                    name,
                    ..HeaderRules::default()
                });
                all.len() - 1
            });
            let Some(rules) = all.get_mut(at) else {
                continue;
            };
            if fails_on_match {
                rules.not_matches.push(pattern);
                rules.is_needed |= !may_miss;
            } else if may_miss {
                let why = format!("there is no match that a missing header passes, {WEAKER}");
                module.leave_out(&format!("{path}.allow_missing"), why);
            } else if rules
                .matches
                .as_ref()
                .is_some_and(|known| *known != pattern)
            {
                let why = format!("a header has one pattern to match, {WEAKER}");
                module.leave_out(&path, why);
            } else {
                rules.matches = Some(pattern);
            }
        }
    }
    let mut needed = Vec::new();
    for rules in &all {
        let name = toml_text::key(&rules.name);
        if let Some(pattern) = &rules.matches {
            module.set_text(&format!("expect.header_matches.{name}"), pattern);
        } else if rules.is_needed {
            // A header that must match must be there anyway.
            needed.push(toml_text::text(&rules.name));
        }
        let none_of = match rules.not_matches.as_slice() {
            [] => continue,
            [one] => one.clone(),
            several => {
                let groups: Vec<_> = several.iter().map(|one| format!("(?:{one})")).collect();
                groups.join("|")
            }
        };
        module.set_text(&format!("expect.header_not_matches.{name}"), &none_of);
    }
    if !needed.is_empty() {
        module.set("expect.header_present", toml_text::list(&needed));
    }
}
