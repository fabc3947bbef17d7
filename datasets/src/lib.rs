//! Data: a catalogue, verified loading, tokenizers, and tasks of sequence classification.
//!
//! Every data set is one Croissant file in `datasets/catalogue/`. Loading looks for its files in the
//! [`Sources`], checks their SHA-256 before anything reads them, and says where each came from:
//!
//! ```
//! use replica_datasets::{Sources, Split, TextDataset, Tokenizer, TokenizerSpec};
//!
//! let sources = Sources::from_environment();
//! let data = TextDataset::load("webster-kjv", &sources)?;
//! let spec = TokenizerSpec::Bpe { vocab_size: 300, train_bytes: 1 << 16, special_tokens: vec![] };
//! let tokenizer = Tokenizer::prepare(&spec, data.split(Split::Train)?)?;
//! let tokens = tokenizer.encode("In the beginning");
//! assert_eq!(tokenizer.decode(&tokens), "In the beginning");
//! assert!(data.files.iter().all(|file| file.verified));
//! # Ok::<(), replica_datasets::Error>(())
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test fails by panicking"))]

mod cache;
mod catalogue;
#[cfg(test)]
mod corpora;
mod croissant;
mod download;
mod embedded;
mod error;
mod group;
mod locate;
mod models;
mod packing;
mod parse;
mod sources;
mod split;
mod status;
pub mod tasks;
mod text;
mod tokenized;
mod tokenizer;
mod unit;

pub use catalogue::{
    Catalogue, Entry, FileEntry, Format, HubFile, HubKind, Percent, catalogue, expected_digests,
};
pub use download::DownloadProblem;
pub use error::{Error, Refusal};
pub use group::group_texts;
pub use models::{ModelFile, model_files};
pub use sources::{Hub, Sources};
pub use split::Split;
pub use status::{
    FileStatus, Progress, fetch, fetch_entry, path, status, status_entry, verify, verify_entry,
};
pub use tasks::{Batch, Coding, Inputs, SequenceTask, Sequences, TaskSpec};
pub use text::{DataFile, TextDataset};
pub use tokenized::TokenizedText;
pub use tokenizer::{Tokenizer, TokenizerSpec};
pub use unit::{Unit, bucket, split_units};
