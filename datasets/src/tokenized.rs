//! A text cut into tokens.

use std::sync::Arc;

use replica_core::record::DataUse;

use crate::{DataFile, Error, Sources, Split, TextDataset, Tokenizer, TokenizerSpec};

/// The three splits of a text data set as tokens. A tokenizer that has to be trained is trained on the training split.
#[derive(Clone, Debug)]
pub struct TokenizedText {
    /// Tokens to learn from.
    pub train: Arc<[u32]>,
    /// Tokens to choose by.
    pub valid: Arc<[u32]>,
    /// Tokens to report.
    pub test: Arc<[u32]>,
    /// Bytes of the test split by its tokens.
    pub test_bytes_per_token: f64,
    /// Ids of the tokenizer.
    pub vocab_size: usize,
    /// The tokenizer for people.
    pub tokenizer_name: String,
    /// Beginning of the tokenizer's digest.
    pub tokenizer_digest: String,
    files: Vec<DataFile>,
    licence: String,
}

impl TokenizedText {
    /// Loads a data set of the catalogue and cuts it.
    ///
    /// # Errors
    /// A file is missing or refused, or the tokenizer cannot be made.
    pub fn make(text: &str, spec: &TokenizerSpec, sources: &Sources) -> Result<Self, Error> {
        let dataset = TextDataset::load(text, sources)?;
        let tokenizer = Tokenizer::prepare(spec, dataset.split(Split::Train)?)?;
        let encode = |split| dataset.split(split).map(|text| Arc::<[u32]>::from(tokenizer.encode(text)));
        let test = encode(Split::Test)?;
        Ok(Self {
            train: encode(Split::Train)?,
            valid: encode(Split::Valid)?,
            test_bytes_per_token: dataset.split(Split::Test)?.len() as f64 / test.len().max(1) as f64,
            test,
            vocab_size: tokenizer.vocab_size(),
            tokenizer_name: match spec {
                TokenizerSpec::Bytes {} => "byte".to_owned(),
                TokenizerSpec::Bpe { vocab_size, .. } => format!("{vocab_size}-token BPE"),
                TokenizerSpec::Gpt2 {} => "GPT-2".to_owned(),
                TokenizerSpec::File { path } => path.display().to_string(),
            },
            tokenizer_digest: tokenizer.digest().short().to_owned(),
            files: dataset.files,
            licence: dataset.licence,
        })
    }

    /// The files it was made from, for a record.
    pub fn data_use(&self) -> Vec<DataUse> {
        self.files.iter().map(|file| file.data_use(&self.licence)).collect()
    }
}
