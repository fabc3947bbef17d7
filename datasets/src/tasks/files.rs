//! Verified files of the catalogue for a task.

use crate::catalogue::{FileEntry, catalogue};
use crate::locate::{Content, locate};
use crate::text::DataFile;
use crate::{Error, Sources, parse};

/// A file that a task is made from, and how to say that it is not what it should be.
pub(super) struct TaskFile {
    pub(super) file: DataFile,
    pub(super) content: Content,
    dataset: &'static str,
}

impl TaskFile {
    /// Finds and verifies a file of a data set of the catalogue.
    pub(super) fn open(dataset: &'static str, entry: &FileEntry, sources: &Sources) -> Result<Self, Error> {
        let found = locate(catalogue().get(dataset)?, entry, sources, &mut |_| {})?;
        Ok(Self { file: DataFile::new(entry, &found), content: found.content, dataset })
    }

    /// All its bytes.
    pub(super) fn read(self, format: &'static str) -> Result<(DataFile, Vec<u8>), Error> {
        let Self { file, content, dataset } = self;
        match parse::bytes(content) {
            Ok(bytes) => Ok((file, bytes)),
            Err(e) => Err(unreadable(dataset, &file.name, format)(e.to_string())),
        }
    }
}

/// The files of a data set of the catalogue with their bytes, in its order.
pub(super) fn read_all(
    dataset: &'static str,
    format: &'static str,
    sources: &Sources,
) -> Result<Vec<(DataFile, Vec<u8>)>, Error> {
    let entry = catalogue().get(dataset)?;
    entry.files.iter().map(|file| TaskFile::open(dataset, file, sources)?.read(format)).collect()
}

/// The error for a verified file that is not what the task expects.
pub(super) fn unreadable<'a>(
    dataset: &'a str,
    file: &'a str,
    format: &'static str,
) -> impl Fn(String) -> Error + 'a {
    move |problem| Error::Parse { dataset: dataset.to_owned(), file: file.to_owned(), format, problem }
}
