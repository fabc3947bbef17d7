//! Verdicts at a glance: a word, a shape and a colour, so that no one of them has to be seen.

use replica_core::Outcome;
use serde::Serialize;

use crate::golden::GoldenState;

/// A badge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Badge {
    /// CSS class and name of the shape.
    pub class: &'static str,
    /// The word.
    pub word: &'static str,
}

impl From<Outcome> for Badge {
    fn from(outcome: Outcome) -> Self {
        let class = match outcome {
            Outcome::Reproduced => "reproduced",
            Outcome::NotReproduced => "not-reproduced",
            Outcome::Inconclusive => "inconclusive",
            Outcome::NotTested => "not-tested",
        };
        Self { class, word: outcome.label() }
    }
}

impl From<GoldenState> for Badge {
    fn from(state: GoldenState) -> Self {
        let class = match state {
            GoldenState::Agrees => "reproduced",
            GoldenState::Differs => "not-reproduced",
            GoldenState::Absent => "not-tested",
        };
        Self { class, word: state.label() }
    }
}

/// The outcomes in the order of a summary.
pub(crate) const OUTCOMES: [Outcome; 4] =
    [Outcome::Reproduced, Outcome::NotReproduced, Outcome::Inconclusive, Outcome::NotTested];

/// How many verdicts have each outcome, with its badge.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Tally {
    badge: Badge,
    count: usize,
}

impl Tally {
    /// Counts outcomes; all four are listed, zeros included.
    pub fn of(outcomes: &[Outcome]) -> Vec<Self> {
        let count = |wanted| outcomes.iter().filter(|o| **o == wanted).count();
        OUTCOMES.iter().map(|o| Self { badge: (*o).into(), count: count(*o) }).collect()
    }

    /// `1 reproduced, 2 inconclusive`; outcomes that do not occur are left out.
    pub fn in_words(outcomes: &[Outcome]) -> String {
        let tally = Self::of(outcomes);
        let parts: Vec<String> =
            tally.iter().filter(|t| t.count > 0).map(|t| format!("{} {}", t.count, t.badge.word)).collect();
        match parts.as_slice() {
            [] => "no verdict".to_owned(),
            [one] => one.clone(),
            [head @ .., last] => format!("{} and {last}", head.join(", ")),
        }
    }
}
