//! What a student is asked after training, how it answers, and whether that is right.

use std::collections::HashMap;

use replica_core::record::{Line, Transcript};
use replica_core::{Seed, TrialError};
use serde::{Deserialize, Serialize};

use crate::exec::{Outcome, Pool, trace, with_call};
use crate::judge::{Verdict, judge, judge_chain};
use crate::lesson::{Target, question_again};
use crate::problems::Problem;
use crate::source::Source;
use crate::student::Student;
use crate::verify::{Faithfulness, RandomScorer};

/// Characters of a line that a report shows.
const SHOWN_OF_A_LINE: usize = 120;

/// A test set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exam {
    /// Part of metrics' names.
    pub id: String,
    /// For people.
    pub label: String,
    /// Where its problems come from.
    pub source: Source,
    /// How many.
    pub count: usize,
}

/// How a student answers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Decoding {
    /// Beams; 1 is greedy search.
    pub beams: usize,
    /// Step-wise verification of the beams.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verification: Option<LineScores>,
    /// How often a program that does not run is followed by another one.
    #[serde(skip_serializing_if = "is_zero")]
    pub rounds: usize,
    /// By which.
    pub retry: Retry,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

impl Default for Decoding {
    fn default() -> Self {
        Self { beams: 1, verification: None, rounds: 0, retry: Retry::default() }
    }
}

/// What follows a program that does not run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Retry {
    /// What the student makes of question, program and the interpreter's message.
    #[default]
    Message,
    /// What it makes of question and program: nothing is said about the error.
    Silent,
    /// The next candidate of beam search: a control that learns nothing of the error.
    Candidate,
}

/// How lines are scored in step-wise verification.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LineScores {
    /// Weight of a score's logarithm; 1 in the authors' code.
    pub weight: f64,
    /// What scores.
    pub scorer: LineScorer,
}

/// What scores a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LineScorer {
    /// Faithfulness by the student's own frozen encoder; the authors' sentence encoder is not embedded.
    Encoder,
    /// Numbers that know nothing of the question: a control.
    Random,
}

impl Decoding {
    /// What makes no sense, as "key = value: what is allowed".
    pub fn problem(&self) -> Option<String> {
        if self.beams == 0 {
            return Some("beams = 0: at least 1 is expected".to_owned());
        }
        if self.verification.is_some() && self.beams < 2 {
            return Some(format!("beams = {}: verification needs at least 2", self.beams));
        }
        if let Some(scores) = self.verification.filter(|s| !(s.weight.is_finite() && s.weight >= 0.0)) {
            return Some(format!("weight = {}: a finite number, 0 or more, is expected", scores.weight));
        }
        (self.retry == Retry::Candidate && self.rounds >= self.beams).then(|| {
            format!(
                "rounds = {}: below beams = {} is expected, one candidate a round",
                self.rounds, self.beams
            )
        })
    }

    /// The candidates for every source, best first.
    fn write(&self, student: &Student, sources: &[Vec<String>]) -> Result<Vec<Vec<String>>, TrialError> {
        let Some(LineScores { weight, scorer }) = self.verification.filter(|scores| scores.weight > 0.0)
        else {
            return student.write(sources, self.beams);
        };
        match scorer {
            LineScorer::Random => {
                student.write_verified(sources, self.beams, weight, &mut RandomScorer(Seed(0)))
            }
            LineScorer::Encoder => {
                let mut known: HashMap<String, Vec<f64>> = HashMap::new();
                let mut failed = None;
                let embed = |text: &str| {
                    if let Some(embedding) = known.get(text) {
                        return embedding.clone();
                    }
                    let embedding = student.embedding(text).unwrap_or_else(|error| {
                        failed.get_or_insert(error);
                        Vec::new()
                    });
                    known.insert(text.to_owned(), embedding.clone());
                    embedding
                };
                let written =
                    student.write_verified(sources, self.beams, weight, &mut Faithfulness::new(embed));
                match failed {
                    Some(error) => Err(TrialError::failed(error)),
                    None => written,
                }
            }
        }
    }
}

/// An answered problem.
struct Answered {
    text: String,
    /// What the program did, for a target that is one.
    outcome: Option<Outcome>,
    /// Verdict before anything was tried again.
    first: Verdict,
    verdict: Verdict,
}

impl Answered {
    fn runs(&self) -> bool {
        matches!(self.outcome, Some(Outcome::Finished { .. }) | None)
    }
}

/// What an exam gave.
pub struct Graded {
    /// Metrics by name, in percent of problems: `accuracy_ID` by the authors' rule, `strict_ID`; for programs
    /// `executed_ID`, and where programs are tried again `first_ID` and `first_executed_ID` before that.
    pub metrics: Vec<(String, f64)>,
    /// The first few problems with what was written.
    pub transcripts: Vec<Transcript>,
}

