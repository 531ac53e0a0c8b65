//! Orders of people: checked before anything changes, and answered to their senders.
//!
//! Invariants:
//! - an order that cannot be carried out changes nothing: the current analysis goes on, nothing is written to the
//!   release or the ledger, and nobody is paged;
//! - a rollback is not ordered twice: an order that is sent again, or for the same revision, joins the one that runs;
//! - an order is stored before it is answered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::ReleaseController;
use crate::core::rollout::{OrderKey, OrderRecord, RolloutInput, RolloutOutcome, RolloutPhase};
use crate::core::units::Revision;
use crate::http::{AcceptedOrder, DeclinedOrder, RollbackOrder};
use crate::release::{self, ReleaseState, RollbackError, RollbackPlan, by_hand};

type OrderReply = oneshot::Sender<Result<AcceptedOrder, DeclinedOrder>>;

/// Maximum duration of the check of an order.
const LOOK: Duration = Duration::from_secs(60);

/// Callers that may wait for the same check.
const MAX_CALLERS: usize = 16;

/// How long a key still stands for an order that has ended; using it later is an error.
const KEY_HOLDS: Duration = Duration::from_secs(3600);

/// The order that is being checked; one at a time.
#[derive(Default)]
pub(super) struct OrderCheck {
    looked_at: Option<CheckedOrder>,
    pub(super) looks: JoinSet<Result<Revision, PlanError>>,
}

/// Why there is no plan for an order.
#[derive(Debug)]
pub(super) enum PlanError {
    /// The order is wrong or ambiguous.
    Order(by_hand::OrderRefused),
    /// The rollback cannot be done.
    Rollback(RollbackError),
}

impl From<RollbackError> for PlanError {
    fn from(rollback_error: RollbackError) -> Self {
        Self::Rollback(rollback_error)
    }
}

impl From<by_hand::OrderRefused> for PlanError {
    fn from(refused: by_hand::OrderRefused) -> Self {
        Self::Order(refused)
    }
}

struct CheckedOrder {
    bad: Revision,
    target: Option<Revision>,
    reason: String,
    order: OrderRecord,
    callers: Vec<OrderReply>,
}

impl ReleaseController {
    /// Takes an order.
    pub(super) async fn on_order(&mut self, order: RollbackOrder) {
        let RollbackOrder {
            target,
            reason,
            key,
            answer,
        } = order;
        let target = target.map(Revision);
        let keys: Vec<OrderKey> = key
            .map(|key| OrderKey { key, target })
            .into_iter()
            .collect();
        if let Some(known) = keys.first().and_then(|sent| self.sent_before(sent)) {
            let _ = answer.send(known);
            return;
        }
        match self.state.rollout.phase() {
            RolloutPhase::NotInstalled => {
                let why = format!("{} is not installed at the moment", self.shown_name());
                let _ = answer.send(Err(DeclinedOrder::Unknown(why)));
            }
            RolloutPhase::Preflight(_)
            | RolloutPhase::RollingBack(_)
            | RolloutPhase::Verifying(_) => {
                let joined = self.join_order(target, &reason, keys).await;
                // Who asked may have gone away; the order is carried out all the same.
                let _ = answer.send(joined);
            }
            RolloutPhase::Idle | RolloutPhase::RollingOut(_) | RolloutPhase::Analyzing(_) => {
                self.look_at(target, reason, keys, answer);
            }
        }
    }

    /// The answer to an earlier order with the same key, if there was one.
    fn sent_before(&self, sent: &OrderKey) -> Option<Result<AcceptedOrder, DeclinedOrder>> {
        let looked_at = self.order_look.looked_at.as_ref();
        if let Some(first) = looked_at.and_then(|other| other.order.with(&sent.key)) {
            return is_another(first, sent).map(Err);
        }
        let (candidate, finished) = self.state.rollout.order_with(&sent.key)?;
        let order = candidate.order.as_ref()?;
        if let Some(declined) = is_another(order.with(&sent.key)?, sent) {
            return Some(Err(declined));
        }
        Some(match finished {
            Some(finished) if self.now().since(finished.at) > KEY_HOLDS => {
                Err(DeclinedOrder::Conflict(format!(
                    "this Idempotency-Key is that of an order that has ended long ago: {}; give each order a key of its own",
                    finished.text
                )))
            }
            Some(finished) if finished.outcome == RolloutOutcome::OrderRefused => {
                Err(DeclinedOrder::Conflict(finished.text.clone()))
            }
            Some(_) | None => Ok(AcceptedOrder {
                id: order.id.to_string(),
                revision: candidate.revision.0,
                target: candidate.target.map(|target| target.0),
                joined: false,
            }),
        })
    }

