//! Sequences with a class each, as every task has them.

use replica_core::Digest;

use crate::text::DataFile;

/// A classification task in three splits.
#[derive(Clone, Debug)]
pub struct SequenceTask {
    /// Its identifier, such as `listops`.
    pub name: &'static str,
    /// Its name for people; says where what is learnt comes from.
    pub title: String,
    /// How many classes there are.
    pub classes: usize,
    /// How many sequences one decision is about: 2 in retrieval, else 1.
    pub documents: usize,
    /// The longest sequence of any split.
    pub max_len: usize,
    /// What is learnt from.
    pub train: Sequences,
    /// What hyper-parameters and epochs are chosen by. Is the test split where the task has no other.
    pub valid: Sequences,
    /// What is reported.
    pub test: Sequences,
    /// What it was made from: files that were read, or the generated set under its own digest.
    pub files: Vec<DataFile>,
}

impl SequenceTask {
    /// Keeps at most so many items of each split, the first ones. Splits are in random order, so that these are a
    /// fair sample; `max_len` stays that of the whole task.
    pub fn truncate(&mut self, train: usize, valid: usize, test: usize) {
        self.train.truncate(train);
        self.valid.truncate(valid);
        self.test.truncate(test);
    }

    /// Changes how pixels are handed out, in every split; tokens stay as they are.
    pub fn scale_pixels(&mut self, mean: f32, std: f32) {
        for split in [&mut self.train, &mut self.valid, &mut self.test] {
            if let Coding::Pixels { mean: m, std: s, .. } = &mut split.coding {
                (*m, *s) = (mean, std);
            }
        }
    }

    /// Hands pixels out as tokens 0 to 255, as the Long Range Arena feeds them to its models.
    pub fn pixels_as_tokens(&mut self) {
        for split in [&mut self.train, &mut self.valid, &mut self.test] {
            if let Coding::Pixels { .. } = split.coding {
                split.coding = Coding::Tokens { vocab: 256, pad: 0 };
            }
        }
    }
}

/// How stored numbers become a model's input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Coding {
    /// Ids below `vocab`, at most 256. `pad` fills a row up to the width of its batch.
    Tokens {
        /// How many ids there are.
        vocab: usize,
        /// What a row is filled up with.
        pad: u32,
    },
    /// Grey levels 0 to 255, row by row from the top; a value is `(level / 255 - mean) / std`. Rows are filled up
    /// with 0.
    Pixels {
        /// Rows of an image.
        height: usize,
        /// Columns of an image.
        width: usize,
        /// What is subtracted, on the scale 0 to 1.
        mean: f32,
        /// What is divided by, on the scale 0 to 1.
        std: f32,
    },
}

/// One split: sequences one after another in memory, a byte a token or pixel.
#[derive(Clone, Debug)]
pub struct Sequences {
    coding: Coding,
    documents: usize,
    items: Vec<u8>,
    /// Where each sequence ends.
    ends: Vec<usize>,
    labels: Vec<u8>,
}

/// Some items of a split as rows of one width.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// `[rows, width]`, row by row.
    pub inputs: Inputs,
    /// One for each item; with two documents an item, first all first ones, then all second ones.
    pub rows: usize,
    /// The longest sequence of the batch, or what was asked for if that is more.
    pub width: usize,
    /// The true length of every row.
    pub lengths: Vec<usize>,
    /// The class of every item.
    pub labels: Vec<u32>,
}

/// What a model reads.
#[derive(Clone, Debug, PartialEq)]
pub enum Inputs {
    /// Ids.
    Tokens(Vec<u32>),
    /// One channel of real values.
    Values(Vec<f32>),
}

impl Sequences {
    pub(crate) fn new(coding: Coding, documents: usize) -> Self {
        Self { coding, documents, items: Vec::new(), ends: Vec::new(), labels: Vec::new() }
    }

    /// Adds an item: its documents, and its class.
    pub(crate) fn push<I: IntoIterator<Item = u8>>(
        &mut self,
        documents: impl IntoIterator<Item = I>,
        label: u8,
    ) {
        for document in documents {
            self.items.extend(document);
            self.ends.push(self.items.len());
        }
        self.labels.push(label);
        debug_assert_eq!(self.ends.len(), self.labels.len() * self.documents);
    }

    /// How many items it has.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// How stored numbers become a model's input.
    pub fn coding(&self) -> Coding {
        self.coding
    }

    /// The class of an item.
    ///
    /// # Panics
    /// There are not so many.
    pub fn label(&self, item: usize) -> u32 {
        self.labels[item].into()
    }

    /// What is stored of a document of an item: ids, or grey levels 0 to 255.
    ///
    /// # Panics
    /// There are not so many.
    pub fn document(&self, item: usize, document: usize) -> &[u8] {
        assert!(document < self.documents, "an item has {} documents", self.documents);
        let sequence = item * self.documents + document;
        let start = if sequence == 0 { 0 } else { self.ends[sequence - 1] };
        &self.items[start..self.ends[sequence]]
    }

