//! Texts of the messages about rollouts. Each is sent once: when a revision is rejected, and at the end of its rollout.

use url::Url;

use super::conditions;
use crate::core::rollout::{BY_HAND, NOT_ROLLED_OUT, ROLLED_OUT_LATE};
use crate::http::status::{GuardView, RolloutView};
use crate::notify::Message;

/// Seconds after which an end is no longer sent: the process that ran then has sent it.
const FRESH: f64 = 3600.0;

/// New messages of a release. For a rollout that has ended already, only the end is sent.
pub(super) fn of_release(view: &GuardView, page: Option<&Url>, now: f64) -> Vec<Message> {
    let mut news: Vec<Message> = view
        .rollouts
        .iter()
        .filter(|finished| now - finished.ended_at < FRESH)
        .filter_map(|finished| ended(view, finished, page))
        .collect();
    if let Some(candidate) = view
        .candidate
        .as_ref()
        .filter(|candidate| candidate.is_rejected)
    {
        let name = name(view);
        let headline = if candidate.is_ordered {
            format!(
                "{name}: revision {} is being rolled back by hand",
                candidate.revision
            )
        } else {
            format!("{name}: revision {} made things worse", candidate.revision)
        };
        news.push(Message {
            step: "regressed".into(),
            headline,
            text: format!("{}. {}.", candidate.text, view.says),
            reason: candidate.reason.clone(),
            since: candidate.since,
            at: now,
            command: format!(
                "leadsman status {} --namespace {}",
                view.release, view.namespace
            ),
            is_urgent: !candidate.is_ordered,
            ..blank(view, candidate.revision, page)
        });
    }
    news
}

fn ended(view: &GuardView, finished: &RolloutView, page: Option<&Url>) -> Option<Message> {
    let (what, is_urgent) = match finished.outcome {
        "rolled_back" => ("was rolled back, and all is well again", false),
        "still_failing" => (
            "was rolled back, and the same still fails: it was not the release",
            true,
        ),
        "worsened" => ("was rolled back, and more fails than before", true),
        "rollback_failed" => ("could not be rolled back", true),
        "unverified" => (
            "was rolled back; whether all is well could not be found out",
            true,
        ),
        "refused" | "not_eligible" => ("is bad and is left in place", true),
        "limit_reached" => (
            "is bad and is left in place: the limit of rollbacks in a day is reached",
            true,
        ),
        "would_roll_back" => (
            "is bad and would have been rolled back; the mode is observe",
            true,
        ),
        "order_refused" => (
            "was not rolled back: the order of a person was refused",
            false,
        ),
        "passed" => ("is kept", false),
        "inconclusive" if finished.reason == NOT_ROLLED_OUT => (
            "was not rolled out completely, so nothing can be said of it",
            false,
        ),
        "inconclusive" if finished.reason == ROLLED_OUT_LATE => (
            "was rolled out completely after its analysis, so it is not known to be good",
            false,
        ),
        "inconclusive" => ("was watched, and nothing can be said of it", false),
        "superseded" if finished.reason == BY_HAND && finished.rejected_at.is_some() => (
            "was to be rolled back by hand, and another revision came first",
            false,
        ),
        // Of one that was found bad people were told, and wait for the end of it.
        "superseded" if finished.rejected_at.is_some() => (
            "was found bad, and another revision came before it was rolled back",
            false,
        ),
        "uninstalled" if finished.rejected_at.is_some() => (
            "was found bad, and was uninstalled before it was rolled back",
            false,
        ),
        // Also what is unchanged: there is nothing to tell.
        _ => return None,
    };
    let command = if is_urgent && finished.created_revision.is_none() {
        format!(
            "leadsman rollback {} --namespace {} --reason '…'",
            view.release, view.namespace
        )
    } else {
        format!(
            "leadsman explain {} --namespace {} --revision {}",
            view.release, view.namespace, finished.revision
        )
    };
    Some(Message {
        step: finished.outcome.to_owned(),
        headline: format!("{}: revision {} {what}", name(view), finished.revision),
        text: format!("{}.{}", finished.text, steps(finished)),
        reason: finished.reason.clone(),
        since: finished.appeared_at,
        at: finished.ended_at,
        command,
        is_urgent,
        ..blank(view, finished.revision, page)
    })
}

