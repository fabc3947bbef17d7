//! What can go wrong between evidence and pages.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why a site could not be rendered. The pages that were there before are still there.
#[derive(Debug, Error)]
pub enum ReportError {
    /// A paper id that cannot be a file name.
    #[error(
        "paper id `{0}` cannot name a page: lower-case letters, digits, `-` and `_` are allowed, and `index` is taken"
    )]
    PaperId(String),
    /// The same paper, scale and backend twice.
    #[error("{paper} at scale `{scale}` on {backend} was given twice; a page can show it once")]
    Duplicate {
        /// Paper id.
        paper: String,
        /// Scale.
        scale: String,
        /// Backend.
        backend: String,
    },
    /// A template that does not fit its context: a defect of this crate.
    #[error("page `{page}`: {source}")]
    Template {
        /// File name of the page.
        page: String,
        /// Template, line and reason.
        source: Box<minijinja::Error>,
    },
    /// A file or folder that cannot be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}
