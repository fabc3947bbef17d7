//! Tasks from the Bible that is part of the binary, byte by byte: small stand-ins for `Text` and `Retrieval`.
//!
//! A passage is a stretch of some hundred bytes that begins with a verse; passages of a chapter do not overlap. Chapters
//! belong to a split as the embedded text's do, by the SHA-256 of their names, so that no chapter is on both sides.
//!
//! Three tasks, as one alone would say little:
//!
//! - [`Testament`]: from which Testament is a passage? A question of vocabulary, like the sentiment of a review: at 255
//!   bytes logistic regression is right on 83 % of the held-out passages by counts of bytes and on 93 % by words (at 1,023
//!   bytes 90 and 98 %, so keep passages short).
//! - [`WordOrder`]: are the words in order, or shuffled? Both classes have the same bytes and words in the mean, so that
//!   whoever ignores order is right half of the time, however much it knows of words. Order within a few words is enough:
//!   naive Bayes on pairs of neighbouring words is right on all held-out passages.
//! - [`SameChapter`]: are two passages from one chapter? They share no verse; what they share is subject, names and style.
//!   The share of words in common is right on 69 % of the held-out pairs.

use rand::Rng;
use replica_core::Seed;
use serde::{Deserialize, Serialize};

use super::sequences::{SequenceTask, Sequences};
use super::{below, bytes, longest, shuffled};
use crate::text::DataFile;
use crate::{Error, Sources, Split, TextDataset};

const SOURCE: &str = "webster-kjv";
/// The New Testament's books, without the numbers of epistles.
const NEW_TESTAMENT: [&str; 20] = [
    "Matthew",
    "Mark",
    "Luke",
    "John",
    "Acts",
    "Romans",
    "Corinthians",
    "Galatians",
    "Ephesians",
    "Philippians",
    "Colossians",
    "Thessalonians",
    "Timothy",
    "Titus",
    "Philemon",
    "Hebrews",
    "James",
    "Peter",
    "Jude",
    "Revelation",
];

/// From which Testament is a passage? Class 1 is the New one. Of the Old Testament, which is longer, as many passages
/// are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Testament {
    /// Decides which passages are taken, and the order.
    pub seed: u64,
    /// Bytes of a passage. 255 is our choice.
    pub passage: usize,
}

/// Are the words of a passage in order (class 1) or shuffled (class 0)? A coin decides for each passage, which is in one
/// class only. Letters are lower case and there are no other signs, as those would tell at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WordOrder {
    /// Decides classes and order.
    pub seed: u64,
    /// Bytes of a passage before signs are left out. 255 is our choice.
    pub passage: usize,
}

/// Are two passages from one chapter (class 1) or from two (class 0)? A coin decides for each first passage; the second
/// one is any other of the chapter, or any of another chapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SameChapter {
    /// Decides pairs and order.
    pub seed: u64,
    /// Bytes of a passage. 255 is our choice.
    pub passage: usize,
}

/// A chapter's name, and its passages.
struct Chapter {
    name: String,
    passages: Vec<String>,
}

impl Chapter {
    fn new(name: &str, text: &str, length: usize) -> Self {
        let mut passages = Vec::new();
        let mut passage = String::new();
        for verse in text.split_inclusive('\n') {
            passage.push_str(verse);
            if passage.len() >= length {
                // the text is plain ASCII: every byte is a character
                passage.truncate(length);
                passages.push(std::mem::take(&mut passage));
            }
        }
        Self { name: name.to_owned(), passages }
    }

    fn is_new(&self) -> bool {
        NEW_TESTAMENT.iter().any(|book| self.name.split(' ').any(|word| word == *book))
    }
}

/// The chapters of a split; a dictionary's headword has no lower-case letter before a number.
fn chapters(text: &str, length: usize) -> Vec<Chapter> {
    let names_chapter = |name: &str| {
        let (book, number) = name.rsplit_once(' ').unwrap_or_default();
        book.ends_with(|c: char| c.is_ascii_lowercase()) && number.bytes().all(|b| b.is_ascii_digit())
    };
    text.split("\n\n")
        .filter_map(|unit| unit.split_once('\n'))
        .filter(|(name, _)| names_chapter(name))
        .map(|(name, verses)| Chapter::new(name, verses, length))
        .collect()
}

