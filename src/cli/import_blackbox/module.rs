//! Converts one module, and notes what is left out.

use std::fmt::Display;

use super::yaml::Yaml;
use super::{Unsupported, http, notation, tcp, toml_text};

/// Longer names are no names.
const LONGEST_NAME: usize = 200;

/// The longest timeout that our reader takes.
const LONGEST_TIMEOUT_SECONDS: u64 = 60;

/// Other probers of blackbox_exporter.
const OTHER_PROBERS: [&str; 4] = ["dns", "icmp", "grpc", "unix"];

/// A module on its way from YAML to TOML.
pub(super) struct ImportedModule {
    name: String,
    /// Lines of TOML; empty for a module that cannot be asked.
    lines: Vec<String>,
    pub(super) left_out: Vec<Unsupported>,
    is_refused: bool,
}

impl ImportedModule {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            lines: Vec::new(),
            left_out: Vec::new(),
            is_refused: false,
        }
    }

    /// Whether there is something to ask with.
    pub(super) const fn is_asked(&self) -> bool {
        !self.is_refused
    }

    /// Notes that a key is not imported, or not as it was.
    pub(super) fn leave_out(&mut self, key: &str, why: impl Display) {
        self.left_out.push(Unsupported {
            module: self.name.clone(),
            key: key.to_owned(),
            why: why.to_string(),
        });
    }

    /// Notes what makes the whole module unusable: without it another question would be asked.
    pub(super) fn refuse(&mut self, key: &str, why: impl Display) {
        self.leave_out(key, format!("{why}; the module is left out"));
        self.is_refused = true;
    }

    /// Writes a setting whose value is TOML already.
    pub(super) fn set(&mut self, key: &str, toml: impl Display) {
        self.lines.push(format!("{key} = {toml}"));
    }

    /// Writes a text.
    pub(super) fn set_text(&mut self, key: &str, text: &str) {
        self.set(key, toml_text::text(text));
    }

    /// Reads the module.
    pub(super) fn import(&mut self, value: Yaml) {
        if self.name.is_empty() || self.name.len() > LONGEST_NAME {
            self.name = self.name.chars().take(40).collect();
            self.refuse("(name)", "the name is empty or longer than 200 bytes");
            return;
        }
        let Some(mut module) = YamlSection::of(value, String::new(), self) else {
            self.is_refused = true;
            return;
        };
        let prober = module.text("prober", self).unwrap_or_default();
        if prober != "http" && prober != "tcp" {
            let why = if OTHER_PROBERS.contains(&prober.as_str()) {
                format!("{prober} cannot be asked, only http and tcp can")
            } else {
                "no prober is given that is known".to_owned()
            };
            self.refuse("prober", why);
            return;
        }
        self.set_text("kind", &prober);
        self.timeout(&mut module);
        let own = module.section(&prober, self);
        for other in ["http", "tcp"].into_iter().chain(OTHER_PROBERS) {
            if module.take(other).is_some() {
                self.leave_out(
                    other,
                    format!("says nothing where prober is {prober}, there as here"),
                );
            }
        }
        module.end(self);
        if prober == "http" {
            http::import(own, self);
        } else {
            tcp::import(own, self);
        }
    }

    fn timeout(&mut self, module: &mut YamlSection) {
        let Some(text) = module.scalar("timeout", self) else {
            return;
        };
        let Some(timeout) = notation::duration(&text) else {
            self.leave_out("timeout", "is no duration, as \"5s\" is one");
            return;
        };
        let longest = std::time::Duration::from_secs(LONGEST_TIMEOUT_SECONDS);
        let shortest = std::time::Duration::from_millis(1);
        if timeout.is_zero() {
            return;
        }
        let fits = timeout.clamp(shortest, longest);
        if fits != timeout {
            self.leave_out("timeout", "is brought into the range from 1 ms to 60 s");
        }
        self.set_text("timeout", &humantime::format_duration(fits).to_string());
    }

    /// The module as TOML, with what was left out as comments above it.
    pub(super) fn write(&self, out: &mut String) {
        for left_out in &self.left_out {
            out.push_str("# Not as it was: ");
            out.push_str(&left_out.to_string());
            out.push('\n');
        }
        if self.is_refused {
            return;
        }
        out.push_str("[[module]]\nname = ");
        out.push_str(&toml_text::text(&self.name));
        out.push('\n');
        for line in &self.lines {
            out.push_str(line);
            out.push('\n');
        }
    }
}

/// A table that is being read; keys that are not taken are listed as left out.
#[derive(Debug, Default)]
pub(super) struct YamlSection {
    path: String,
    entries: Vec<(String, Yaml)>,
}

impl YamlSection {
    /// Takes a table apart. Nothing is an empty table.
    pub(super) fn of(value: Yaml, path: String, module: &mut ImportedModule) -> Option<Self> {
        match value {
            Yaml::Map(entries) => Some(Self { path, entries }),
            Yaml::Null => Some(Self {
                path,
                entries: Vec::new(),
            }),
            other => {
                let key = if path.is_empty() { "(module)" } else { &path };
                module.leave_out(key, format!("is {} and no table", other.name()));
                None
            }
        }
    }

