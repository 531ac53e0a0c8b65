//! Classifies the API server's answer to a dry run.

use super::StepResult;
use crate::helm::manifest::ManifestObject;
use crate::release::cluster::api::ApiError;
use crate::release::cluster::checks::{self, PreflightFailure};

/// Answers that a text quotes; of further ones only the objects are named.
const MAX_ANSWERS: usize = 3;

/// Result of one dry run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum DryRunAnswer {
    /// Accepted, or impossible to tell.
    Taken,
    /// We have no right to write it.
    NoRight,
    /// A policy, a webhook or a quota denies it; with its message.
    Denied(String),
    /// The API server itself rejects it; with its message.
    Invalid(String),
    /// A webhook does not answer; in words.
    Away(String),
    /// A webhook does not support dry runs; in words.
    NoTry(String),
}

impl DryRunAnswer {
    /// Whether helm could not write it now.
    pub(super) const fn is_refusal(&self) -> bool {
        match self {
            Self::NoRight | Self::Denied(_) | Self::Invalid(_) | Self::Away(_) => true,
            Self::Taken | Self::NoTry(_) => false,
        }
    }
}

/// Classifies an error.
///
/// # Errors
///
/// When it says nothing about the object.
pub(super) fn of(trouble: ApiError) -> Result<DryRunAnswer, ApiError> {
    let ApiError::Answer { code, message, .. } = &trouble else {
        return match trouble {
            ApiError::Unreadable(_) | ApiError::NoSuchKind => Ok(DryRunAnswer::Taken),
            trouble => Err(trouble),
        };
    };
    let says = |part: &str| message.contains(part);
    let words = || printable(message);
    let is_of_webhook = says("admission webhook") || says("failed calling webhook");
    Ok(match code {
        _ if says("does not support dry run") => DryRunAnswer::NoTry(words()),
        500.. if is_of_webhook && !says("denied the request") => DryRunAnswer::Away(words()),
        _ if says("denied the request") || says("denied request") => DryRunAnswer::Denied(words()),
        401 | 429 | 500.. => return Err(trouble),
        _ if says("etcdserver") => return Err(trouble),
        // It came or went in this moment; or it needs what the same rollback makes before it, as a namespace or a role.
        404 | 405 | 409 | 415 => DryRunAnswer::Taken,
        403 if says("attempting to grant RBAC permissions") || says("\" cannot ") => {
            DryRunAnswer::NoRight
        }
        403 => DryRunAnswer::Denied(words()),
        400.. => DryRunAnswer::Invalid(words()),
        _ => DryRunAnswer::Taken,
    })
}

/// Combines all results.
pub(super) fn together<'a>(
    answers: impl Iterator<Item = (&'a ManifestObject, &'a DryRunAnswer)>,
) -> StepResult {
    let mut no_right: Vec<&ManifestObject> = Vec::new();
    let (mut denied, mut invalid) = (Vec::new(), Vec::new());
    let (mut away, mut untried) = (Vec::new(), Vec::new());
    for (object, answer) in answers {
        match answer {
            DryRunAnswer::Taken => {}
            DryRunAnswer::NoRight => no_right.push(object),
            DryRunAnswer::Denied(words) => denied.push((object, words.as_str())),
            DryRunAnswer::Invalid(words) => invalid.push((object, words.as_str())),
            DryRunAnswer::Away(words) => away.push((object, words.as_str())),
            DryRunAnswer::NoTry(words) => untried.push((object, words.as_str())),
        }
    }
    let mut failures = Vec::new();
    if !no_right.is_empty() {
        failures.push(PreflightFailure {
            reason: "rights",
            text: format!(
                "rights are missing to write {}: nobody may give away rights that they don't have; Leadsman's account needs these rights itself, or escalate on the roles and bind on those that are bound",
                checks::named(no_right.into_iter()),
            ),
        });
    }
    if !denied.is_empty() {
        failures.push(PreflightFailure {
            reason: "policy",
            text: format!(
                "the cluster's policies do not let the rollback write {}; change the policy, or go back by hand to a revision that it lets pass",
                told(&denied)
            ),
        });
    }
    if !invalid.is_empty() {
        failures.push(PreflightFailure {
            reason: "invalid",
            text: format!(
                "the API server would not take what the rollback writes: {}",
                told(&invalid)
            ),
        });
    }
    StepResult {
        failures,
        away: (!away.is_empty()).then(|| {
            format!(
                "a webhook that the API server has to ask does not answer, so that helm would stop half-way: {}",
                told(&away)
            )
        }),
        untried: (!untried.is_empty())
            .then(|| format!("what a webhook says is known when helm writes {}", told(&untried)))
            .into_iter()
            .collect(),
    }
}

/// The first objects with their messages, and the names of the others.
fn told(answers: &[(&ManifestObject, &str)]) -> String {
    let (first, others) = answers.split_at(answers.len().min(MAX_ANSWERS));
    let first = first
        .iter()
        .map(|(object, words)| format!("{} {} ({words})", object.kind, object.name));
    let mut parts: Vec<String> = first.collect();
    if !others.is_empty() {
        parts.push(checks::named(others.iter().map(|(object, _)| *object)));
    }
    parts.join(", ")
}

/// A foreign message on one line, with control characters escaped.
fn printable(text: &str) -> String {
    let mut shown = String::new();
    for char in text.chars() {
        let turns_text = matches!(char, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        match char {
            '\n' | '\t' => shown.push(' '),
            _ if char.is_control() || turns_text => shown.extend(char.escape_unicode()),
            _ => shown.push(char),
        }
    }
    shown
}

#[cfg(test)]
mod tests;
