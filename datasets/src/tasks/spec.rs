//! A task as a config names it.

use std::collections::BTreeMap;

use replica_core::Digest;
use serde::{Deserialize, Serialize};

use super::{
    Aan, Cifar10Jpeg, Digits, Imdb, ListOps, MnistTest, Pathfinder, SameChapter, SequenceTask, Testament,
    WordOrder,
};
use crate::{Error, Sources, expected_digests};

/// Which task, with its parameters: `{ kind = "digits", side = 16, seed = 0 }`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum TaskSpec {
    /// Nested list operations, generated.
    #[serde(rename = "listops")]
    ListOps(ListOps),
    /// Handwritten digits, embedded.
    Digits(Digits),
    /// The test images of MNIST.
    MnistTest(MnistTest),
    /// CIFAR-10 in grey, from a copy in JPEG.
    #[serde(rename = "cifar10-jpeg")]
    Cifar10Jpeg(Cifar10Jpeg),
    /// One contour or two, drawn.
    Pathfinder(Pathfinder),
    /// Film reviews, good or bad.
    Imdb(Imdb),
    /// Passages of the Old or the New Testament, embedded.
    Testament(Testament),
    /// Words in order or shuffled, embedded.
    WordOrder(WordOrder),
    /// Pairs of papers.
    Aan(Aan),
    /// Pairs of passages, embedded.
    SameChapter(SameChapter),
}

impl TaskSpec {
    /// Generates the task, or reads it from files that are verified first.
    ///
    /// # Errors
    /// Parameters make no sense; a file is missing, refused, or not what its format says.
    pub fn load(&self, sources: &Sources) -> Result<SequenceTask, Error> {
        match self {
            Self::ListOps(listops) => listops.generate(),
            Self::Digits(digits) => digits.load(sources),
            Self::MnistTest(mnist) => mnist.load(sources),
            Self::Cifar10Jpeg(cifar) => cifar.load(sources),
            Self::Pathfinder(pathfinder) => pathfinder.generate(),
            Self::Imdb(imdb) => imdb.load(sources),
            Self::Testament(testament) => testament.load(sources),
            Self::WordOrder(order) => order.load(sources),
            Self::Aan(aan) => aan.load(sources),
            Self::SameChapter(pairs) => pairs.load(sources),
        }
    }

    /// The digests of the data, for a trial's spec, without making or reading any. Empty for a generated task whose
    /// parameters are not among the published ones: config and sources then say all.
    ///
    /// # Errors
    /// A file has no published digest.
    pub fn expected_digests(&self) -> Result<BTreeMap<String, Digest>, Error> {
        let (name, published) = match self {
            Self::ListOps(listops) => ("listops", listops.published_digest()),
            Self::Pathfinder(pathfinder) => ("pathfinder", pathfinder.published_digest()),
            Self::Digits(_) => return expected_digests("optdigits"),
            Self::MnistTest(_) => return expected_digests("mnist-test"),
            Self::Cifar10Jpeg(_) => return expected_digests("cifar10-jpeg"),
            Self::Imdb(_) => return expected_digests("imdb"),
            Self::Aan(_) => return expected_digests("aan"),
            Self::Testament(_) | Self::WordOrder(_) | Self::SameChapter(_) => {
                return expected_digests("webster-kjv");
            }
        };
        let digest = published.and_then(|text| Digest::try_from(text.to_owned()).ok());
        Ok(digest.map(|digest| (name.to_owned(), digest)).into_iter().collect())
    }
}