    /// The full name of a key, for complaints.
    pub(super) fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    /// Takes a value out. One that says nothing (`null`, `""`, an empty list or table) is as good as none.
    pub(super) fn take(&mut self, key: &str) -> Option<Yaml> {
        let at = self.entries.iter().position(|(name, _)| name == key)?;
        let (_, value) = self.entries.remove(at);
        (!says_nothing(&value)).then_some(value)
    }

    /// A table below this one; empty if there is none.
    pub(super) fn section(&mut self, key: &str, module: &mut ImportedModule) -> Self {
        let path = self.path_of(key);
        let value = self.take(key).unwrap_or(Yaml::Null);
        Self::of(value, path.clone(), module).unwrap_or(Self {
            path,
            entries: Vec::new(),
        })
    }

    /// A text.
    pub(super) fn text(&mut self, key: &str, module: &mut ImportedModule) -> Option<String> {
        match self.take(key)? {
            Yaml::Text(text) => Some(text),
            other => {
                self.wrong(key, &other, "a text", module);
                None
            }
        }
    }

    /// The path of a file.
    pub(super) fn file(&mut self, key: &str, module: &mut ImportedModule) -> Option<String> {
        let path = self.text(key, module)?;
        if path.contains('\0') {
            module.refuse(&self.path_of(key), "cannot be the path of a file");
            return None;
        }
        Some(path)
    }

    /// Whether a key says something.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries
            .iter()
            .any(|(name, value)| name == key && !says_nothing(value))
    }

    /// A text, or a number or switch that YAML takes for one: `timeout: 0`, `Upgrade-Insecure-Requests: 1`.
    pub(super) fn scalar(&mut self, key: &str, module: &mut ImportedModule) -> Option<String> {
        let value = self.take(key)?;
        let text = as_text(&value);
        if text.is_none() {
            self.wrong(key, &value, "a text", module);
        }
        text
    }

    /// true or false, also in the words of older YAML.
    pub(super) fn switch(&mut self, key: &str, module: &mut ImportedModule) -> Option<bool> {
        match self.take(key)? {
            Yaml::Bool(is) => Some(is),
            Yaml::Text(text) if ["yes", "on", "true"].contains(&text.to_lowercase().as_str()) => {
                Some(true)
            }
            Yaml::Text(text) if ["no", "off", "false"].contains(&text.to_lowercase().as_str()) => {
                Some(false)
            }
            other => {
                self.wrong(key, &other, "true or false", module);
                None
            }
        }
    }

    /// A list.
    pub(super) fn list(&mut self, key: &str, module: &mut ImportedModule) -> Vec<Yaml> {
        match self.take(key) {
            None => Vec::new(),
            Some(Yaml::List(items)) => items,
            Some(other) => {
                self.wrong(key, &other, "a list", module);
                Vec::new()
            }
        }
    }

    /// All that is left, for a table whose keys are names.
    pub(super) fn rest(&mut self) -> Vec<(String, Yaml)> {
        std::mem::take(&mut self.entries)
    }

    /// Notes the presence of keys that have no counterpart.
    pub(super) fn foreign(&mut self, keys: &[(&str, &str)], module: &mut ImportedModule) {
        for (key, why) in keys {
            match self.take(key) {
                None | Some(Yaml::Bool(false)) => {}
                Some(_) => module.leave_out(&self.path_of(key), why),
            }
        }
    }

    /// Notes every key that was not taken.
    pub(super) fn end(self, module: &mut ImportedModule) {
        for (key, _) in &self.entries {
            module.leave_out(&self.path_of(key), "is not known");
        }
    }

    fn wrong(&self, key: &str, found: &Yaml, wanted: &str, module: &mut ImportedModule) {
        let why = format!("is {} and not {wanted}", found.name());
        module.leave_out(&self.path_of(key), why);
    }
}

fn says_nothing(value: &Yaml) -> bool {
    match value {
        Yaml::Null => true,
        Yaml::Text(text) => text.is_empty(),
        Yaml::List(items) => items.is_empty(),
        Yaml::Map(entries) => entries.is_empty(),
        Yaml::Bool(_) | Yaml::Int(_) | Yaml::Float(_) => false,
    }
}

/// A scalar as it would be written. A number with a fraction is not: `1.10` would come out as `1.1`.
pub(super) fn as_text(value: &Yaml) -> Option<String> {
    match value {
        Yaml::Text(text) => Some(text.clone()),
        Yaml::Int(number) => Some(number.to_string()),
        Yaml::Bool(is) => Some(is.to_string()),
        Yaml::Null | Yaml::Float(_) | Yaml::List(_) | Yaml::Map(_) => None,
    }
}
