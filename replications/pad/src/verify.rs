//! Step-by-step verification (paper, section on step-wise verification; paper card, 2.4 and 10): beam search in which every
//! finished line of a program is scored against the question, and the score's logarithm is added to the beam's.
//!
//! As in the authors' code a score re-ranks the beams there are; no candidate is sampled again, nothing is executed, and
//! finished hypotheses get no further scores.

use rand::Rng;
use replica_core::Seed;
use replica_train::generate::{Continuation, Guide};

/// The line that programs start with; the first one is no step.
const HEADER: &str = "def solution():";

/// Says how faithful a step is to its context.
pub trait Scorer {
    /// A number in `[0, 1]` for one line of a program; `context` are the sentences of the question.
    fn score(&mut self, step: &str, context: &[String]) -> f64;
}

/// ROSCOE's faithfulness (Golovneva et al. 2023): the largest similarity of the step and a sentence, where similarity is
/// `(1 + cos) / 2` of their embeddings.
pub struct Faithfulness<E> {
    embed: E,
}

impl<E: FnMut(&str) -> Vec<f64>> Faithfulness<E> {
    /// With embeddings of sentences; the authors take a frozen sentence encoder's.
    pub fn new(embed: E) -> Self {
        Self { embed }
    }
}

impl<E: FnMut(&str) -> Vec<f64>> Scorer for Faithfulness<E> {
    fn score(&mut self, step: &str, context: &[String]) -> f64 {
        let step = (self.embed)(step);
        let sentences = context.iter().map(|sentence| similarity(&step, &(self.embed)(sentence)));
        sentences.fold(0.0, f64::max)
    }
}

/// `(1 + cos(a, b)) / 2`; 0.5 where one has no direction.
pub fn similarity(a: &[f64], b: &[f64]) -> f64 {
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    if norms > 0.0 { (0.5 + 0.5 * dot(a, b) / norms).clamp(0.0, 1.0) } else { 0.5 }
}

/// A control: scores that depend on seed and step but not on the question.
pub struct RandomScorer(pub Seed);

impl Scorer for RandomScorer {
    fn score(&mut self, step: &str, _: &[String]) -> f64 {
        let uniform = self.0.named_stream("random scorer", step).next_u64() >> 11;
        (uniform + 1) as f64 / (1u64 << 53) as f64
    }
}

/// One scoring of a line of every beam.
#[derive(Clone, Debug, PartialEq)]
pub struct Scoring {
    /// Tokens of the decoder, the prompt included.
    pub token_length: usize,
    /// Which line, from 0.
    pub line: usize,
    /// The lines and their scores, of beams in the order of problems.
    pub steps: Vec<(String, f64)>,
    /// The beams' sums of log-probabilities and scores before this one.
    pub sums: Vec<f64>,
}

/// The guide of a beam search that verifies steps. Lines are scored when *every* beam of *every* problem has one more of
/// them than were scored, so what is decoded beside a problem matters: decode one problem at a time for a definition
/// that does not depend on others.
pub struct StepVerifier<'a, S> {
    scorer: &'a mut S,
    /// The sentences of every problem's question.
    contexts: &'a [Vec<String>],
    /// Text of a sequence of tokens, special ones left out.
    decode: &'a dyn Fn(&[u32]) -> String,
    options: Verification,
    /// The decoder's tokens before the generated ones.
    prompt: Vec<u32>,
    /// The first beam of the batch, which stands for the beams of finished problems.
    first: Vec<u32>,
    /// Lines scored so far.
    scored: usize,
    trace: Vec<Scoring>,
}

/// How steps are verified.
#[derive(Clone, Debug, PartialEq)]
pub struct Verification {
    /// Weight of a score's logarithm; 1 in the authors' code, 0 is plain beam search.
    pub weight: f64,
    /// Tokens of the decoder, the prompt included, below which nothing is scored; 10 in the authors' code.
    pub min_length: usize,
    /// Tokens that are never generated.
    pub suppressed: Vec<u32>,
}

impl Default for Verification {
    fn default() -> Self {
        Self { weight: 1.0, min_length: 10, suppressed: Vec::new() }
    }
}

impl<'a, S: Scorer> StepVerifier<'a, S> {
    /// For problems whose questions have these sentences and whose decoder starts from `prompt`.
    pub fn new(
        scorer: &'a mut S,
        contexts: &'a [Vec<String>],
        decode: &'a dyn Fn(&[u32]) -> String,
        prompt: &[u32],
        options: Verification,
    ) -> Self {
        let (prompt, first) = (prompt.to_vec(), prompt.to_vec());
        Self { scorer, contexts, decode, options, prompt, first, scored: 0, trace: Vec::new() }
    }

