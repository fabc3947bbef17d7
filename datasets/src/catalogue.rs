//! The data sets and checkpoints this project knows.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use replica_core::Digest;
use serde::Deserialize;

use crate::{Error, Split, croissant};

const FILES: [(&str, &str); 28] = [
    ("webster-kjv.json", include_str!("../catalogue/webster-kjv.json")),
    ("ptb.json", include_str!("../catalogue/ptb.json")),
    ("wikitext-103-v1.json", include_str!("../catalogue/wikitext-103-v1.json")),
    ("wikitext-103-raw.json", include_str!("../catalogue/wikitext-103-raw.json")),
    ("tinyshakespeare.json", include_str!("../catalogue/tinyshakespeare.json")),
    ("war-and-peace.json", include_str!("../catalogue/war-and-peace.json")),
    ("pile-uncopyrighted.json", include_str!("../catalogue/pile-uncopyrighted.json")),
    ("optdigits.json", include_str!("../catalogue/optdigits.json")),
    ("mnist-test.json", include_str!("../catalogue/mnist-test.json")),
    ("cifar10-jpeg.json", include_str!("../catalogue/cifar10-jpeg.json")),
    ("imdb.json", include_str!("../catalogue/imdb.json")),
    ("aan.json", include_str!("../catalogue/aan.json")),
    ("lra-listops-sample.json", include_str!("../catalogue/lra-listops-sample.json")),
    ("listops-nb2018-test.json", include_str!("../catalogue/listops-nb2018-test.json")),
    ("gsm8k.json", include_str!("../catalogue/gsm8k.json")),
    ("svamp.json", include_str!("../catalogue/svamp.json")),
    ("mawps-asdiv.json", include_str!("../catalogue/mawps-asdiv.json")),
    ("asdiv.json", include_str!("../catalogue/asdiv.json")),
    ("multiarith.json", include_str!("../catalogue/multiarith.json")),
    ("gsm-hard.json", include_str!("../catalogue/gsm-hard.json")),
    ("pot-outputs.json", include_str!("../catalogue/pot-outputs.json")),
    ("coin-flip.json", include_str!("../catalogue/coin-flip.json")),
    ("last-letters.json", include_str!("../catalogue/last-letters.json")),
    ("bbh.json", include_str!("../catalogue/bbh.json")),
    ("codet5-small.json", include_str!("../catalogue/codet5-small.json")),
    ("codet5-base.json", include_str!("../catalogue/codet5-base.json")),
    ("codet5-large.json", include_str!("../catalogue/codet5-large.json")),
    ("t5-small.json", include_str!("../catalogue/t5-small.json")),
];

/// All data sets, in the order in which they are shown.
#[derive(Clone, Debug)]
pub struct Catalogue {
    /// The data sets.
    pub entries: Vec<Entry>,
}

/// A data set.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its identifier, such as `ptb`.
    pub name: String,
    /// Its name for people.
    pub title: String,
    /// What it is and how it is split.
    pub description: String,
    /// Its licence, in words.
    pub licence: String,
    /// How to cite it.
    pub citation: String,
    /// Its home page.
    pub url: String,
    /// What is loaded, in order.
    pub files: Vec<FileEntry>,
}

/// A file of a data set.
#[derive(Clone, Debug)]
pub struct FileEntry {
    /// Its name.
    pub name: String,
    /// Where it comes from.
    pub urls: Vec<String>,
    /// Digest of its content, unpacked where it is packed; none only with `first_use`.
    pub sha256: Option<Digest>,
    /// Length of the same content, where known.
    pub bytes: Option<u64>,
    /// The split that it holds; none if it is split by `percent`, or part of a checkpoint.
    pub split: Option<Split>,
    /// How it is split by position.
    pub percent: Option<Percent>,
    /// How it is read.
    pub format: Format,
    /// Where it lies in a `REPLICA_DATA` folder.
    pub folder: Option<String>,
    /// Where it lies on the hub.
    pub hub: Option<HubFile>,
    /// No digest is published: the first download's is recorded and held to.
    pub first_use: bool,
    /// It is part of the binary.
    pub embedded: bool,
}

/// How a file becomes text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    /// UTF-8 text as it is.
    Text,
    /// UTF-8 text between Project Gutenberg's `*** START OF` and `*** END OF` lines.
    Gutenberg,
    /// A string column of a parquet file, a row a line; an empty row is a line of one blank.
    Parquet {
        /// The column's name.
        column: String,
    },
    /// A string field of JSON lines, compressed with zstd; documents are joined by a blank line.
    JsonLinesZstd {
        /// The field's name.
        column: String,
        /// Reading stops before the first document that would exceed this.
        max_text_bytes: Option<u64>,
    },
    /// No text: images or labels, which the task that is made from them reads.
    Binary,
    /// A part of a pre-trained model: no text, and of no split.
    Model,
}

