//! Pre-trained students: a folder as the hub has it, of CodeT5 or another T5.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor, pickle, safetensors};
use replica_core::Digest;
use replica_core::record::DataUse;
use replica_datasets::{Tokenizer, TokenizerSpec};
use replica_nn::t5::T5Config;
use thiserror::Error;

use crate::tokens::Tokens;

/// A checkpoint in memory.
pub struct Checkpoint {
    /// Its shape.
    pub config: T5Config,
    /// Its weights under the names of the original, on the CPU.
    pub weights: HashMap<String, Tensor>,
    /// Its tokens.
    pub tokens: Tokens,
    /// The file of the weights, for a record.
    pub used: DataUse,
}

/// A folder that is no checkpoint.
#[derive(Debug, Error)]
#[error(
    "{}: {problem}; a folder with config.json, tokenizer.json and model.safetensors or pytorch_model.bin is expected, \
     e.g. Salesforce/codet5-small downloaded from the hub", path.display()
)]
pub struct CheckpointError {
    path: PathBuf,
    problem: String,
}

impl Checkpoint {
    /// Reads a folder.
    ///
    /// # Errors
    /// A file is missing or not what it should be.
    pub fn read(folder: &Path) -> Result<Self, CheckpointError> {
        let failed = |file: &str, problem: String| CheckpointError { path: folder.join(file), problem };
        let text = std::fs::read_to_string(folder.join("config.json"))
            .map_err(|e| failed("config.json", e.to_string()))?;
        let config = T5Config::from_json(&text).map_err(|e| failed("config.json", e.to_string()))?;
        let file = ["model.safetensors", "pytorch_model.bin"]
            .into_iter()
            .find(|file| folder.join(file).is_file())
            .ok_or_else(|| failed("model.safetensors", "there are no weights".to_owned()))?;
        let path = folder.join(file);
        let all = match file {
            "model.safetensors" => safetensors::load(&path, &Device::Cpu),
            _ => pickle::read_all(&path).map(|tensors| tensors.into_iter().collect()),
        };
        let all = all.map_err(|e| failed(file, e.to_string()))?;
        let weights = config.own_tensors(all);
        let bytes = std::fs::read(&path).map_err(|e| failed(file, e.to_string()))?;
        let used = DataUse {
            name: format!("{}/{file}", folder.file_name().unwrap_or_default().to_string_lossy()),
            sha256: Digest::of(&bytes),
            bytes: bytes.len() as u64,
            source: folder.display().to_string(),
            licence: "see the checkpoint".to_owned(),
            verified: false,
        };
        let spec = TokenizerSpec::File { path: folder.join("tokenizer.json") };
        let tokenizer = Tokenizer::prepare(&spec, "").map_err(|e| failed("tokenizer.json", e.to_string()))?;
        let tokens = Tokens::Published {
            begin: tokenizer.token_id("<s>"),
            end: config.eos_token_id,
            pad: config.decoder_start_token_id,
            tokenizer: Box::new(tokenizer),
        };
        Ok(Self { config, weights, tokens, used })
    }
}
