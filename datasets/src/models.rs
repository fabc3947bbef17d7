//! Pre-trained models.

use std::path::PathBuf;

use crate::catalogue::Entry;
use crate::locate::locate;
use crate::text::DataFile;
use crate::{Error, Sources};

/// A file of a checkpoint, with the content that the catalogue says.
#[derive(Clone, Debug)]
pub struct ModelFile {
    /// Its name in the repository, such as `config.json`.
    pub name: String,
    /// Where it lies.
    pub path: PathBuf,
    /// For a record.
    pub file: DataFile,
}

/// Brings every file of a checkpoint here.
///
/// # Errors
/// A file is missing, refused or cannot be downloaded.
pub fn model_files(entry: &Entry, sources: &Sources) -> Result<Vec<ModelFile>, Error> {
    let find = |file| {
        let found = locate(entry, file, sources, &mut |_| {})?;
        let described = DataFile::new(file, &found);
        let path = found.path.ok_or_else(|| Error::empty(&entry.name))?;
        let name = file.hub.as_ref().map_or(&file.name, |hub| &hub.path).clone();
        Ok(ModelFile { name, path, file: described })
    };
    entry.files.iter().map(find).collect()
}
