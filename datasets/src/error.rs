//! What can go wrong, in words that say what to do next.

use std::io;
use std::path::{Path, PathBuf};

use replica_core::Digest;

use crate::Split;
use crate::download::DownloadProblem;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The catalogue has nothing of this kind under this name.
    #[error("unknown {what} `{name}`; the catalogue has: {}", .known.join(", "))]
    UnknownEntry {
        /// The kind: data set, text or checkpoint.
        what: &'static str,
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
    },

    /// The data set lacks this split, or it was not loaded.
    #[error("`{dataset}` has no {split} split here, only: {}; {hint}", join(.available))]
    NoSplit {
        /// The data set.
        dataset: String,
        /// What was asked for.
        split: Split,
        /// What there is.
        available: Vec<Split>,
        /// What to do.
        hint: String,
    },

    /// A catalogue file says something it must not.
    #[error("catalogue/{file}: {problem}")]
    Catalogue {
        /// The file's name.
        file: String,
        /// Key, value and what is allowed.
        problem: String,
    },

    /// No digest is published for this file, so none can be expected before a first download.
    #[error(
        "`{file}` of `{dataset}` has no published SHA-256: fetch it once (`replica data fetch {dataset}`) and take \
         the recorded digest from the loaded files"
    )]
    NoPublishedDigest {
        /// The data set.
        dataset: String,
        /// The file.
        file: String,
    },

    /// The file is in none of the places.
    #[error("`{file}` of `{dataset}` is not here. Looked in:\n{}\n{next}", bullets(.looked))]
    Missing {
        /// The data set.
        dataset: String,
        /// The file.
        file: String,
        /// Where it was looked for.
        looked: Vec<String>,
        /// What to do.
        next: String,
    },

    /// A file was found but is not what the catalogue says; it was not used.
    #[error("{}: {refusal}\n{kept}", .path.display())]
    Refused {
        /// The data set.
        dataset: String,
        /// The file's name in the catalogue.
        file: String,
        /// Where it was found.
        path: PathBuf,
        /// What is wrong with it.
        refusal: Box<Refusal>,
        /// Where it, or a copy, is kept for inspection.
        kept: String,
    },

    /// A verified file cannot be parsed: the catalogue names the wrong format.
    #[error("`{file}` of `{dataset}` passed its SHA-256 check but cannot be read as {format}: {problem}")]
    Parse {
        /// The data set.
        dataset: String,
        /// The file.
        file: String,
        /// The format that the catalogue states.
        format: &'static str,
        /// What the parser says.
        problem: String,
    },

    /// A download failed.
    #[error("cannot download `{file}` from {url}: {problem}\n{}{}", .problem.advice(), by_hand(.folder.as_deref()))]
    Download {
        /// The file.
        file: String,
        /// Where it should have come from.
        url: String,
        /// What happened.
        problem: DownloadProblem,
        /// Where a person can put it in a `REPLICA_DATA` folder.
        folder: Option<String>,
    },

    /// The file system refused something.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },

    /// A task cannot be made as specified.
    #[error("task `{task}`: {problem}")]
    Task {
        /// Its name.
        task: &'static str,
        /// What is wrong and what is allowed.
        problem: String,
    },

    /// A tokenizer cannot be made as specified.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
}

impl Error {
    /// Whether a file is in none of the places and no server that could have it was reached: another machine, or another
    /// hour, may do.
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Missing { .. } => true,
            Self::Download { problem, .. } => problem.may_pass(),
            _ => false,
        }
    }

    /// A data set of the catalogue lacks a file that its task needs: only a changed catalogue can cause it.
    pub(crate) fn empty(dataset: &str) -> Self {
        Self::Catalogue {
            file: format!("{dataset}.json"),
            problem: "the task needs other files than it names".to_owned(),
        }
    }

    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

/// Why a file that was found is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Shorter than it must be.
    #[error("truncated: {bytes} bytes, expected {expected}")]
    Truncated {
        /// How many bytes there are.
        bytes: u64,
        /// How many there should be.
        expected: u64,
    },
    /// A compressed file that ends early or does not unpack.
    #[error("cannot be unpacked ({problem}): the download or copy is incomplete or damaged")]
    Packed {
        /// What the decoder says.
        problem: String,
    },
    /// The content of another file of the catalogue.
    #[error("swapped: this is the content of `{is}`, not of `{file}`")]
    Swapped {
        /// Whose content it is.
        is: String,
        /// Whose it should be.
        file: String,
    },
    /// Other content.
    #[error("corrupted: SHA-256 {actual} ({bytes} bytes), expected {expected}")]
    Corrupted {
        /// Its digest.
        actual: Digest,
        /// Its length.
        bytes: u64,
        /// The catalogue's digest.
        expected: Digest,
    },
}

fn join(splits: &[Split]) -> String {
    splits.iter().map(Split::to_string).collect::<Vec<_>>().join(", ")
}

fn by_hand(folder: Option<&str>) -> String {
    folder.map_or_else(String::new, |path| {
        format!("\nOr get the file in another way, and set REPLICA_DATA to a folder that has it as {path}.")
    })
}

fn bullets(lines: &[String]) -> String {
    lines.iter().map(|line| format!("  - {line}")).collect::<Vec<_>>().join("\n")
}
