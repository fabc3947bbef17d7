//! ListOps: nested MIN, MAX, MED (median) and SM (sum modulo 10) of digits; the value is the class.
//!
//! Nangia and Bowman, ListOps: A Diagnostic Dataset for Latent Tree Learning, NAACL SRW 2018; grammar, probabilities and
//! length filter are those of the Long Range Arena's `data/listops.py` (see [`ListOps`]). Its published split hangs on
//! the order of a Python set of strings and cannot be made again; ours hangs on a seed, and its digest is published.

use std::collections::HashSet;

use rayon::prelude::*;
use replica_core::{Digest, Seed};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::sequences::{Coding, SequenceTask, Sequences, generated};
use super::{below, longest};
use crate::Error;

/// Every token at the place of its id. The set is that of the Long Range Arena, the order ours.
pub const VOCABULARY: [&str; 18] = [
    "<pad>", "<unk>", "<eos>", "[MIN", "[MAX", "[MED", "[SM", "X", "0", "1", "2", "3", "4", "5", "6", "7",
    "8", "9",
];
const PAD: u32 = 0;
const EOS: u8 = 2;
const MIN: u8 = 3;
const MAX: u8 = 4;
const MED: u8 = 5;
const SM: u8 = 6;
const END: u8 = 7;
const ZERO: u8 = 8;

/// A sequence's longest form with its `<eos>`, as S4 cuts it.
const LONGEST: usize = 2048;
/// Trees are drawn in numbered chunks of this many, each from its own stream, so that threads do not matter.
const CHUNK: usize = 256;
/// Chunks that are drawn before looking whether there are enough trees.
const ROUND: u64 = 64;

const PUBLISHED: [(ListOps, &str); 2] = [
    (ListOps::mini(), "7c1ec4040c80834a491784ba2b0183de9c08388f87e6fc78711a992831304c2e"),
    (ListOps::full(), "827cbcc61bc626f23bc01223e47f265c7fdecd944cb7001a541ab055ba5209bd"),
];

/// What is generated.
///
/// A node at depth d (the root has 1) is an operator with probability 1/4 if d < `max_depth`, else a digit; an operator
/// has 2 to `max_args` arguments at depth d + 1; digits, operators and numbers of arguments are uniform. A tree is kept if
/// `min_length` < its tokens < `max_length`, and no equal one was kept before. The first `train` trees are the training
/// split, then come `valid` and `test`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListOps {
    /// Decides the trees.
    pub seed: u64,
    /// Depth at which only digits stand.
    pub max_depth: u32,
    /// Most arguments of an operator.
    pub max_args: u32,
    /// A tree has more tokens than this. An operator with its `X` counts 2, a digit 1, `<eos>` nothing.
    pub min_length: usize,
    /// A tree has fewer tokens than this.
    pub max_length: usize,
    /// Trees to learn from.
    pub train: usize,
    /// Trees to choose by.
    pub valid: usize,
    /// Trees to report.
    pub test: usize,
}

impl ListOps {
    /// The parameters of the Long Range Arena.
    pub const fn full() -> Self {
        Self {
            seed: 0,
            max_depth: 10,
            max_args: 10,
            min_length: 500,
            max_length: 2000,
            train: 96_000,
            valid: 2_000,
            test: 2_000,
        }
    }

    /// Trees of 20 to 100 tokens, for minutes on a CPU. Our choice.
    pub const fn mini() -> Self {
        Self {
            max_depth: 5,
            min_length: 19,
            max_length: 101,
            train: 10_000,
            valid: 1_000,
            test: 1_000,
            ..Self::full()
        }
    }