    /// The longest sequence.
    pub fn max_len(&self) -> usize {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| end - start).max().unwrap_or(0)
    }

    /// Share of the most frequent class: the accuracy of always saying that.
    pub fn majority(&self) -> f64 {
        let mut counts = [0usize; 256];
        self.labels.iter().for_each(|&label| counts[usize::from(label)] += 1);
        counts.into_iter().max().unwrap_or(0) as f64 / self.len().max(1) as f64
    }

    fn truncate(&mut self, items: usize) {
        if items < self.len() {
            self.labels.truncate(items);
            self.ends.truncate(items * self.documents);
            self.items.truncate(self.ends.last().copied().unwrap_or(0));
            // a small part of a large task must not keep its memory
            self.items.shrink_to_fit();
        }
    }

    /// Some items as rows that are as wide as the longest of them, or `min_width` if that is more.
    ///
    /// # Panics
    /// An index is too large.
    pub fn batch(&self, items: &[usize], min_width: Option<usize>) -> Batch {
        let order = (0..self.documents).flat_map(|document| items.iter().map(move |&item| (item, document)));
        let rows: Vec<&[u8]> = order.map(|(item, document)| self.document(item, document)).collect();
        let lengths: Vec<usize> = rows.iter().map(|row| row.len()).collect();
        let width = lengths.iter().copied().chain(min_width).max().unwrap_or(0);
        let inputs = match self.coding {
            Coding::Tokens { pad, .. } => Inputs::Tokens(filled(&rows, width, pad, u32::from)),
            Coding::Pixels { mean, std, .. } => {
                Inputs::Values(filled(&rows, width, 0.0, |level| (f32::from(level) / 255.0 - mean) / std))
            }
        };
        let labels = items.iter().map(|&item| self.label(item)).collect();
        Batch { inputs, rows: rows.len(), width, lengths, labels }
    }

    /// All items in order, in batches of `size`; the last may be smaller.
    ///
    /// # Panics
    /// `size` is 0.
    pub fn batches(&self, size: usize, min_width: Option<usize>) -> impl Iterator<Item = Batch> + '_ {
        let items: Vec<usize> = (0..self.len()).collect();
        let starts = (0..self.len()).step_by(size);
        starts.map(move |start| self.batch(&items[start..items.len().min(start + size)], min_width))
    }
}

fn filled<T: Copy>(rows: &[&[u8]], width: usize, pad: T, value: impl Fn(u8) -> T) -> Vec<T> {
    let mut values = Vec::with_capacity(rows.len() * width);
    for row in rows {
        values.extend(row.iter().map(|&item| value(item)));
        values.resize(values.len() + width - row.len(), pad);
    }
    values
}

/// What stands in a record for a set that was generated.
pub(crate) fn generated(name: String, sha256: Digest, bytes: u64, published: Option<&str>) -> DataFile {
    let verified = published == Some(sha256.as_str());
    DataFile { name, sha256, bytes, source: "generated".to_owned(), verified }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs() -> Sequences {
        let mut pairs = Sequences::new(Coding::Tokens { vocab: 10, pad: 9 }, 2);
        pairs.push([vec![1, 2], vec![3]], 0);
        pairs.push([vec![4], vec![5, 6, 7]], 1);
        pairs.push([vec![], vec![8]], 1);
        pairs
    }

    #[test]
    fn first_documents_of_a_batch_come_before_second_ones() {
        let batch = pairs().batch(&[1, 0], None);
        assert_eq!((batch.rows, batch.width), (4, 3));
        assert_eq!(batch.inputs, Inputs::Tokens(vec![4, 9, 9, 1, 2, 9, 5, 6, 7, 3, 9, 9]));
        assert_eq!(batch.lengths, [1, 2, 3, 1]);
        assert_eq!(batch.labels, [1, 0]);
        assert_eq!(pairs().batch(&[1], Some(5)).width, 5);
        assert_eq!(pairs().max_len(), 3);
        assert!((pairs().majority() - 2.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn batches_cover_every_item_once_and_truncation_keeps_the_first() {
        let mut pairs = pairs();
        let labels: Vec<u32> = pairs.batches(2, None).flat_map(|batch| batch.labels).collect();
        assert_eq!(labels, [0, 1, 1]);
        pairs.truncate(2);
        assert_eq!((pairs.len(), pairs.document(1, 1)), (2, &[5, 6, 7][..]));
        pairs.truncate(5);
        assert_eq!(pairs.len(), 2);
    }

    #[test]
    fn pixels_are_scaled() {
        let coding = Coding::Pixels { height: 1, width: 2, mean: 0.5, std: 0.25 };
        let mut image = Sequences::new(coding, 1);
        image.push([[0, 255]], 0);
        assert_eq!(image.batch(&[0], Some(3)).inputs, Inputs::Values(vec![-2.0, 2.0, 0.0]));
    }
}
