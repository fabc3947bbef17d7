//! Where problems come from, by name.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use replica_core::record::DataUse;
use replica_core::{Digest, Seed, TrialError};
use replica_datasets::{Error, Sources, Split, TextDataset, catalogue, expected_digests, path};
use serde::{Deserialize, Serialize};

use crate::lesson::Problems;
use crate::problems::{Problem, Templates};
use crate::published;
use crate::renumbered::{Renumbered, held_out};
use crate::symbolic::Task;
use crate::synthesis::Gsm8k;

/// MAWPS and ASDiv-A in the catalogue.
const TEMPLATES: &str = "mawps-asdiv";

/// Share of the published templates that no student is trained on.
const HELD_OUT: f64 = 0.1;

/// Share of common words from which on two problems are worded alike (our choice).
const ALIKE: f64 = 0.8;

/// Problems that can be asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Source {
    /// Generated from this crate's templates.
    Templates {
        /// Only these; all without.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        only: Vec<String>,
        /// Numbers are so many times as large.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        factor: u32,
    },
    /// Generated coin flips.
    CoinFlips {
        /// Who flips the coin or does not.
        people: usize,
    },
    /// Generated words whose last letters are put together.
    LastLetters {
        /// How many.
        words: usize,
    },
    /// Problems of MAWPS and ASDiv-A with new numbers. A tenth of them is held out for tests.
    Renumbered {
        /// Smallest number.
        low: u32,
        /// Largest number.
        high: u32,
        /// Training leaves out problems that are worded like one of these test sets: MAWPS holds most of MultiArith,
        /// and ASDiv-A is a part of ASDiv.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        unlike: Vec<Published>,
    },
    /// A data set of the catalogue as it is.
    Published {
        /// Its name.
        set: Published,
    },
}

/// Published data sets of problems.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Published {
    /// GSM8K; programs by rule from its calculator marks.
    Gsm8k,
    /// GSM-Hard, with Codex's programs.
    GsmHard,
    /// SVAMP.
    Svamp,
    /// MultiArith.
    Multiarith,
    /// ASDiv's numeric problems.
    Asdiv,
    /// Kojima et al.'s coin flips.
    CoinFlip,
    /// Kojima et al.'s last letters.
    LastLetters,
    /// BIG-Bench Hard.
    Bbh,
    /// Codex's programs of Program of Thoughts, wrong ones included.
    PotOutputs,
}

impl Published {
    /// Its name in the catalogue.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gsm8k => "gsm8k",
            Self::GsmHard => "gsm-hard",
            Self::Svamp => "svamp",
            Self::Multiarith => "multiarith",
            Self::Asdiv => "asdiv",
            Self::CoinFlip => "coin-flip",
            Self::LastLetters => "last-letters",
            Self::Bbh => "bbh",
            Self::PotOutputs => "pot-outputs",
        }
    }

    /// The problems of one of its files.
    fn parse(self, file: &str, text: &str) -> Result<Vec<Problem>, TrialError> {
        let failed = |e: &dyn std::fmt::Display| TrialError::Data(format!("{file}: {e}").into());
        match self {
            Self::Gsm8k => {
                let problems = Gsm8k::parse(text).map_err(|e| failed(&e))?;
                Ok(problems.iter().enumerate().filter_map(|(i, problem)| problem.problem(i)).collect())
            }
            Self::GsmHard => published::gsm_hard(text).map_err(|e| failed(&e)),
            Self::Svamp => published::svamp(text).map_err(|e| failed(&e)),
            Self::Multiarith => published::multiarith(text).map_err(|e| failed(&e)),
            Self::Asdiv => published::asdiv(text).map_err(|e| failed(&e)),
            Self::CoinFlip => Task::CoinFlip.public(text).map_err(|e| failed(&e)),
            Self::LastLetters => Task::LastLetters.public(text).map_err(|e| failed(&e)),
            Self::Bbh => published::big_bench_hard(file, text).map_err(|e| failed(&e)),
            Self::PotOutputs => published::program_of_thoughts(file, text).map_err(|e| failed(&e)),
        }
    }
}

fn one() -> u32 {
    1
}

fn is_one(n: &u32) -> bool {
    *n == 1
}

/// What problems are for. No two purposes share a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Training.
    Train,
    /// Choosing a learning rate.
    Valid,
    /// What is reported.
    Test,
}

impl Purpose {
    fn name(self) -> &'static str {
        match self {
            Purpose::Train => "train",
            Purpose::Valid => "valid",
            Purpose::Test => "test",
        }
    }

    /// Training questions come from the trial's seed; all trials are measured with the same ones.
    fn seed(self, seed: Seed) -> Seed {
        if self == Purpose::Train { seed } else { Seed(0) }
    }
}

impl Source {
    /// What makes no sense, as "key = value: what is allowed".
    pub fn problem(&self) -> Option<String> {
        match self {
            Source::CoinFlips { people: 0 } => Some("people = 0: at least 1 is expected".to_owned()),
            Source::LastLetters { words: 0 } => Some("words = 0: at least 1 is expected".to_owned()),
            Source::Renumbered { low, high, .. } if *low == 0 || low >= high => {
                Some(format!("low = {low}, high = {high}: 1 or more, and more than that, are expected"))
            }
            Source::Templates { factor: 0, .. } => Some("factor = 0: at least 1 is expected".to_owned()),
            Source::Templates { only, .. } => {
                let templates = Templates::embedded();
                let known = templates.names();
                let unknown = only.iter().find(|name| !known.contains(&name.as_str()))?;
                Some(format!("only: no template `{unknown}`; known: {}", known.join(", ")))
            }
            _ => None,
        }
    }