    /// Joins the order to the running rollback if both want the same.
    async fn join_order(
        &mut self,
        target: Option<Revision>,
        reason: &str,
        keys: Vec<OrderKey>,
    ) -> Result<AcceptedOrder, DeclinedOrder> {
        let Some(candidate) = self.state.rollout.phase().candidate() else {
            return Err(DeclinedOrder::NotNow("the rollback has just ended".into()));
        };
        let (bad, under_way) = (candidate.revision, candidate.target);
        if let Some((newer, _)) = candidate.overtaken_by {
            return Err(DeclinedOrder::NotNow(format!(
                "a rollback of revision {bad} is under way, and revision {newer} has taken its place; try again"
            )));
        }
        match (target, under_way) {
            (Some(_), None) => {
                return Err(DeclinedOrder::NotNow(format!(
                    "a rollback of revision {bad} has just begun, and its target is being chosen; try again"
                )));
            }
            (Some(wanted), Some(target)) if wanted != target => {
                return Err(DeclinedOrder::Conflict(format!(
                    "a rollback of revision {bad} to revision {target} is under way, and this order is to revision \
                     {wanted}: wait for its end, and order again if that is still wanted"
                )));
            }
            (None, _) | (Some(_), Some(_)) => {}
        }
        let id = new_id(bad);
        let Some(id) = self.state.rollout.join(OrderRecord { id, keys }) else {
            return Err(DeclinedOrder::NotNow("the rollback has just ended".into()));
        };
        let text = format!("A person ordered the same rollback of revision {bad}: {reason}");
        self.state.rollout.remark(self.now(), &text);
        self.keep_entries();
        self.save(true).await;
        self.publish();
        Ok(AcceptedOrder {
            id: id.into(),
            revision: bad.0,
            target: under_way.map(|target| target.0),
            joined: true,
        })
    }

    /// Starts to check an order, beside everything else.
    fn look_at(
        &mut self,
        target: Option<Revision>,
        reason: String,
        keys: Vec<OrderKey>,
        answer: OrderReply,
    ) {
        if let Some(other) = &mut self.order_look.looked_at {
            if other.target == target && other.callers.len() < MAX_CALLERS {
                other.order.join(keys);
                other.callers.push(answer);
            } else {
                let why = "another order for this release is being looked at; try again";
                let _ = answer.send(Err(DeclinedOrder::NotNow(why.into())));
            }
            return;
        }
        let Some(bad) = self.state.rollout.newest() else {
            let why = "no revision of the release is known yet; try again";
            let _ = answer.send(Err(DeclinedOrder::NotNow(why.into())));
            return;
        };
        if let Err(declined) = self.check_order(bad, target) {
            let _ = answer.send(Err(declined));
            return;
        }
        let (undone, name) = (self.undone(), self.shown_name());
        let planned = self.ordered((bad, target, reason.clone()), move |release_state| {
            Ok::<_, PlanError>(by_hand::check(release_state, bad, target, &undone, &name)?)
        });
        let engine = Arc::clone(&self.setup.engine);
        self.order_look.looks.spawn(async move {
            let look = async {
                let plan = planned.await?;
                let target = plan.target;
                let plan = RollbackPlan {
                    is_dry_run: true,
                    ..plan
                };
                engine.preflight(plan).await?;
                Ok(target)
            };
            let looked = tokio::time::timeout(LOOK, look).await;
            looked.unwrap_or_else(|_| {
                let why = format!("no answer within {} s", LOOK.as_secs());
                Err(RollbackError::Storage(why).into())
            })
        });
        self.order_look.looked_at = Some(CheckedOrder {
            bad,
            target,
            reason,
            order: OrderRecord {
                id: new_id(bad),
                keys,
            },
            callers: vec![answer],
        });
    }

    /// The plan of an order: to the named revision, or to the last good one. `checked` returns what is wrong with the
    /// order once the revisions in question are read.
    pub(super) fn ordered<E>(
        &self,
        (bad, target, reason): (Revision, Option<Revision>, String),
        checked: impl FnOnce(&ReleaseState) -> Result<(), E> + Send + 'static,
    ) -> release::EngineFuture<Result<RollbackPlan, E>>
    where
        E: From<RollbackError> + Send + 'static,
    {
        let engine = Arc::clone(&self.setup.engine);
        let release_state = Arc::clone(&self.release_state.borrow().release_state);
        let ledger = self.state.ledger.clone();
        let fence = self.state.fence;
        Box::pin(async move {
            let release_state = match target {
                Some(_) => release_state,
                None => {
                    Arc::new(release::read_back(Arc::clone(&engine), bad, &release_state).await?)
                }
            };
            checked(&release_state)?;
            let plan = release::plan_by_hand(engine, bad, target, &release_state, &ledger, &reason)
                .await?;
            Ok(RollbackPlan { fence, ..plan })
        })
    }

    /// The revisions that were rolled back, by the revision that the rollback made.
    fn undone(&self) -> BTreeMap<Revision, Revision> {
        let finished = self.state.rollout.finished().iter();
        finished
            .filter_map(|finished| {
                Some((
                    finished.candidate.created_revision?,
                    finished.candidate.revision,
                ))
            })
            .collect()
    }

    /// The first error of an order that shows without the cluster.
    fn check_order(&self, bad: Revision, target: Option<Revision>) -> Result<(), DeclinedOrder> {
        let observed = self.release_state.borrow().clone();
        if let Some(why) = observed.trouble {
            return Err(DeclinedOrder::NotNow(format!(
                "nothing new is known of {}, so nothing is rolled back: {why}; try again",
                self.shown_name()
            )));
        }
        let (undone, name) = (self.undone(), self.shown_name());
        by_hand::check(&observed.release_state, bad, target, &undone, &name).map_err(declined)
    }