/// The three splits of a task, each made from the chapters of that split of the embedded text.
fn task(
    name: &'static str,
    title: &str,
    documents: usize,
    seed: u64,
    passage: usize,
    sources: &Sources,
    make: impl Fn(&[Chapter], &mut dyn Rng) -> Vec<(Vec<String>, u8)>,
) -> Result<SequenceTask, Error> {
    if !(32..=2048).contains(&passage) {
        let problem = format!("passage = {passage}; allowed are 32 to 2048 bytes");
        return Err(Error::Task { task: name, problem });
    }
    let data = TextDataset::load(SOURCE, sources)?;
    let split = |split: Split| -> Result<Sequences, Error> {
        let mut rng = Seed(seed).named_stream(name, &split.to_string());
        let items = make(&chapters(data.split(split)?, passage), &mut rng);
        let mut sequences = bytes::sequences(documents);
        for item in shuffled(&mut rng, items.len()) {
            let (texts, label) = &items[item];
            sequences.push(texts.iter().map(|text| bytes::ids(text.as_bytes(), passage + 1)), *label);
        }
        Ok(sequences)
    };
    let (train, valid, test) = (split(Split::Train)?, split(Split::Valid)?, split(Split::Test)?);
    let files: Vec<DataFile> = data.files.clone();
    Ok(SequenceTask {
        name,
        title: title.to_owned(),
        classes: 2,
        documents,
        max_len: longest([&train, &valid, &test]),
        train,
        valid,
        test,
        files,
    })
}

impl Testament {
    /// Makes the task.
    ///
    /// # Errors
    /// The passage's length is not allowed.
    pub fn load(&self, sources: &Sources) -> Result<SequenceTask, Error> {
        let title = "Old or New Testament (King James Bible, bytes)";
        task("testament", title, 1, self.seed, self.passage, sources, |chapters, rng| {
            let of = |new: bool| -> Vec<&String> {
                chapters.iter().filter(|c| c.is_new() == new).flat_map(|c| &c.passages).collect()
            };
            let (new, old) = (of(true), of(false));
            let chosen = shuffled(rng, old.len());
            let old = chosen.iter().take(new.len()).map(|&i| (vec![old[i].clone()], 0));
            new.iter().map(|text| (vec![(*text).clone()], 1)).chain(old).collect()
        })
    }
}

impl WordOrder {
    /// Makes the task.
    ///
    /// # Errors
    /// The passage's length is not allowed.
    pub fn load(&self, sources: &Sources) -> Result<SequenceTask, Error> {
        let title = "words in order or shuffled (King James Bible, bytes)";
        task("word-order", title, 1, self.seed, self.passage, sources, |chapters, rng| {
            let passages = chapters.iter().flat_map(|chapter| &chapter.passages);
            passages
                .map(|passage| {
                    let lower = passage.to_ascii_lowercase();
                    // the last word may be cut
                    let whole = lower.rsplit_once([' ', '\n']).map_or("", |(whole, _)| whole);
                    let words: Vec<&str> = whole
                        .split(|c: char| !c.is_ascii_lowercase())
                        .filter(|word| !word.is_empty())
                        .collect();
                    let ordered = below(rng, 2) == 1;
                    let words: Vec<&str> = if ordered {
                        words
                    } else {
                        shuffled(rng, words.len()).into_iter().map(|i| words[i]).collect()
                    };
                    (vec![words.join(" ")], ordered.into())
                })
                .collect()
        })
    }
}

impl SameChapter {
    /// Makes the task.
    ///
    /// # Errors
    /// The passage's length is not allowed.
    pub fn load(&self, sources: &Sources) -> Result<SequenceTask, Error> {
        let title = "two passages of one chapter or of two (King James Bible, bytes)";
        task("same-chapter", title, 2, self.seed, self.passage, sources, |chapters, rng| {
            let chapters: Vec<&Chapter> = chapters.iter().filter(|c| c.passages.len() > 1).collect();
            let mut pairs = Vec::new();
            for (at, chapter) in chapters.iter().enumerate() {
                for (place, first) in chapter.passages.iter().enumerate() {
                    let same = below(rng, 2) == 1;
                    let second = if same {
                        let other = below(rng, chapter.passages.len() as u32 - 1) as usize;
                        &chapter.passages[if other < place { other } else { other + 1 }]
                    } else {
                        let other = below(rng, chapters.len() as u32 - 1) as usize;
                        let other = &chapters[if other < at { other } else { other + 1 }].passages;
                        &other[below(rng, other.len() as u32) as usize]
                    };
                    pairs.push((vec![first.clone(), second.clone()], same.into()));
                }
            }
            pairs
        })
    }
}
