//! News of rollouts in words, each told once: when a revision is found bad, and how it ended.

use url::Url;

use super::conditions;
use crate::notify::Message;
use crate::serve::status::{GuardView, RolloutView};

/// What ended longer ago, in seconds, is no news: it was told by whoever ran then.
const FRESH: f64 = 3600.0;

/// What is new of a release. Of a revision that has ended already only the end is told.
pub(super) fn of_release(view: &GuardView, page: Option<&Url>, now: f64) -> Vec<Message> {
    let mut news: Vec<Message> = view
        .rollouts
        .iter()
        .filter(|past| now - past.ended_at < FRESH)
        .filter_map(|past| ended(view, past, page))
        .collect();
    if let Some(case) = view.case.as_ref().filter(|case| case.is_convicted) {
        let name = name(view);
        let headline = if case.is_ordered {
            format!(
                "{name}: revision {} is being turned back by hand",
                case.revision
            )
        } else {
            format!("{name}: revision {} made things worse", case.revision)
        };
        news.push(Message {
            step: "regressed".into(),
            headline,
            text: format!("{}. {}.", case.text, view.says),
            reason: case.reason.clone(),
            since: case.since,
            at: now,
            command: format!(
                "leadsman status {} --namespace {}",
                view.release, view.namespace
            ),
            is_urgent: !case.is_ordered,
            ..blank(view, case.revision, page)
        });
    }
    news
}

fn ended(view: &GuardView, past: &RolloutView, page: Option<&Url>) -> Option<Message> {
    let (what, is_urgent) = match past.ending {
        "recovered" => ("was turned back, and all is well again", false),
        "same_failure" => (
            "was turned back, and the same still fails: it was not the release",
            true,
        ),
        "worse" => ("was turned back, and more fails than before", true),
        "failed" => ("could not be turned back", true),
        "unverified" => (
            "was turned back; whether all is well could not be found out",
            true,
        ),
        "refused" | "left_alone" => ("is bad and is left in place", true),
        "limit_reached" => (
            "is bad and is left in place: the limit of rollbacks in a day is reached",
            true,
        ),
        "would_roll_back" => (
            "is bad and would have been turned back; the mode is observe",
            true,
        ),
        "kept" => ("is kept", false),
        "inconclusive" => ("was watched, and nothing can be said of it", false),
        // Of one that was found bad people were told, and wait for the end of it.
        "superseded" if past.convicted_at.is_some() => (
            "was found bad, and another revision came before it was turned back",
            false,
        ),
        "uninstalled" if past.convicted_at.is_some() => (
            "was found bad, and was uninstalled before it was turned back",
            false,
        ),
        _ => return None,
    };
    let command = if is_urgent && past.made.is_none() {
        format!(
            "leadsman rollback {} --namespace {} --reason '…'",
            view.release, view.namespace
        )
    } else {
        format!(
            "leadsman explain {} --namespace {} --revision {}",
            view.release, view.namespace, past.revision
        )
    };
    Some(Message {
        step: past.ending.to_owned(),
        headline: format!("{}: revision {} {what}", name(view), past.revision),
        text: format!("{}.{}", past.text, steps(past)),
        reason: past.reason.clone(),
        since: past.seen_at,
        at: past.ended_at,
        command,
        is_urgent,
        ..blank(view, past.revision, page)
    })
}

/// How long each step took, where one was taken.
fn steps(past: &RolloutView) -> String {
    let taken: Vec<String> = past
        .steps
        .iter()
        .filter_map(|step| Some(format!("{} {:.1} s", step.step, step.took_s?)))
        .collect();
    if taken.is_empty() {
        return String::new();
    }
    format!(" Took: {}.", taken.join(", "))
}

fn name(view: &GuardView) -> String {
    format!("{}/{}", view.namespace, view.release)
}

fn blank(view: &GuardView, revision: u32, page: Option<&Url>) -> Message {
    let link = page.map(|page| {
        let mut link = page.clone();
        link.set_fragment(Some(&conditions::fragment(&view.namespace, &view.release)));
        link.to_string()
    });
    Message {
        namespace: view.namespace.clone(),
        release: view.release.clone(),
        revision,
        step: String::new(),
        headline: String::new(),
        text: String::new(),
        reason: String::new(),
        since: 0.0,
        at: 0.0,
        command: String::new(),
        link,
        is_urgent: false,
    }
}

/// Whether only those want to hear of it who want to hear of everything.
pub(super) fn is_quiet(message: &Message) -> bool {
    matches!(message.step.as_str(), "kept" | "inconclusive")
}