    /// What was scored, in order.
    pub fn trace(&self) -> &[Scoring] {
        &self.trace
    }

    fn whole(&self, beam: &Continuation) -> Vec<u32> {
        [self.prompt.as_slice(), &beam.tokens].concat()
    }
}

impl<S: Scorer> Guide for StepVerifier<'_, S> {
    fn allow(&mut self, log_probabilities: &mut [f64]) {
        for token in &self.options.suppressed {
            if let Some(p) = log_probabilities.get_mut(*token as usize) {
                *p = f64::NEG_INFINITY;
            }
        }
    }

    fn judge(&mut self, open: &mut [&mut [Continuation]]) {
        // the library fills the rows of a finished problem with the batch's first row of the step before
        let filler = (self.decode)(&self.first);
        let Some(length) = open.iter().find_map(|beams| beams.first()).map(|beam| self.whole(beam).len())
        else {
            return;
        };
        if let Some(beam) = open.first().and_then(|beams| beams.first()) {
            self.first = self.whole(beam);
        }
        if length < self.options.min_length {
            return;
        }
        let line = |text: &str| complete_lines(text).into_iter().nth(self.scored);
        let texts = open.iter().map(|beams| match beams.is_empty() {
            true => vec![line(&filler)],
            false => beams.iter().map(|beam| line(&(self.decode)(&self.whole(beam)))).collect(),
        });
        let Some(steps) =
            texts.map(|lines| lines.into_iter().collect()).collect::<Option<Vec<Vec<String>>>>()
        else {
            return;
        };
        let mut scoring =
            Scoring { token_length: length, line: self.scored, steps: Vec::new(), sums: Vec::new() };
        for (problem, (beams, steps)) in open.iter_mut().zip(steps).enumerate() {
            let context = self.contexts.get(problem).map_or(&[] as &[String], Vec::as_slice);
            for (beam, step) in beams.iter_mut().zip(steps) {
                let score = self.scorer.score(&step, context);
                scoring.sums.push(beam.log_probability + beam.guidance);
                // 0 * -inf would be nan
                if self.options.weight != 0.0 {
                    beam.guidance += self.options.weight * score.ln();
                }
                scoring.steps.push((step, score));
            }
        }
        self.scored += 1;
        self.trace.push(scoring);
    }
}

/// The steps of a program so far: lines that have ended, without white space around, without empty ones and without the
/// first `def solution():`.
pub fn complete_lines(text: &str) -> Vec<String> {
    let (complete, _) = text.rsplit_once('\n').unwrap_or_default();
    let mut lines: Vec<String> =
        complete.split('\n').map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect();
    if let Some(header) = lines.iter().position(|line| line == HEADER) {
        lines.remove(header);
    }
    lines
}

/// The sentences of a question, cut after ".", "?" and "!" that white space follows. The authors cut with nltk.
pub fn sentences(question: &str) -> Vec<String> {
    let mut sentences = Vec::new();
    let mut rest = question.trim();
    while !rest.is_empty() {
        let ends = |(i, c): (usize, char)| {
            let after = &rest[i + c.len_utf8()..];
            (matches!(c, '.' | '?' | '!') && after.starts_with(char::is_whitespace))
                .then_some(i + c.len_utf8())
        };
        let end = rest.char_indices().find_map(ends).unwrap_or(rest.len());
        sentences.push(rest[..end].to_owned());
        rest = rest[end..].trim_start();
    }
    sentences
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_lines_that_have_ended() {
        let text = "def solution():\n    \n    # two\n    x = 2\n\n  def solution():\n    y = 3";
        assert_eq!(complete_lines(text), ["# two", "x = 2", "def solution():"]);
        assert!(complete_lines("def solution():").is_empty());
    }

    #[test]
    fn questions_are_cut_into_sentences() {
        assert_eq!(sentences(" He has 2.5 kg. How much? "), ["He has 2.5 kg.", "How much?"]);
        assert_eq!(sentences("no end"), ["no end"]);
        assert!(sentences(" ").is_empty());
    }

    #[test]
    fn a_random_scorer_knows_its_steps() {
        let mut scorer = RandomScorer(Seed(3));
        let scores: Vec<f64> = (0..100).map(|i| scorer.score(&format!("x = {i}"), &[])).collect();
        assert!(scores.iter().all(|s| *s > 0.0 && *s <= 1.0));
        assert_eq!(scores[7], scorer.score("x = 7", &["other".to_owned()]));
        assert!(scores.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn similarity_of_nothing_is_half() {
        assert_eq!(similarity(&[0.0], &[1.0]), 0.5);
        assert_eq!(similarity(&[1.0, 0.0], &[-2.0, 0.0]), 0.0);
    }
}