/// Duration of each step that ran.
fn steps(finished: &RolloutView) -> String {
    let taken: Vec<String> = finished
        .steps
        .iter()
        .filter_map(|step| {
            let took = format!("{:.1} s", step.took_s?);
            Some(match step.step {
                "detect" => format!("detect {took} (from the moment the revision appeared)"),
                "detect_from_trouble" => {
                    format!("detect {took} (from the first sign of trouble)")
                }
                name => format!("{name} {took}"),
            })
        })
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

/// Whether it is routine: only receivers that want all messages get it.
pub(super) fn is_quiet(message: &Message) -> bool {
    matches!(
        message.step.as_str(),
        "passed" | "inconclusive" | "order_refused"
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may end where it stands")]

    use super::*;
    use crate::http::status::CandidateView;

    const NOW: f64 = 1_800_000_000.0;

    /// A release whose revision was rejected.
    fn rejected() -> GuardView {
        GuardView {
            namespace: "shop".into(),
            release: "mykadoo".into(),
            phase: "preflight".into(),
            candidate: Some(CandidateView {
                revision: 7,
                text: "api failed 16 times in a row".into(),
                reason: "hard_down:api".into(),
                since: NOW - 60.0,
                is_rejected: true,
                is_ordered: false,
                order: None,
            }),
            ..GuardView::default()
        }
    }

    /// The same after its rollout has ended.
    fn ended(outcome: &'static str, rejected_at: Option<f64>) -> GuardView {
        GuardView {
            candidate: None,
            rollouts: vec![RolloutView {
                revision: 7,
                outcome,
                text: "Revision 8 has appeared".into(),
                appeared_at: NOW - 60.0,
                rejected_at,
                ended_at: NOW,
                ..RolloutView::default()
            }],
            ..rejected()
        }
    }

    #[test]
    fn who_heard_that_a_revision_is_bad_hears_how_it_ended_also_when_nobody_turned_it_back() {
        let failure = of_release(&rejected(), None, NOW);
        assert_eq!(failure.len(), 1);
        assert_eq!(
            failure[0].headline,
            "shop/mykadoo: revision 7 made things worse"
        );
        for (outcome, headline) in [
            (
                "superseded",
                "shop/mykadoo: revision 7 was found bad, and another revision came before it was rolled back",
            ),
            (
                "uninstalled",
                "shop/mykadoo: revision 7 was found bad, and was uninstalled before it was rolled back",
            ),
        ] {
            let page = Url::parse("https://leadsman.example.com/").unwrap();
            let told = of_release(&ended(outcome, Some(NOW - 30.0)), Some(&page), NOW);
            assert_eq!(told.len(), 1, "{outcome}");
            let message = &told[0];
            assert_eq!(message.headline, headline);
            assert!(!is_quiet(message), "{outcome}: everybody hears of it");
            assert!(!message.is_urgent, "{outcome}: nobody has to do anything");
            // It is another step of the same story, and so is not taken for told.
            assert_ne!(message.id(), failure[0].id());
            assert_eq!(
                message.id(),
                format!("shop/mykadoo/7@{:.0}/{outcome}", NOW - 60.0)
            );
            let slack = message.slack();
            assert_eq!(slack["text"], headline);
            let blocks = slack["blocks"].to_string();
            for part in [
                headline,
                "Revision 8 has appeared",
                "leadsman explain mykadoo --namespace shop --revision 7",
                "https://leadsman.example.com/#release/shop/mykadoo",
            ] {
                assert!(blocks.contains(part), "{part} is not in {blocks}");
            }
        }
    }

    #[test]
    fn of_one_that_was_never_found_bad_nobody_waits_for_the_end() {
        for outcome in ["superseded", "uninstalled"] {
            assert!(
                of_release(&ended(outcome, None), None, NOW).is_empty(),
                "{outcome}"
            );
        }
        // What ended long ago was told by whoever ran then.
        let view = ended("superseded", Some(NOW - 30.0));
        assert!(of_release(&view, None, NOW + FRESH).is_empty());
    }

    /// A revision can be rejected and superseded between two evaluations; then only the end is sent.
    #[test]
    fn the_next_revision_that_is_found_bad_is_a_story_of_its_own() {
        let mut view = ended("superseded", Some(NOW - 30.0));
        let mut candidate = rejected().candidate.unwrap();
        candidate.revision = 8;
        candidate.since = NOW;
        view.candidate = Some(candidate);
        let told = of_release(&view, None, NOW);
        let steps: Vec<(u32, &str)> = told
            .iter()
            .map(|message| (message.revision, message.step.as_str()))
            .collect();
        assert_eq!(steps, [(7, "superseded"), (8, "regressed")]);
    }
}
