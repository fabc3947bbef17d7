//! Pre-trained students: CodeT5 or another T5, from the catalogue or a folder, as the hub has them.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor, pickle, safetensors};
use replica_core::Digest;
use replica_core::record::DataUse;
use replica_datasets::{Sources, Tokenizer, TokenizerSpec, catalogue, model_files};
use replica_nn::t5::T5Config;
use thiserror::Error;

use crate::tokens::Tokens;

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const VOCABULARY: &str = "vocab.json";
const MERGES: &str = "merges.txt";
const SAFETENSORS: &str = "model.safetensors";
const PICKLED: &str = "pytorch_model.bin";

/// A checkpoint in memory.
pub struct Checkpoint {
    /// Its shape.
    pub config: T5Config,
    /// Its weights under the names of the original, on the CPU.
    pub weights: HashMap<String, Tensor>,
    /// Its tokens.
    pub tokens: Tokens,
    /// Its files, for a record.
    pub used: Vec<DataUse>,
}

/// What is no checkpoint.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// A file is missing or not what it should be.
    #[error(
        "{}: {problem}; a checkpoint is config.json, tokenizer.json (or vocab.json and merges.txt) and model.safetensors \
         (or pytorch_model.bin), e.g. those of Salesforce/codet5-small on the hub", path.display()
    )]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The catalogue has no such checkpoint, or its files cannot be had.
    #[error(transparent)]
    Data(#[from] replica_datasets::Error),
}

/// Where the files of a checkpoint lie, by their names.
struct Files {
    folder: PathBuf,
    paths: BTreeMap<String, PathBuf>,
}

impl Checkpoint {
    /// Reads a checkpoint of the catalogue, which is downloaded if it is nowhere else.
    ///
    /// # Errors
    /// There is none of that name, or a file is missing, refused, cannot be downloaded or is not what it should be.
    pub fn fetch(model: &str, sources: &Sources) -> Result<Self, CheckpointError> {
        let entry = catalogue().model(model)?;
        let files = model_files(entry, sources)?;
        let used = files.iter().map(|file| file.file.data_use(&entry.licence)).collect();
        let paths = files.into_iter().map(|file| (file.name, file.path)).collect();
        Files { folder: PathBuf::from(model), paths }.read(used)
    }

    /// Reads a folder.
    ///
    /// # Errors
    /// A file is missing or not what it should be.
    pub fn read(folder: &Path) -> Result<Self, CheckpointError> {
        let mut paths = BTreeMap::new();
        let mut used = Vec::new();
        for name in [CONFIG, TOKENIZER, VOCABULARY, MERGES, SAFETENSORS, PICKLED] {
            let path = folder.join(name);
            let Ok(mut file) = File::open(&path) else { continue };
            let (sha256, bytes) = Digest::of_reader(&mut file)
                .map_err(|e| CheckpointError::File { path: path.clone(), problem: e.to_string() })?;
            used.push(DataUse {
                name: format!("{}/{name}", folder.file_name().unwrap_or_default().to_string_lossy()),
                sha256,
                bytes,
                source: folder.display().to_string(),
                licence: "see the checkpoint".to_owned(),
                verified: false,
            });
            paths.insert(name.to_owned(), path);
        }
        Files { folder: folder.to_owned(), paths }.read(used)
    }
}

impl Files {
    fn read(&self, used: Vec<DataUse>) -> Result<Checkpoint, CheckpointError> {
        let path = self.path(CONFIG, "there is none")?;
        let text = std::fs::read_to_string(path).map_err(|e| failed(path, &e))?;
        let config = T5Config::from_json(&text).map_err(|e| failed(path, &e))?;

        let all = match self.paths.get(SAFETENSORS) {
            Some(path) => safetensors::load(path, &Device::Cpu).map_err(|e| failed(path, &e))?,
            None => {
                let path = self.path(PICKLED, "there are no weights")?;
                let tensors = pickle::read_all(path).map_err(|e| failed(path, &e))?;
                tensors.into_iter().collect()
            }
        };
        let weights = config.own_tensors(all);

        let (path, tokenizer) = match self.paths.get(TOKENIZER) {
            Some(path) => (path, Tokenizer::prepare(&TokenizerSpec::File { path: path.clone() }, "")?),
            None => {
                let none = "there is neither it nor vocab.json with merges.txt";
                let path = self.paths.get(VOCABULARY).ok_or_else(|| self.missing(TOKENIZER, none))?;
                (path, Tokenizer::from_vocabulary(path, self.path(MERGES, "vocab.json needs it")?)?)
            }
        };
        let (ids, rows) = (tokenizer.vocab_size(), config.vocab_size);
        if ids > rows {
            return Err(failed(path, &format!("it has {ids} ids, but config.json says vocab_size = {rows}")));
        }
        let tokens = Tokens::Published {
            begin: tokenizer.token_id("<s>"),
            end: config.eos_token_id,
            pad: config.decoder_start_token_id,
            tokenizer: Box::new(tokenizer),
        };
        Ok(Checkpoint { config, weights, tokens, used })
    }

    fn path(&self, name: &str, problem: &str) -> Result<&PathBuf, CheckpointError> {
        self.paths.get(name).ok_or_else(|| self.missing(name, problem))
    }

    fn missing(&self, name: &str, problem: &str) -> CheckpointError {
        CheckpointError::File { path: self.folder.join(name), problem: problem.to_owned() }
    }
}

fn failed(path: &Path, problem: &dyn std::fmt::Display) -> CheckpointError {
    CheckpointError::File { path: path.to_owned(), problem: problem.to_string() }
}