    /// The data sets of the catalogue that it needs.
    fn sets(&self) -> Vec<&'static str> {
        match self {
            Source::Renumbered { unlike, .. } => {
                std::iter::once(TEMPLATES).chain(unlike.iter().map(|set| set.name())).collect()
            }
            Source::Published { set } => vec![set.name()],
            Source::Templates { .. } | Source::CoinFlips { .. } | Source::LastLetters { .. } => Vec::new(),
        }
    }

    /// Whether its data can be had without the network. A damaged file counts: whoever reads it is told.
    pub fn is_here(&self, sources: &Sources) -> bool {
        let missing = |set: &&str| matches!(path(set, sources), Err(Error::Missing { .. }));
        !self.sets().iter().any(missing)
    }

    /// Data by name, with the digest it must have.
    pub fn digests(&self) -> BTreeMap<String, Digest> {
        self.sets().into_iter().filter_map(|set| expected_digests(set).ok()).flatten().collect()
    }
}

/// Gives problems; files come from `sources` and are read once.
pub struct Library {
    sources: Arc<Sources>,
    published: Mutex<HashMap<&'static str, Arc<TextDataset>>>,
}

impl Library {
    /// With data from these places.
    pub fn new(sources: Arc<Sources>) -> Self {
        Self { sources, published: Mutex::default() }
    }

    /// Where files are looked for.
    pub fn sources(&self) -> &Sources {
        &self.sources
    }

    fn load(&self, set: &'static str) -> Result<Arc<TextDataset>, TrialError> {
        let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(data) = published.get(set) {
            return Ok(data.clone());
        }
        let failed = |e: replica_datasets::Error| TrialError::Data(Box::new(e));
        let splits = catalogue().get(set).map_err(failed)?.splits();
        let data = TextDataset::load_splits(set, &splits, &self.sources).map_err(failed)?;
        Ok(published.entry(set).or_insert(Arc::new(data)).clone())
    }

    /// The files of a source, for a record.
    ///
    /// # Errors
    /// Data that is missing or damaged.
    pub fn data_use(&self, source: &Source) -> Result<Vec<DataUse>, TrialError> {
        let mut used = Vec::new();
        for set in source.sets() {
            let data = self.load(set)?;
            used.extend(data.files.iter().map(|file| file.data_use(&data.licence)));
        }
        Ok(used)
    }

    fn published(&self, set: Published, purpose: Purpose) -> Result<Vec<Problem>, TrialError> {
        let data = self.load(set.name())?;
        let splits = catalogue().get(set.name()).map_err(TrialError::failed)?.splits();
        // what has one split only is a test set, or a teacher's programs
        let trained = purpose != Purpose::Test && splits.contains(&Split::Train);
        let split = if trained { Split::Train } else { Split::Test };
        let files = data.files_of(split).map_err(TrialError::failed)?;
        let problems = files.into_iter().map(|(file, text)| set.parse(file, text));
        let mut problems = problems.collect::<Result<Vec<_>, _>>()?.concat();
        // the authors validate on the first twentieth of the training file
        let rest = problems.split_off(if trained { problems.len() / 20 } else { problems.len() });
        Ok(if trained && purpose == Purpose::Train { rest } else { problems })
    }
}

impl Problems for Library {
    fn problems(
        &self,
        source: &Source,
        purpose: Purpose,
        count: usize,
        seed: Seed,
    ) -> Result<Vec<Problem>, TrialError> {
        let (seed, name) = (purpose.seed(seed), purpose.name());
        match source {
            Source::Templates { only, factor } => {
                let chosen = |name: &str| only.is_empty() || only.iter().any(|only| only == name);
                Ok(Templates::embedded().only(chosen).enlarged(*factor).draw(count, seed, name))
            }
            Source::CoinFlips { people } => Ok(Task::CoinFlip.draw(*people, count, seed, name)),
            Source::LastLetters { words } => Ok(Task::LastLetters.draw(*words, count, seed, name)),
            Source::Renumbered { low, high, unlike } => {
                let data = self.load(TEMPLATES)?;
                let text = data.split(Split::Train).map_err(TrialError::failed)?;
                let all = Renumbered::parse(text).map_err(|e| TrialError::Data(Box::new(e)))?;
                let tested = purpose == Purpose::Test;
                let mut templates = all.only(|origin| held_out(origin, HELD_OUT, Seed(0)) == tested);
                if !tested && !unlike.is_empty() {
                    let sets = unlike.iter().map(|set| self.published(*set, Purpose::Test));
                    templates = templates.unlike(&sets.collect::<Result<Vec<_>, _>>()?.concat(), ALIKE);
                }
                Ok(templates.draw(*low..=*high, count, seed, name))
            }
            Source::Published { set } => {
                let mut problems = self.published(*set, purpose)?;
                problems.truncate(count);
                Ok(problems)
            }
        }
    }
}