    /// The check has ended: carries the order out, or answers why not.
    pub(super) async fn on_order_looked(&mut self, looked: Result<Revision, PlanError>) {
        let Some(order) = self.order_look.looked_at.take() else {
            return;
        };
        match self.state.rollout.phase() {
            RolloutPhase::Idle | RolloutPhase::RollingOut(_) | RolloutPhase::Analyzing(_) => {}
            RolloutPhase::Preflight(_)
            | RolloutPhase::RollingBack(_)
            | RolloutPhase::Verifying(_) => {
                // A verdict has fallen meanwhile.
                let (reason, keys) = (order.reason.as_str(), order.order.keys);
                let joined = self.join_order(order.target, reason, keys).await;
                return answer_all(order.callers, &joined);
            }
            RolloutPhase::NotInstalled => {
                let why = format!("{} was uninstalled meanwhile", self.shown_name());
                return answer_all(order.callers, &Err(DeclinedOrder::Unknown(why)));
            }
        }
        let newest = self.state.rollout.newest().unwrap_or_default();
        if newest != order.bad {
            let why = format!(
                "revision {newest} took the place of revision {} while the order was looked at",
                order.bad
            );
            return answer_all(order.callers, &Err(DeclinedOrder::Conflict(why)));
        }
        let target = match looked {
            Ok(target) => target,
            Err(PlanError::Order(refused)) => {
                return answer_all(order.callers, &Err(declined(refused)));
            }
            Err(PlanError::Rollback(rollback_error)) => {
                return self.decline(order, &rollback_error).await;
            }
        };
        // What rejected an earlier revision is nothing to compare this one with.
        self.state.rejected = None;
        let accepted = AcceptedOrder {
            id: order.order.id.to_string(),
            revision: newest.0,
            target: Some(target.0),
            joined: false,
        };
        self.happens(RolloutInput::Ordered {
            target: Some(target),
            reason: order.reason,
            order: order.order,
        })
        .await;
        answer_all(order.callers, &Ok(accepted));
    }

    /// Answers that something prevents the order. Only what people can change is logged for the release.
    async fn decline(&mut self, order: CheckedOrder, rollback_error: &RollbackError) {
        let release_state = Arc::clone(&self.release_state.borrow().release_state);
        let told = self.telling()(rollback_error);
        let declined = match rollback_error {
            RollbackError::TargetGone { target } => DeclinedOrder::Unknown(format!(
                "revision {target} of {} cannot be read; {}",
                self.shown_name(),
                by_hand::choice(&release_state, order.bad)
            )),
            RollbackError::Storage(_) => DeclinedOrder::NotNow(format!(
                "whether it can be rolled back cannot be found out: {told}; try again"
            )),
            RollbackError::Overtaken { .. } => DeclinedOrder::Conflict(told),
            RollbackError::NoTarget(_)
            | RollbackError::Pending { .. }
            | RollbackError::Prevented { .. }
            | RollbackError::Failed { .. } => {
                self.happens(RolloutInput::OrderDeclined {
                    target: order.target,
                    reason: order.reason,
                    order: order.order,
                    why: told.clone(),
                })
                .await;
                DeclinedOrder::Conflict(told)
            }
        };
        answer_all(order.callers, &Err(declined));
    }

    fn shown_name(&self) -> String {
        let release = &self.setup.release;
        format!("{}/{}", release.namespace, release.name)
    }
}

fn declined(refused: by_hand::OrderRefused) -> DeclinedOrder {
    match refused {
        by_hand::OrderRefused::Unknown(why) => DeclinedOrder::Unknown(why),
        by_hand::OrderRefused::Conflict(why) => DeclinedOrder::Conflict(why),
    }
}

/// Why an order with a known key is not that order; `None` if it is.
fn is_another(first: &OrderKey, sent: &OrderKey) -> Option<DeclinedOrder> {
    let to = |key: &OrderKey| match key.target {
        Some(target) => format!("to revision {target}"),
        None => "that names no revision".to_owned(),
    };
    (first.target != sent.target).then(|| {
        DeclinedOrder::Conflict(format!(
            "this Idempotency-Key is that of an order {}, and this is an order {}; give each order a key of its own",
            to(first),
            to(sent)
        ))
    })
}

/// Answers all callers; only the first one started the order.
fn answer_all(callers: Vec<OrderReply>, answer: &Result<AcceptedOrder, DeclinedOrder>) {
    for (number, caller) in callers.into_iter().enumerate() {
        let mut answer = answer.clone();
        if let Ok(accepted) = &mut answer {
            accepted.joined |= number > 0;
        }
        // Who asked may have gone away.
        let _ = caller.send(answer);
    }
}

/// An id that is unique in the release: the revision and a random part.
fn new_id(bad: Revision) -> Box<str> {
    format!("{bad}-{:08x}", fastrand::u32(..)).into()
}