/// Asks a student all problems of an exam.
///
/// # Errors
/// A device failed, or a worker cannot be started.
pub fn examine(
    student: &Student,
    exam: &Exam,
    problems: &[Problem],
    (target, decoding): (Target, &Decoding),
    pool: &Pool,
    shown: usize,
) -> Result<Graded, TrialError> {
    let sources: Vec<Vec<String>> = problems.iter().map(|p| vec![p.question.clone()]).collect();
    let candidates = decoding.write(student, &sources)?;
    let texts: Vec<String> = candidates.iter().map(|c| c.first().cloned().unwrap_or_default()).collect();
    let mut answered: Vec<Answered> = if target == Target::Program {
        let outcomes = run(pool, &texts)?;
        let one = |((text, outcome), problem): ((String, Outcome), &Problem)| {
            let verdict = judge(&outcome, &problem.answer);
            Answered { text, outcome: Some(outcome), first: verdict, verdict }
        };
        texts.into_iter().zip(outcomes).zip(problems).map(one).collect()
    } else {
        let one = |(text, problem): (String, &Problem)| {
            let verdict = judge_chain(&text, &problem.answer);
            Answered { text, outcome: None, first: verdict, verdict }
        };
        texts.into_iter().zip(problems).map(one).collect()
    };
    let executed = percent(&answered, Answered::runs);
    for round in 1..=decoding.rounds {
        let failed: Vec<usize> = (0..answered.len()).filter(|i| !answered[*i].runs()).collect();
        if failed.is_empty() {
            break;
        }
        let again: Vec<String> = match decoding.retry {
            Retry::Candidate => {
                failed.iter().map(|i| candidates[*i].get(round).cloned().unwrap_or_default()).collect()
            }
            Retry::Message | Retry::Silent => {
                let source = |i: &usize| {
                    let Answered { text, outcome, .. } = &answered[*i];
                    let message = outcome.as_ref().and_then(Outcome::last_line);
                    let message = message.filter(|_| decoding.retry == Retry::Message);
                    question_again(&problems[*i].question, text, message.as_deref())
                };
                let sources: Vec<Vec<String>> = failed.iter().map(source).collect();
                let written = student.write(&sources, 1)?;
                written.into_iter().map(|mut c| c.drain(..).next().unwrap_or_default()).collect()
            }
        };
        let outcomes = run(pool, &again)?;
        for ((i, text), outcome) in failed.into_iter().zip(again).zip(outcomes) {
            let verdict = judge(&outcome, &problems[i].answer);
            answered[i] = Answered { text, outcome: Some(outcome), verdict, first: answered[i].first };
        }
    }
    let id = &exam.id;
    let mut metrics = vec![
        (format!("accuracy_{id}"), percent(&answered, |a| a.verdict.paper)),
        (format!("strict_{id}"), percent(&answered, |a| a.verdict.strict)),
    ];
    if target == Target::Program {
        metrics.push((format!("executed_{id}"), percent(&answered, Answered::runs)));
    }
    if decoding.rounds > 0 {
        metrics.push((format!("first_{id}"), percent(&answered, |a| a.first.paper)));
        metrics.push((format!("first_executed_{id}"), executed));
    }
    let transcripts = transcripts(&answered[..shown.min(answered.len())], problems, pool)?;
    Ok(Graded { metrics, transcripts })
}

fn run(pool: &Pool, programs: &[String]) -> Result<Vec<Outcome>, TrialError> {
    let called: Vec<String> = programs.iter().map(|program| with_call(program)).collect();
    pool.run(&called).map_err(TrialError::failed)
}

fn percent(answered: &[Answered], holds: impl Fn(&Answered) -> bool) -> f64 {
    100.0 * answered.iter().filter(|a| holds(a)).count() as f64 / answered.len() as f64
}

fn transcripts(
    answered: &[Answered],
    problems: &[Problem],
    pool: &Pool,
) -> Result<Vec<Transcript>, TrialError> {
    let programs: Vec<&str> =
        answered.iter().filter(|a| a.outcome.is_some()).map(|a| a.text.as_str()).collect();
    let mut traces = trace(pool, &programs).map_err(TrialError::failed)?.into_iter();
    let cut = |text: String| match text.char_indices().nth(SHOWN_OF_A_LINE) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    };
    let transcript = |(a, problem): (&Answered, &Problem)| {
        let lines: Vec<Line> = match a.outcome.is_some().then(|| traces.next()).flatten() {
            Some(steps) => steps.into_iter().map(|s| Line { text: s.text, note: s.value }).collect(),
            None => a.text.lines().map(|text| Line { text: text.to_owned(), note: None }).collect(),
        };
        Transcript {
            input: problem.question.clone(),
            expected: problem.answer.to_string(),
            output: lines
                .into_iter()
                .filter(|line| !line.text.trim().is_empty())
                .map(|line| Line { text: cut(line.text), note: line.note.map(cut) })
                .collect(),
            right: a.verdict.strict,
        }
    };
    Ok(answered.iter().zip(problems).map(transcript).collect())
}
