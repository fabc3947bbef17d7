//! A data set as text.

use std::collections::BTreeMap;

use replica_core::Digest;
use replica_core::record::DataUse;
use serde::Serialize;

use crate::catalogue::{Entry, FileEntry, Percent, catalogue};
use crate::locate::{Found, locate};
use crate::{Error, Sources, Split, parse};

/// A loaded data set.
#[derive(Clone, Debug)]
pub struct TextDataset {
    /// Its identifier in the catalogue.
    pub name: String,
    /// Its name for people.
    pub title: String,
    /// Its licence, in words.
    pub licence: String,
    /// Every file that was read, in the catalogue's order.
    pub files: Vec<DataFile>,
    texts: BTreeMap<Split, String>,
    /// The files of each split and the lengths of their texts.
    parts: BTreeMap<Split, Vec<(String, usize)>>,
    /// What the catalogue has, loaded or not.
    splits: Vec<Split>,
}

/// A file that was read, as a record keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DataFile {
    /// Its name in the catalogue.
    pub name: String,
    /// Digest of its content.
    pub sha256: Digest,
    /// Length of its content.
    pub bytes: u64,
    /// Where it came from: `cache`, `REPLICA_DATA`, `embedded`, `hub cache`, `hub` or `url`.
    pub source: String,
    /// Whether its digest is a published one. Where none is published, the first download's is recorded
    /// and later loads are held to that, but it is not verified.
    pub verified: bool,
}

impl DataFile {
    pub(crate) fn new(file: &FileEntry, found: &Found) -> Self {
        Self {
            name: file.name.clone(),
            sha256: found.digest.clone(),
            bytes: found.bytes,
            source: found.source.to_owned(),
            verified: found.verified,
        }
    }

    /// For a record.
    pub fn data_use(&self, licence: &str) -> DataUse {
        DataUse {
            name: self.name.clone(),
            sha256: self.sha256.clone(),
            bytes: self.bytes,
            source: self.source.clone(),
            licence: licence.to_owned(),
            verified: self.verified,
        }
    }
}

impl TextDataset {
    /// Loads all splits of a data set of the catalogue, downloading what is nowhere else.
    ///
    /// # Errors
    /// It is unknown, or a file is missing, refused or cannot be read.
    pub fn load(name: &str, sources: &Sources) -> Result<Self, Error> {
        Self::load_splits(name, &Split::ALL, sources)
    }

    /// Loads only the files that some of its splits need.
    ///
    /// # Errors
    /// As for [`load`](Self::load).
    pub fn load_splits(name: &str, splits: &[Split], sources: &Sources) -> Result<Self, Error> {
        Self::load_entry(catalogue().text(name)?, splits, sources)
    }

    /// The same for a data set of another catalogue.
    ///
    /// # Errors
    /// As for [`load`](Self::load).
    pub fn load_entry(entry: &Entry, splits: &[Split], sources: &Sources) -> Result<Self, Error> {
        let mut files = Vec::new();
        let mut texts: BTreeMap<Split, String> = BTreeMap::new();
        let mut parts: BTreeMap<Split, Vec<(String, usize)>> = BTreeMap::new();
        for file in entry.files.iter().filter(|file| splits.iter().any(|&split| file.holds(split))) {
            let found = locate(entry, file, sources, &mut |_| {})?;
            files.push(DataFile::new(file, &found));
            let text = parse::text(entry, file, found.content)?;
            let mut add = |split: Split, text: String| {
                parts.entry(split).or_default().push((file.name.clone(), text.len()));
                append(texts.entry(split).or_default(), text);
            };
            match (file.split, file.percent) {
                (Some(split), _) => add(split, text),
                (None, Some(percent)) => {
                    for (split, part) in by_position(&text, percent) {
                        if splits.contains(&split) {
                            add(split, part.to_owned());
                        }
                    }
                }
                (None, None) => {}
            }
        }
        Ok(Self {
            name: entry.name.clone(),
            title: entry.title.clone(),
            licence: entry.licence.clone(),
            files,
            texts,
            parts,
            splits: entry.splits(),
        })
    }

    /// The text of a split.
    ///
    /// # Errors
    /// The data set has no such split, or it was not asked for when loading.
    pub fn split(&self, split: Split) -> Result<&str, Error> {
        self.texts.get(&split).map(String::as_str).ok_or_else(|| Error::NoSplit {
            dataset: self.name.clone(),
            split,
            available: self.texts.keys().copied().collect(),
            hint: if self.splits.contains(&split) {
                "it was not among the splits that were loaded".to_owned()
            } else {
                "the catalogue has none, so choose another data set (`replica data list`)".to_owned()
            },
        })
    }

    /// The text of a split by file: the file's name in the catalogue, and what it has of the split.
    ///
    /// # Errors
    /// As for [`split`](Self::split).
    pub fn files_of(&self, split: Split) -> Result<Vec<(&str, &str)>, Error> {
        let mut rest = self.split(split)?;
        let parts = self.parts.get(&split).into_iter().flatten();
        Ok(parts
            .map(|(name, length)| {
                let (text, after) = rest.split_at(*length);
                rest = after;
                (name.as_str(), text)
            })
            .collect())
    }
}

/// Without a copy where there is only one part.
fn append(text: &mut String, part: String) {
    if text.is_empty() {
        *text = part;
    } else {
        text.push_str(&part);
    }
}

fn by_position(text: &str, percent: Percent) -> [(Split, &str); 3] {
    let at = |percent: u8| {
        let byte = (text.len() as u128 * u128::from(percent) / 100) as usize;
        (byte..=text.len()).find(|&i| text.is_char_boundary(i)).unwrap_or(text.len())
    };
    let (train, valid) = (at(percent.train), at(percent.train.saturating_add(percent.valid).min(100)));
    [(Split::Train, &text[..train]), (Split::Valid, &text[train..valid]), (Split::Test, &text[valid..])]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn positions_partition_any_text(text in ".{0,200}", train in 0u8..=100, rest in 0u8..=100) {
            let valid = rest.min(100 - train);
            let parts = by_position(&text, Percent { train, valid, test: 100 - train - valid });
            prop_assert_eq!(parts.iter().map(|(_, part)| *part).collect::<String>(), text.as_str());
            // a boundary moves by less than a character
            prop_assert!(parts[0].1.len().abs_diff(text.len() * usize::from(train) / 100) < 4);
        }
    }
}
