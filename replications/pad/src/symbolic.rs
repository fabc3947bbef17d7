//! Coin flips and last letters (Wei et al. 2022) in the words of Kojima et al.'s public files (paper, symbolic reasoning;
//! paper card, claim 9): generated with names of our own for training and for longer tests, and the public items.

use rand::Rng;
use replica_core::Seed;
use serde::Deserialize;
use thiserror::Error;

use crate::judge::Answer;
use crate::problems::Problem;

const BEGINNINGS: [&str; 20] = [
    "Bro", "Cle", "Dro", "Fli", "Gru", "Kla", "Ple", "Sto", "Tro", "Vlo", "Bre", "Clo", "Dra", "Fro", "Gli",
    "Kro", "Plu", "Stu", "Tra", "Vri",
];

const MIDDLES: [&str; 10] = ["b", "d", "g", "l", "m", "n", "r", "s", "t", "v"];

/// An ending for every letter.
const ENDINGS: [&str; 26] = [
    "a", "ob", "ec", "ad", "e", "if", "og", "ah", "i", "uj", "ok", "el", "um", "on", "o", "up", "iq", "ar",
    "es", "ot", "u", "av", "ow", "ex", "y", "oz",
];

/// One of the two tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Does a coin show heads after some people flipped it?
    CoinFlip,
    /// The last letters of some words, put together.
    LastLetters,
}

/// A file that is not one of the public ones.
#[derive(Debug, Error)]
pub enum SymbolicError {
    /// No JSON of examples with question and answer.
    #[error("{task}: {source}")]
    Json {
        /// The task's name.
        task: &'static str,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A question of other words.
    #[error("{task}, example {example}: `{question}` has not the words of this task's questions")]
    Words {
        /// The task's name.
        task: &'static str,
        /// Which one, from 1.
        example: usize,
        /// The question.
        question: String,
    },
}

#[derive(Deserialize)]
struct File {
    examples: Vec<Example>,
}

#[derive(Deserialize)]
struct Example {
    question: String,
    answer: String,
}

impl Task {
    /// Its name, which is that of its data set and of the origin of generated problems.
    pub fn name(self) -> &'static str {
        match self {
            Task::CoinFlip => "coin-flip",
            Task::LastLetters => "last-letters",
        }
    }

    /// `count` problems of `size` people or words each. Problem i is a function of the seed, `purpose` and i alone.
    pub fn draw(self, size: usize, count: usize, seed: Seed, purpose: &str) -> Vec<Problem> {
        let draw = |i: usize| {
            let mut rng = seed.named_stream(purpose, &i.to_string());
            let names = names(size, &mut rng);
            match self {
                Task::CoinFlip => {
                    let people = names.into_iter().map(|name| (name, rng.next_u32().is_multiple_of(2)));
                    coin_flip(self.name(), &people.collect::<Vec<_>>())
                }
                Task::LastLetters => last_letters(self.name(), &names),
            }
        };
        (0..count).map(draw).collect()
    }

    /// The public items, in order. Where the published answer is not what the question asks for, which happens with words
    /// that are two names, the item has neither program nor chain.
    ///
    /// # Errors
    /// See [`SymbolicError`].
    pub fn public(self, text: &str) -> Result<Vec<Problem>, SymbolicError> {
        let task = self.name();
        let file: File = serde_json::from_str(text).map_err(|source| SymbolicError::Json { task, source })?;
        let read = |(i, example): (usize, Example)| {
            let question = example.question;
            let words = || SymbolicError::Words { task, example: i + 1, question: question.clone() };
            let origin = format!("{task}-{i}");
            let problem = match self {
                Task::CoinFlip => people(&question).map(|people| coin_flip(&origin, &people)),
                Task::LastLetters => quoted(&question).map(|words| last_letters(&origin, &words)),
            };
            let problem = problem.filter(|problem| problem.question == question).ok_or_else(words)?;
            let answer = Answer::Text(example.answer);
            Ok(match problem.answer == answer {
                true => problem,
                false => Problem { program: String::new(), chain: String::new(), answer, ..problem },
            })
        };
        file.examples.into_iter().enumerate().map(read).collect()
    }
}

/// Every name that problems are generated with.
pub fn all_names() -> impl Iterator<Item = String> {
    let endings = |start: String| ENDINGS.map(|ending| format!("{start}{ending}"));
    let starts = BEGINNINGS.iter().flat_map(|first| MIDDLES.map(|middle| format!("{first}{middle}")));
    starts.flat_map(endings)
}