    /// The published SHA-256 of the set, if these are published parameters: of the lines `tokens<TAB>value` of training,
    /// validation and test split, each split followed by an empty line.
    pub fn published_digest(&self) -> Option<&'static str> {
        PUBLISHED.iter().find(|(parameters, _)| parameters == self).map(|(_, digest)| *digest)
    }

    /// Generates the task. The same parameters give the same trees, whatever the number of threads.
    ///
    /// # Errors
    /// Hardly any tree has a length in that range.
    pub fn generate(&self) -> Result<SequenceTask, Error> {
        let wrong = |problem: String| Error::Task { task: "listops", problem };
        if !(2..=255).contains(&self.max_args) || !(2..=64).contains(&self.max_depth) {
            return Err(wrong(format!(
                "max_args = {} and max_depth = {}; allowed are 2 to 255 and 2 to 64",
                self.max_args, self.max_depth
            )));
        }
        let wanted = self.train + self.valid + self.test;
        let mut trees: Vec<Tree> = Vec::with_capacity(wanted);
        let mut seen = HashSet::with_capacity(wanted);
        let mut chunk = 0;
        while trees.len() < wanted {
            let round: Vec<Vec<Tree>> =
                (chunk..chunk + ROUND).into_par_iter().map(|chunk| self.chunk(chunk)).collect();
            chunk += ROUND;
            for tree in round.into_iter().flatten() {
                if trees.len() < wanted && seen.insert(tree.digest) {
                    trees.push(tree);
                }
            }
            let drawn = chunk as usize * CHUNK;
            if drawn >= 1 << 20 && trees.len() < drawn / 10_000 {
                return Err(wrong(format!(
                    "of {drawn} trees only {} are new and have more than {} and fewer than {} tokens; allow more lengths",
                    trees.len(),
                    self.min_length,
                    self.max_length
                )));
            }
        }
        Ok(self.task(&trees))
    }

    /// The trees of a chunk that have the right length.
    fn chunk(&self, number: u64) -> Vec<Tree> {
        let mut rng = Seed(self.seed).named_stream("listops", &number.to_string());
        let mut kept = Vec::new();
        let mut tokens = Vec::new();
        for _ in 0..CHUNK {
            tokens.clear();
            let value = self.draw(&mut rng, 1, &mut tokens);
            if let Some(value) = value
                && (self.min_length + 1..self.max_length).contains(&tokens.len())
            {
                kept.push(Tree::new(&tokens, value));
            }
        }
        kept
    }

    /// Draws a node, appends its tokens and gives its value; none once there are too many tokens.
    fn draw(&self, rng: &mut impl rand::Rng, depth: u32, tokens: &mut Vec<u8>) -> Option<u8> {
        if depth >= self.max_depth || below(rng, 4) != 0 {
            let digit = below(rng, 10) as u8;
            tokens.push(ZERO + digit);
            return Some(digit);
        }
        let operator = MIN + below(rng, 4) as u8;
        tokens.push(operator);
        let arguments = 2 + below(rng, self.max_args - 1) as usize;
        let mut values = [0; 255];
        for value in &mut values[..arguments] {
            *value = self.draw(rng, depth + 1, tokens)?;
            if tokens.len() >= self.max_length {
                return None;
            }
        }
        tokens.push(END);
        Some(apply(operator, &mut values[..arguments]))
    }

    fn task(&self, trees: &[Tree]) -> SequenceTask {
        let (train, rest) = trees.split_at(self.train);
        let (valid, test) = rest.split_at(self.valid);
        let (sha256, bytes) = digest(&[train, valid, test]);
        let sequences = |trees: &[Tree]| {
            let mut split = Sequences::new(Coding::Tokens { vocab: VOCABULARY.len(), pad: PAD }, 1);
            for tree in trees {
                split.push([ids(&tree.tokens)], tree.value);
            }
            split
        };
        let [train, valid, test] = [train, valid, test].map(sequences);
        SequenceTask {
            name: "listops",
            title: "ListOps, generated".to_owned(),
            classes: 10,
            documents: 1,
            max_len: longest([&train, &valid, &test]),
            train,
            valid,
            test,
            files: vec![generated("listops".to_owned(), sha256, bytes, self.published_digest())],
        }
    }
}

