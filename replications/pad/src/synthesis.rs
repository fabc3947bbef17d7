//! From candidates to training data (paper, data synthesis; paper card, 2.1): programs that run and print the gold answer
//! stay, and every loss is counted.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::exec::{Outcome, Pool, PoolError, with_call};
use crate::judge::{Answer, gold_number, judge};
use crate::marks;
use crate::problems::Problem;

/// What became of a list of problems whose programs may be wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Funnel {
    /// Questions, or answers of a teacher.
    pub offered: usize,
    /// Without a program.
    pub no_program: usize,
    /// Raised an exception, or need what the interpreter does not have.
    pub raised: usize,
    /// Ended by a limit.
    pub limited: usize,
    /// Printed something else than the gold answer.
    pub wrong: usize,
    /// Kept.
    pub accepted: usize,
}

/// Runs all candidates and keeps those that the strict rule accepts; the authors' rounding rule would let in more.
///
/// # Errors
/// A worker cannot be started.
pub fn filter(pool: &Pool, candidates: Vec<Problem>) -> Result<(Vec<Problem>, Funnel), PoolError> {
    let programs: Vec<String> = candidates.iter().map(|candidate| with_call(&candidate.program)).collect();
    let outcomes = pool.run(&programs)?;
    let mut funnel = Funnel { offered: candidates.len(), ..Funnel::default() };
    let mut accepted = Vec::new();
    for (candidate, outcome) in candidates.into_iter().zip(outcomes) {
        match &outcome {
            Outcome::Finished { .. } if judge(&outcome, &candidate.answer).strict => accepted.push(candidate),
            Outcome::Finished { .. } => funnel.wrong += 1,
            Outcome::Raised { .. } | Outcome::Unsupported { .. } => funnel.raised += 1,
            Outcome::Limited { .. } | Outcome::Crashed { .. } => funnel.limited += 1,
        }
    }
    funnel.accepted = accepted.len();
    Ok((accepted, funnel))
}

/// A problem of GSM8K, as its files have it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Gsm8k {
    /// The question.
    pub question: String,
    /// The solution in words with calculator marks, "#### " and the answer.
    pub answer: String,
}

/// A line that is no problem.
#[derive(Debug, Error)]
#[error("GSM8K, line {line}: {problem}")]
pub struct Gsm8kError {
    line: usize,
    problem: String,
}

impl Gsm8k {
    /// The problems of a file of JSON lines.
    ///
    /// # Errors
    /// A line is no JSON object with `question` and `answer`.
    pub fn parse(text: &str) -> Result<Vec<Self>, Gsm8kError> {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let parse = |(i, line): (usize, &str)| {
            serde_json::from_str(line).map_err(|e| Gsm8kError { line: i + 1, problem: e.to_string() })
        };
        lines.map(parse).collect()
    }

    /// As a problem with the program that its marks give, if they do; nothing without a gold answer.
    pub fn problem(&self, number: usize) -> Option<Problem> {
        Some(Problem {
            origin: format!("gsm8k-{number}"),
            question: self.question.clone(),
            program: marks::program(&self.answer).unwrap_or_default(),
            chain: self.answer.clone(),
            answer: Answer::Number(self.gold()?),
        })
    }

    /// The gold answer, if there is one.
    pub fn gold(&self) -> Option<f64> {
        marks::parts(&self.answer).1.and_then(gold_number)
    }
}

/// Programs by rule for GSM8K's problems: converted, run, filtered.
///
/// # Errors
/// A worker cannot be started.
pub fn from_marks(pool: &Pool, problems: &[Gsm8k]) -> Result<(Vec<Problem>, Funnel), PoolError> {
    let all = problems.iter().enumerate().filter_map(|(i, problem)| problem.problem(i));
    let candidates: Vec<Problem> = all.filter(|problem| !problem.program.is_empty()).collect();
    let no_program = problems.len() - candidates.len();
    let (accepted, funnel) = filter(pool, candidates)?;
    Ok((accepted, Funnel { offered: problems.len(), no_program, ..funnel }))
}
