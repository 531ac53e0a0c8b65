//! A message about a rollout: as Slack text, and as JSON for other webhooks.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Slack's bound of a text in a block, with room for what stands around it.
const MAX_TEXT: usize = 2500;

/// Characters of a field: Slack takes 2000 as they are written, and writes up to five for one.
const MAX_FIELD: usize = 300;

/// News about one revision of a release.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// The namespace of the release.
    pub namespace: String,
    /// The release.
    pub release: String,
    /// The revision.
    pub revision: u32,
    /// `regressed` when the verdict falls, later how it ended.
    pub step: String,
    /// What happened, in one line.
    pub headline: String,
    /// Why: the numbers of the verdict, or what became of it.
    pub text: String,
    /// The reason of the verdict, as `hard_down:api`; empty without one.
    pub reason: String,
    /// When the revision appeared, in seconds since 1970.
    pub since: f64,
    /// When it happened, in seconds since 1970.
    pub at: f64,
    /// What a person can run.
    pub command: String,
    /// The status page, where it is known.
    pub link: Option<String>,
    /// Whether a person has to act.
    pub is_urgent: bool,
}

impl Message {
    /// Its identity, so that it is sent once. It includes the time, because revision numbers start again when a release
    /// is uninstalled and installed.
    pub fn id(&self) -> String {
        format!(
            "{}/{}/{}@{:.0}/{}",
            self.namespace, self.release, self.revision, self.since, self.step
        )
    }

    /// As Slack's incoming webhooks take it: blocks, and a text for notifications.
    pub fn slack(&self) -> Value {
        let mark = if self.is_urgent {
            ":rotating_light:"
        } else {
            ":anchor:"
        };
        let since = date(self.since);
        let mut fields = vec![
            field("Release", &format!("{}/{}", self.namespace, self.release)),
            field("Revision", &self.revision.to_string()),
            field("Since", &since),
        ];
        if !self.reason.is_empty() {
            fields.push(field("Reason", &self.reason));
        }
        let mut blocks = vec![
            json!({"type": "section", "text": {"type": "mrkdwn", "text": format!("{mark} *{}*", escaped(&self.headline))}}),
            json!({"type": "section", "fields": fields}),
        ];
        if !self.text.is_empty() {
            blocks.push(
                json!({"type": "section", "text": {"type": "mrkdwn", "text": escaped(&self.text)}}),
            );
        }
        let mut last = format!("`{}`", escaped(&self.command).replace('`', "'"));
        if let Some(link) = &self.link {
            last.push_str(&format!("  <{}|Status page>", escaped(link)));
        }
        blocks.push(json!({"type": "context", "elements": [{"type": "mrkdwn", "text": last}]}));
        json!({"text": escaped(&self.headline), "blocks": blocks})
    }

    /// As a webhook takes it.
    pub fn json(&self) -> Value {
        let mut value = json!(self);
        value["version"] = json!(1);
        value["id"] = json!(self.id());
        value
    }
}

fn field(name: &str, value: &str) -> Value {
    let value = escaped(&value.chars().take(MAX_FIELD).collect::<String>());
    json!({"type": "mrkdwn", "text": format!("*{name}*\n{value}")})
}

/// Slack's three characters with a meaning, as it wants them written; bounded as they are written, since Slack counts
/// that.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    let mut length = 0;
    for c in text.chars() {
        let mut one = [0; 4];
        let written = match c {
            '&' => "&amp;",
            '<' => "&lt;",
            '>' => "&gt;",
            c => c.encode_utf8(&mut one),
        };
        length += written.chars().count();
        if length > MAX_TEXT {
            out.push('…');
            break;
        }
        out.push_str(written);
    }
    out
}

/// A date that Slack shows in the reader's own time zone, and in UTC where it cannot.
fn date(unix: f64) -> String {
    let at = std::time::Duration::try_from_secs_f64(unix).unwrap_or_default();
    let text = humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + at);
    text.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> Message {
        Message {
            namespace: "shop".into(),
            release: "web".into(),
            revision: 42,
            step: "regressed".into(),
            headline: "shop/web: revision 42 made things worse <!channel>".into(),
            text: "api failed 16 times in a row & more".into(),
            reason: "hard_down:api".into(),
            since: 1_767_607_200.0,
            at: 1_767_607_215.0,
            command: "leadsman status web".into(),
            link: Some("http://leadsman/#release/shop/web".into()),
            is_urgent: true,
        }
    }

    #[test]
    fn slack_shows_all_of_it_and_obeys_nothing_in_it() {
        let slack = message().slack();
        assert_eq!(
            slack["text"],
            "shop/web: revision 42 made things worse &lt;!channel&gt;"
        );
        let text = slack.to_string();
        for part in [
            "hard_down:api",
            "2026-01-05T10:00:00Z",
            "16 times in a row &amp; more",
            "leadsman status web",
            "|Status page>",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(!text.contains("<!channel>"));
        let long = Message {
            text: "x".repeat(10_000),
            ..message()
        };
        assert!(
            long.slack()["blocks"][2]["text"]["text"]
                .as_str()
                .map_or(0, str::len)
                <= 3000
        );
        // What is written longer than it is counts as it is written, and nothing is cut in two.
        let outcomes = Message {
            text: "&".repeat(2400),
            ..message()
        };
        let slack = outcomes.slack();
        let text = slack["blocks"][2]["text"]["text"].as_str().unwrap_or("");
        assert!(text.chars().count() <= 3000 && text.ends_with("&amp;…"));
    }

    #[test]
    fn json_has_a_version_and_what_tells_it_from_others() {
        let json = message().json();
        assert_eq!(json["version"], 1);
        assert_eq!(json["id"], "shop/web/42@1767607200/regressed");
        assert_eq!(json["revision"], 42);
    }
}
