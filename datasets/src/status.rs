//! What the `data` commands show and do.

use std::path::PathBuf;

use replica_core::Digest;
use serde::Serialize;

use crate::catalogue::{Entry, catalogue};
use crate::locate::{Local, absent, locate, look};
use crate::text::DataFile;
use crate::{Error, Sources, Split};

/// How far a download is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The data set.
    pub dataset: String,
    /// The file.
    pub file: String,
    /// Bytes that are here, those of earlier attempts included.
    pub bytes: u64,
    /// Bytes of the whole file, where known.
    pub total: Option<u64>,
}

/// Where a file is, and whether it is what it should be.
#[derive(Clone, Debug, Serialize)]
pub struct FileStatus {
    /// Its name.
    pub name: String,
    /// The split that it holds; none if it is split by position.
    pub split: Option<Split>,
    /// Its digest: the published one, or that of what is here.
    pub sha256: Option<Digest>,
    /// Its length, where known.
    pub bytes: Option<u64>,
    /// Where it is; none if it is not here.
    pub source: Option<String>,
    /// The file, if it is one of its own.
    pub path: Option<PathBuf>,
    /// Whether it is here with its published digest.
    pub verified: bool,
    /// Why it cannot be used although it is here.
    pub problem: Option<String>,
    /// Where it comes from.
    pub urls: Vec<String>,
}

/// Where the files of a data set are. Hashes what is here; changes nothing and uses no network.
///
/// # Errors
/// The data set is unknown, or a place cannot be read.
pub fn status(name: &str, sources: &Sources) -> Result<Vec<FileStatus>, Error> {
    status_entry(catalogue().get(name)?, sources)
}

/// [`status`] for a data set of another catalogue.
///
/// # Errors
/// A place cannot be read.
pub fn status_entry(entry: &Entry, sources: &Sources) -> Result<Vec<FileStatus>, Error> {
    entry
        .files
        .iter()
        .map(|file| {
            let mut status = FileStatus {
                name: file.name.clone(),
                split: file.split,
                sha256: file.sha256.clone(),
                bytes: file.bytes,
                source: None,
                path: None,
                verified: false,
                problem: None,
                urls: file.urls.clone(),
            };
            match look(entry, file, sources)? {
                Local::Good(found) => {
                    status.sha256 = Some(found.digest);
                    status.bytes = Some(found.bytes);
                    status.source = Some(found.source.to_owned());
                    status.path = found.path;
                    status.verified = found.verified;
                }
                Local::Bad(bad) => {
                    status.path = Some(bad.path().to_owned());
                    status.problem = Some(bad.problem());
                }
                Local::Absent(_) => {}
            }
            Ok(status)
        })
        .collect()
}

/// Brings every file of a data set here, and says what it found.
///
/// # Errors
/// The data set is unknown, or a file is missing, refused or cannot be downloaded.
pub fn fetch(
    name: &str,
    sources: &Sources,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<DataFile>, Error> {
    fetch_entry(catalogue().get(name)?, sources, progress)
}

/// [`fetch`] for a data set of another catalogue.
///
/// # Errors
/// A file is missing, refused or cannot be downloaded.
pub fn fetch_entry(
    entry: &Entry,
    sources: &Sources,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<DataFile>, Error> {
    entry
        .files
        .iter()
        .map(|file| locate(entry, file, sources, progress).map(|found| DataFile::new(file, &found)))
        .collect()
}

/// Hashes every file of a data set again; moves aside what is not what it should be. No network.
///
/// # Errors
/// The data set is unknown, or a file is missing or refused.
pub fn verify(name: &str, sources: &Sources) -> Result<Vec<DataFile>, Error> {
    verify_entry(catalogue().get(name)?, sources)
}

/// [`verify`] for a data set of another catalogue.
///
/// # Errors
/// A file is missing or refused.
pub fn verify_entry(entry: &Entry, sources: &Sources) -> Result<Vec<DataFile>, Error> {
    entry
        .files
        .iter()
        .map(|file| match look(entry, file, sources)? {
            Local::Good(found) => Ok(DataFile::new(file, &found)),
            Local::Bad(bad) => Err(bad.refuse(entry, file, sources)),
            Local::Absent(looked) => Err(absent(entry, file, looked)),
        })
        .collect()
}

/// The path of every file of a data set; none for what is part of the binary.
///
/// # Errors
/// The data set is unknown, or a file is missing or refused.
pub fn path(name: &str, sources: &Sources) -> Result<Vec<(String, Option<PathBuf>)>, Error> {
    let entry = catalogue().get(name)?;
    entry
        .files
        .iter()
        .map(|file| match look(entry, file, sources)? {
            Local::Good(found) => Ok((file.name.clone(), found.path)),
            Local::Bad(bad) => Err(bad.refuse(entry, file, sources)),
            Local::Absent(looked) => Err(absent(entry, file, looked)),
        })
        .collect()
}
