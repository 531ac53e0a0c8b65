//! What a pod does, by its annotations:
//!
//! | `sim.leadsman.io/…` | value |
//! |---|---|
//! | `start` | from scheduling to Running, as `1s` (the default is `300ms`) |
//! | `crash-after` | each run of the container ends after that, with exit code 1 |
//! | `oom-after` | the same with exit code 137, OOMKilled |
//! | `image-pull` | `fail`: the image cannot be pulled |
//! | `image-id` | what the node says that it runs under the image's name |
//! | `grace` | how long a deleted pod goes on (`300ms`) |
//! | `run` | of a Job's pod: how long it runs (`500ms`), or `forever` |
//! | `exit` | of a Job's pod: its exit code (`0`) |
//! | `answers` | JSON, path to answer: `ok`, `status:503`, `hang`, `reset`, `slow:800ms`, `flap:0.05`, `cold:8s`, `limit:30` (429 beyond so many a minute), `body:TEXT` |

use std::collections::BTreeMap;
use std::time::Duration;

const PREFIX: &str = "sim.leadsman.io/";

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Answer {
    Ok,
    Status(u16),
    Hang,
    Reset,
    Slow(Duration),
    /// That share of the requests is answered 503.
    Flap(f64),
    /// 503 until so long after the pod became Ready.
    Cold(Duration),
    /// 429 for each request beyond so many in a minute, of all paths that say so together.
    Limit(usize),
    Body(String),
}

impl Answer {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (word, rest) = text.split_once(':').unwrap_or((text, ""));
        Some(match word {
            "ok" => Self::Ok,
            "hang" => Self::Hang,
            "reset" => Self::Reset,
            "status" => Self::Status(rest.parse().ok()?),
            "slow" => Self::Slow(humantime::parse_duration(rest).ok()?),
            "cold" => Self::Cold(humantime::parse_duration(rest).ok()?),
            "flap" => Self::Flap(rest.parse().ok()?),
            "limit" => Self::Limit(rest.parse().ok()?),
            "body" => Self::Body(rest.to_owned()),
            _ => return None,
        })
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Behaviour {
    pub(crate) start: Duration,
    pub(crate) crash_after: Option<Duration>,
    pub(crate) oom_after: Option<Duration>,
    pub(crate) image_fails: bool,
    pub(crate) image_id: Option<String>,
    pub(crate) grace: Duration,
    pub(crate) run: Option<Duration>,
    pub(crate) exit: i32,
    pub(crate) answers: BTreeMap<String, Answer>,
}

impl Behaviour {
    pub(crate) fn of(annotations: &BTreeMap<String, String>) -> Self {
        let text = |key: &str| {
            annotations
                .get(&format!("{PREFIX}{key}"))
                .map(String::as_str)
        };
        let span = |key: &str| text(key).and_then(|text| humantime::parse_duration(text).ok());
        let answers: BTreeMap<String, String> = text("answers")
            .map(|json| {
                serde_json::from_str(json).unwrap_or_else(|error| panic!("answers {json}: {error}"))
            })
            .unwrap_or_default();
        let answers = answers.into_iter().map(|(path, answer)| {
            let parsed =
                Answer::parse(&answer).unwrap_or_else(|| panic!("{answer:?} is no answer"));
            (path, parsed)
        });
        Self {
            start: span("start").unwrap_or(Duration::from_millis(300)),
            crash_after: span("crash-after"),
            oom_after: span("oom-after"),
            image_fails: text("image-pull") == Some("fail"),
            image_id: text("image-id").map(str::to_owned),
            grace: span("grace").unwrap_or(Duration::from_millis(300)),
            run: match text("run") {
                Some("forever") => None,
                _ => Some(span("run").unwrap_or(Duration::from_millis(500))),
            },
            exit: text("exit").and_then(|text| text.parse().ok()).unwrap_or(0),
            answers: answers.collect(),
        }
    }
}