/// Different ones, as long as there are.
fn names(count: usize, rng: &mut impl Rng) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let all = BEGINNINGS.len() * MIDDLES.len() * ENDINGS.len();
    while names.len() < count {
        let mut of = |parts: &[&'static str]| parts[rng.next_u32() as usize % parts.len()];
        let name = [of(&BEGINNINGS), of(&MIDDLES), of(&ENDINGS)].concat();
        if names.len() >= all || !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

const COIN: [&str; 2] =
    ["A coin is heads up.", " Is the coin still heads up? Note that \"flip\" here means \"reverse\"."];

const LETTERS: [&str; 2] = ["Take the last letters of each words in \"", "\" and concatenate them."];

fn coin_flip(origin: &str, people: &[(String, bool)]) -> Problem {
    let mut question = COIN[0].to_owned();
    let mut chain = String::new();
    let mut heads = true;
    for (name, flips) in people {
        heads ^= flips;
        let does = if *flips { "flips" } else { "does not flip" };
        question.push_str(&format!(" {name} {does} the coin."));
        let side = if heads { "heads" } else { "tails" };
        chain.push_str(&format!("{name} {does} the coin, so it is {side} up.\n"));
    }
    question.push_str(COIN[1]);
    let answer = if heads { "yes" } else { "no" };
    chain.push_str(&format!("#### {answer}"));
    let flips = people.iter().map(|(_, flips)| if *flips { "True" } else { "False" });
    let flips = flips.collect::<Vec<_>>().join(", ");
    let body = format!(
        "    flips = [{flips}]\n    result = 'yes' if flips.count(True) % 2 == 0 else 'no'\n    return result"
    );
    let program = format!("def solution():\n    \n{body}");
    Problem { origin: origin.to_owned(), question, program, chain, answer: Answer::Text(answer.to_owned()) }
}

fn last_letters(origin: &str, words: &[String]) -> Problem {
    let question = format!("{}{}{}", LETTERS[0], words.join(" "), LETTERS[1]);
    let (mut chain, mut answer) = (String::new(), String::new());
    for word in words {
        let Some(letter) = word.chars().last() else { continue };
        answer.push(letter);
        chain.push_str(&format!("The last letter of {word} is {letter}.\n"));
    }
    chain.push_str(&format!("#### {answer}"));
    let quoted =
        |word: &String| if word.contains('\'') { format!("\"{word}\"") } else { format!("'{word}'") };
    let list = words.iter().map(quoted).collect::<Vec<_>>().join(", ");
    let body = format!(
        "    words = [{list}]\n    result = ''.join([word[-1] for word in words])\n    return result"
    );
    let program = format!("def solution():\n    \n{body}");
    Problem { origin: origin.to_owned(), question, program, chain, answer: Answer::Text(answer) }
}

/// Who flips the coin and who does not.
fn people(question: &str) -> Option<Vec<(String, bool)>> {
    let sentences = question.strip_prefix(COIN[0])?.strip_suffix(COIN[1])?.strip_suffix(" the coin.")?;
    let person = |sentence: &str| {
        let sentence = sentence.trim();
        let not = sentence.strip_suffix(" does not flip").map(|name| (name.to_owned(), false));
        not.or_else(|| Some((sentence.strip_suffix(" flips")?.to_owned(), true)))
    };
    sentences.split(" the coin.").map(person).collect()
}

fn quoted(question: &str) -> Option<Vec<String>> {
    let words = question.strip_prefix(LETTERS[0])?.strip_suffix(LETTERS[1])?;
    Some(words.split_whitespace().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn problems_are_in_the_public_words() {
        let people = [("Bo Li".to_owned(), true), ("Ed".to_owned(), false), ("Flo".to_owned(), true)];
        let problem = coin_flip("c", &people);
        assert_eq!(
            problem.question,
            "A coin is heads up. Bo Li flips the coin. Ed does not flip the coin. Flo flips the coin. Is the coin \
             still heads up? Note that \"flip\" here means \"reverse\"."
        );
        assert!(problem.program.contains("flips = [True, False, True]\n"));
        assert!(problem.chain.ends_with("Flo flips the coin, so it is heads up.\n#### yes"));
        assert_eq!(super::people(&problem.question).unwrap(), people);
        let problem = last_letters("l", &["Ed".to_owned(), "Zo\u{e9}".to_owned()]);
        assert_eq!(
            problem.question,
            "Take the last letters of each words in \"Ed Zo\u{e9}\" and concatenate them."
        );
        assert_eq!(
            problem.chain,
            "The last letter of Ed is d.\nThe last letter of Zo\u{e9} is \u{e9}.\n#### d\u{e9}"
        );
    }

    #[test]
    fn problems_are_a_function_of_seed_and_number() {
        for task in [Task::CoinFlip, Task::LastLetters] {
            let draw = |seed, count| task.draw(4, count, Seed(seed), "train");
            assert_eq!(draw(1, 40)[..20], draw(1, 20));
            assert_ne!(draw(1, 20), draw(2, 20));
            assert_ne!(draw(1, 20), task.draw(4, 20, Seed(1), "test"));
            assert_eq!(draw(1, 20).iter().map(|p| &p.question).collect::<BTreeSet<_>>().len(), 20);
        }
        let yes = Task::CoinFlip.draw(5, 400, Seed(1), "train");
        let yes = yes.iter().filter(|p| p.answer == Answer::Text("yes".to_owned())).count();
        assert!((150..250).contains(&yes), "{yes}");
        let letters = |p: &Problem| matches!(&p.answer, Answer::Text(letters) if letters.len() == 9);
        assert!(Task::LastLetters.draw(9, 20, Seed(1), "train").iter().all(letters));
    }

    #[test]
    fn public_files_are_read() {
        let question = |words: &str| last_letters("", &[words.to_owned()]).question;
        let example =
            |question: &str, answer: &str| serde_json::json!({"question": question, "answer": answer});
        let file = |examples: Vec<serde_json::Value>| serde_json::json!({ "examples": examples }).to_string();
        let text = file(vec![example(&question("Ann Bob"), "nb"), example(&question("Ann Bob C"), "nC")]);
        let items = Task::LastLetters.public(&text).unwrap();
        assert!(items[0].program.contains("['Ann', 'Bob']") && items[1].program.is_empty());
        assert_eq!(items[1].answer, Answer::Text("nC".to_owned()));
        let error = Task::CoinFlip.public(&file(vec![example("Heads?", "yes")])).unwrap_err().to_string();
        assert_eq!(error, "coin-flip, example 1: `Heads?` has not the words of this task's questions");
        assert!(Task::CoinFlip.public("{}").unwrap_err().to_string().starts_with("coin-flip: missing field"));
    }
}
