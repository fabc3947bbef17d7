//! Checkpoints that survive being interrupted while they are written.
//!
//! Tensors go to a new file first; `checkpoint.json`, written last and renamed into place, names that file
//! and its digest. Whatever is interrupted, the old checkpoint or the new one is whole.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use replica_core::Digest;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;

const INDEX: &str = "checkpoint.json";

/// The part of a checkpoint that is no tensor.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Index<S> {
    tensors: String,
    sha256: Digest,
    state: S,
}

/// A checkpoint as read: tensors by name, and the rest.
pub type Loaded<S> = (HashMap<String, Tensor>, S);

/// What can go wrong with a checkpoint.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// It cannot be read or written.
    #[error("{}: {source}; make room or choose another run folder, then go on with --resume", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It was changed after it was written.
    #[error("{}: {problem}; remove the folder to start the trial anew", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

/// Writes tensors and state into `folder`, replacing an older checkpoint.
///
/// # Errors
/// The folder cannot be written.
pub fn save<S: Serialize>(
    folder: &Path,
    step: u64,
    tensors: &HashMap<String, Tensor>,
    state: &S,
) -> Result<(), CheckpointError> {
    let name = format!("step-{step:08}.safetensors");
    let path = folder.join(&name);
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| CheckpointError::Io { path, source }
    };
    let bytes = safetensors::serialize(tensors.iter().map(|(k, v)| (k.as_str(), v)), None)
        .map_err(|e| CheckpointError::Damaged { path: path.clone(), problem: e.to_string() })?;
    write_atomically(&path, &bytes).map_err(io(&path))?;
    let index = Index { tensors: name.clone(), sha256: Digest::of(&bytes), state };
    let index_path = folder.join(INDEX);
    let json = serde_json::to_vec(&index).map_err(|e| io(&index_path)(e.into()))?;
    write_atomically(&index_path, &json).map_err(io(&index_path))?;
    for entry in fs::read_dir(folder).map_err(io(folder))?.flatten() {
        let old = entry.file_name();
        if old.to_string_lossy().ends_with(".safetensors") && *old != *name {
            // an old file left behind costs space only
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(())
}

/// Reads the checkpoint in `folder`, if there is one.
///
/// # Errors
/// It cannot be read, or is not what was written.
pub fn load<S: DeserializeOwned>(folder: &Path) -> Result<Option<Loaded<S>>, CheckpointError> {
    let path = folder.join(INDEX);
    let json = match fs::read(&path) {
        Ok(json) => json,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(CheckpointError::Io { path, source }),
    };
    let damaged = |path: &Path, problem: String| CheckpointError::Damaged { path: path.to_owned(), problem };
    let index: Index<S> = serde_json::from_slice(&json).map_err(|e| damaged(&path, e.to_string()))?;
    let path = folder.join(&index.tensors);
    let bytes = fs::read(&path).map_err(|source| CheckpointError::Io { path: path.clone(), source })?;
    if Digest::of(&bytes) != index.sha256 {
        return Err(damaged(&path, "its SHA-256 is not the one written down".to_owned()));
    }
    let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)
        .map_err(|e| damaged(&path, e.to_string()))?;
    Ok(Some((tensors, index.state)))
}

fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors(value: f32) -> HashMap<String, Tensor> {
        HashMap::from([("w".to_owned(), Tensor::full(value, (2, 3), &Device::Cpu).unwrap())])
    }

    #[test]
    fn the_newest_checkpoint_comes_back_and_old_ones_go() {
        let folder = tempfile::tempdir().unwrap();
        assert!(load::<u64>(folder.path()).unwrap().is_none());
        save(folder.path(), 1, &tensors(1.0), &1u64).unwrap();
        save(folder.path(), 2, &tensors(2.0), &2u64).unwrap();
        let (tensors, state) = load::<u64>(folder.path()).unwrap().unwrap();
        assert_eq!(state, 2);
        assert_eq!(tensors["w"].to_vec2::<f32>().unwrap(), [[2.0; 3]; 2]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_flipped_bit_is_found() {
        let folder = tempfile::tempdir().unwrap();
        save(folder.path(), 1, &tensors(1.0), &1u64).unwrap();
        let path = folder.path().join("step-00000001.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, bytes).unwrap();
        assert!(matches!(load::<u64>(folder.path()), Err(CheckpointError::Damaged { .. })));
    }

    /// Killed between the two writes: the tensors of step 2 are there, the index still names step 1.
    #[test]
    fn an_interrupted_save_leaves_the_old_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        save(folder.path(), 1, &tensors(1.0), &1u64).unwrap();
        fs::write(folder.path().join("step-00000002.safetensors"), b"half").unwrap();
        assert_eq!(load::<u64>(folder.path()).unwrap().unwrap().1, 1);
    }
}