struct Tree {
    tokens: Box<[u8]>,
    value: u8,
    /// Tells trees apart: 16 bytes of the SHA-256 of the tokens.
    digest: [u8; 16],
}

impl Tree {
    fn new(tokens: &[u8], value: u8) -> Self {
        let mut digest = [0; 16];
        digest.copy_from_slice(&Sha256::digest(tokens)[..16]);
        Self { tokens: tokens.into(), value, digest }
    }
}

/// Digest and length of the canonical text; see [`ListOps::published_digest`].
fn digest(splits: &[&[Tree]]) -> (Digest, u64) {
    let mut text = String::new();
    for split in splits {
        for tree in *split {
            text.push_str(&write(&tree.tokens));
            text.push('\t');
            text.push((b'0' + tree.value) as char);
            text.push('\n');
        }
        text.push('\n');
    }
    (Digest::of(text.as_bytes()), text.len() as u64)
}

/// The value of an operator; reorders its arguments.
fn apply(operator: u8, values: &mut [u8]) -> u8 {
    match operator {
        MIN => values.iter().copied().min().unwrap_or(0),
        MAX => values.iter().copied().max().unwrap_or(0),
        MED => {
            // NumPy's median, truncated: of an even number it is the mean of the middle two
            values.sort_unstable();
            let half = values.len() / 2;
            if values.len() % 2 == 1 { values[half] } else { (values[half - 1] + values[half]) / 2 }
        }
        _ => (values.iter().map(|&value| u32::from(value)).sum::<u32>() % 10) as u8,
    }
}

/// The tokens of an expression as any of the data sets writes it: parentheses are left out, `]` is `X`.
///
/// # Errors
/// A word is none of the grammar.
pub fn read(source: &str) -> Result<Vec<u8>, Error> {
    source
        .split_whitespace()
        .filter(|word| !matches!(*word, "(" | ")"))
        .map(|word| {
            let word = if word == "]" { "X" } else { word };
            let id = VOCABULARY.iter().position(|token| *token == word).map(|id| id as u8);
            id.filter(|&id| id >= MIN).ok_or_else(|| malformed(format!("`{word}` is no token")))
        })
        .collect()
}

/// Tokens as the Long Range Arena hands them to its tokenizer, separated by blanks.
pub fn write(tokens: &[u8]) -> String {
    let words: Vec<&str> = tokens.iter().map(|&token| VOCABULARY[usize::from(token)]).collect();
    words.join(" ")
}

/// What a model reads: at most 2,047 tokens, as S4 cuts them, and `<eos>`.
pub fn ids(tokens: &[u8]) -> impl Iterator<Item = u8> + '_ {
    tokens.iter().copied().take(LONGEST - 1).chain([EOS])
}

/// The value of an expression.
///
/// # Errors
/// It is none: an operator has no argument or no end, or something stands after the end.
pub fn value(tokens: &[u8]) -> Result<u8, Error> {
    let mut open: Vec<(u8, Vec<u8>)> = Vec::new();
    let mut result = None;
    for (place, &token) in tokens.iter().enumerate() {
        if result.is_some() {
            return Err(malformed(format!("token {place} stands after the end")));
        }
        let value = match token {
            MIN..=SM => {
                open.push((token, Vec::new()));
                continue;
            }
            END => match open.pop() {
                Some((operator, mut values)) if !values.is_empty() => apply(operator, &mut values),
                _ => return Err(malformed(format!("token {place} ends nothing"))),
            },
            digit if (ZERO..ZERO + 10).contains(&digit) => digit - ZERO,
            other => return Err(malformed(format!("token {place} has the id {other}"))),
        };
        match open.last_mut() {
            Some((_, values)) => values.push(value),
            None => result = Some(value),
        }
    }
    result.ok_or_else(|| malformed("it has no end".to_owned()))
}

fn malformed(problem: String) -> Error {
    Error::Task { task: "listops", problem: format!("not an expression: {problem}") }
}