/// A split by position. A boundary is rounded down to a byte, then up to the next character.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Percent {
    /// The first part.
    pub train: u8,
    /// The part after it.
    pub valid: u8,
    /// The rest.
    pub test: u8,
}

/// What a repository on the hub holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HubKind {
    /// Data.
    #[default]
    Dataset,
    /// A pre-trained model.
    Model,
}

/// A file of a repository on the hub.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HubFile {
    /// What the repository holds.
    #[serde(default)]
    pub kind: HubKind,
    /// `owner/name`.
    pub repo: String,
    /// A commit; a branch only where the content is trusted on first use.
    pub revision: String,
    /// The path inside the repository.
    pub path: String,
}

/// The catalogue.
pub fn catalogue() -> &'static Catalogue {
    static CATALOGUE: OnceLock<Catalogue> = OnceLock::new();
    CATALOGUE.get_or_init(|| Catalogue {
        entries: FILES
            .iter()
            .map(|(file, json)| {
                Entry::from_croissant(file, json).expect("the tests read every embedded file")
            })
            .collect(),
    })
}

impl Catalogue {
    /// The data set or checkpoint of that name.
    ///
    /// # Errors
    /// There is none; the error names those that there are.
    pub fn get(&self, name: &str) -> Result<&Entry, Error> {
        self.among("data set", name, |_| true)
    }

    /// The data set of that name, of which something is read as text.
    ///
    /// # Errors
    /// There is none; the error names those that there are.
    pub fn text(&self, name: &str) -> Result<&Entry, Error> {
        self.among("text", name, Entry::has_text)
    }

    /// The checkpoint of that name.
    ///
    /// # Errors
    /// There is none; the error names those that there are.
    pub fn model(&self, name: &str) -> Result<&Entry, Error> {
        self.among("checkpoint", name, Entry::is_model)
    }

    fn among(&self, what: &'static str, name: &str, fits: fn(&Entry) -> bool) -> Result<&Entry, Error> {
        let entries = || self.entries.iter().filter(|entry| fits(entry));
        entries().find(|entry| entry.name == name).ok_or_else(|| Error::UnknownEntry {
            what,
            name: name.to_owned(),
            known: entries().map(|entry| entry.name.clone()).collect(),
        })
    }

    /// The name of the file whose content has this digest.
    pub(crate) fn file_with(&self, digest: &Digest) -> Option<&str> {
        self.entries
            .iter()
            .flat_map(|entry| &entry.files)
            .find(|file| file.sha256.as_ref() == Some(digest))
            .map(|file| file.name.as_str())
    }
}

impl Entry {
    /// Reads a Croissant 1.1 file; `label` names it in errors.
    ///
    /// # Errors
    /// It is not valid, has an unknown `replica:` key, or a file that could never be verified.
    pub fn from_croissant(label: &str, json: &str) -> Result<Self, Error> {
        croissant::parse(label, json)
    }

    fn has_text(&self) -> bool {
        self.files.iter().any(|file| !matches!(file.format, Format::Binary | Format::Model))
    }

    /// Whether it is a pre-trained model.
    fn is_model(&self) -> bool {
        self.files.iter().all(|file| file.format == Format::Model)
    }

    /// The splits that it has.
    pub fn splits(&self) -> Vec<Split> {
        let has = |split: Split| self.files.iter().any(|file| file.holds(split));
        Split::ALL.into_iter().filter(|&split| has(split)).collect()
    }

    /// The digest of every file, as a trial's spec records it, without loading anything.
    ///
    /// # Errors
    /// A file has no published digest.
    pub fn expected_digests(&self) -> Result<BTreeMap<String, Digest>, Error> {
        self.files
            .iter()
            .map(|file| match &file.sha256 {
                Some(digest) => Ok((file.name.clone(), digest.clone())),
                None => Err(Error::NoPublishedDigest { dataset: self.name.clone(), file: file.name.clone() }),
            })
            .collect()
    }
}

impl FileEntry {
    /// Whether any of a split comes from this file.
    pub(crate) fn holds(&self, split: Split) -> bool {
        match (self.split, self.percent) {
            (Some(own), _) => own == split,
            (None, Some(percent)) => match split {
                Split::Train => percent.train > 0,
                Split::Valid => percent.valid > 0,
                Split::Test => percent.test > 0,
            },
            (None, None) => false,
        }
    }
}

/// [`Entry::expected_digests`] of a data set of the catalogue.
///
/// # Errors
/// It is unknown, or a file has no published digest.
pub fn expected_digests(name: &str) -> Result<BTreeMap<String, Digest>, Error> {
    catalogue().get(name)?.expected_digests()
}
