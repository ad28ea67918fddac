//! Why a bind or a listen was refused, and what to do about it.
//!
//! Pure: no descriptors, no clock, no globals. [`facts`] go in; [`rules`] say
//! which sockets may have one port, `judge` chooses one of the catalogue's causes,
//! `words` tells it; out comes the [`Conflict`] of an event. A cause that the facts
//! do not support is never guessed: it is [`Cause::Unknown`] then.

pub mod facts;
mod judge;
pub mod page;
pub mod rules;
mod words;

use crate::event::{Cause, Conflict};
use facts::Facts;

pub(crate) use words::phrase::remove_container;

/// The cause of a refusal, with what is told of it.
///
/// The holder that the cause is about comes first, whatever order the facts had them in.
#[must_use]
pub fn diagnose(facts: &Facts) -> Conflict {
    let judgement = judge::judge(facts);
    let (summary, advice) = words::Words {
        facts,
        judgement: &judgement,
    }
    .sentences();
    let decided = |held: &facts::Held| {
        judgement
            .held
            .is_some_and(|decider| std::ptr::eq(decider, held))
    };
    let (first, others): (Vec<_>, Vec<_>) = facts.holders.iter().partition(|held| decided(held));
    let holders: Vec<_> = match judgement.cause {
        // What was found does not explain it: a wrong holder is worse than none.
        Cause::Unknown if judgement.held.is_none() => Vec::new(),
        _ => first
            .into_iter()
            .chain(others)
            .map(|held| held.holder.clone())
            .collect(),
    };
    Conflict {
        cause: judgement.cause,
        summary,
        advice,
        evidence: facts.evidence.filter(|_| !holders.is_empty()),
        holders,
        publishes: facts.publishes.clone(),
    }
}

/// What a bind that was not tried would be refused with; nothing if the rules let it pass.
///
/// The facts are those of a refusal with EADDRINUSE, or with EACCES, which is not foreseen here.
#[must_use]
pub fn foresee(facts: &Facts) -> Option<Conflict> {
    judge::is_in_the_way(facts).then(|| diagnose(facts))
}

/// Whether one of the holders could have been in the way of a bind or listen, by the rules.
#[must_use]
pub fn is_explained(facts: &Facts) -> bool {
    judge::is_in_the_way(facts)
}

#[cfg(test)]
mod tests;
