//! A publication: citation, reported numbers, claims, and where we deviate from it (`paper.toml`).

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::claim::{Claim, Test};

/// The facts of a paper. Whatever could not be obtained stays unknown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Paper {
    /// Crate and command-line name, e.g. `lpa`.
    pub id: String,
    /// Full title.
    pub title: String,
    /// Short name, e.g. `LPA`.
    pub short_title: String,
    /// Authors in the paper's order.
    pub authors: Vec<String>,
    /// Venue and pages.
    pub venue: String,
    /// Year of publication.
    pub year: u16,
    /// Where to read it.
    pub url: String,
    /// The authors' code with the commit that was read, if public.
    pub code: Option<String>,
    /// What the paper claims, in a paragraph of our words.
    pub summary: String,
    /// How the method works, in a paragraph of our words.
    pub method: String,
    /// What of the paper could not be obtained, if anything.
    pub unavailable: Option<String>,
    /// Reported tables.
    #[serde(default)]
    pub reported: Vec<ReportedTable>,
    /// Claims.
    #[serde(default)]
    pub claims: Vec<Claim>,
    /// Differences between the paper and this replication.
    #[serde(default)]
    pub deviations: Vec<Deviation>,
}

/// A table of the paper, cell by cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportedTable {
    /// Unique within the paper.
    pub id: String,
    /// Caption.
    pub title: String,
    /// Where it stands, and how it was obtained.
    pub source: String,
    /// Our experiment that measures the same thing.
    pub experiment: Option<String>,
    /// Column heads, without the row label's.
    pub columns: Vec<String>,
    /// Rows, each with as many cells as there are columns.
    pub rows: Vec<ReportedRow>,
}

/// A row of a reported table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportedRow {
    /// The paper's name for it.
    pub label: String,
    /// Our variant, if one corresponds.
    pub variant: Option<String>,
    /// One cell a column.
    pub cells: Vec<Reported>,
}

/// A reported value: a number, words, or unknown (`"?"`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Reported {
    /// A number.
    Number(f64),
    /// Words; `"?"` means unknown.
    Text(String),
}

impl Reported {
    /// Whether the value could not be obtained.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Text(t) if t == "?")
    }
}

/// A difference between the paper and this replication.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deviation {
    /// What differs.
    pub what: String,
    /// Why.
    pub why: String,
}

/// What can be wrong with a `paper.toml`.
#[derive(Debug, Error)]
pub enum PaperError {
    /// Not TOML, an unknown key, or a value of the wrong kind.
    #[error("{path}: {source}")]
    Syntax {
        /// The file.
        path: String,
        /// Line, key and allowed values.
        source: Box<toml::de::Error>,
    },
    /// The TOML is well-formed and contradicts itself.
    #[error("{path}: {problem}")]
    Inconsistent {
        /// The file.
        path: String,
        /// What contradicts what.
        problem: String,
    },
}

impl Paper {
    /// Reads and checks a `paper.toml`; `path` is for error messages.
    ///
    /// # Errors
    /// An unknown key, a value of the wrong kind, a table whose rows are ragged, a name used twice.
    pub fn parse(text: &str, path: &str) -> Result<Self, PaperError> {
        let paper: Self = toml::from_str(text)
            .map_err(|e| PaperError::Syntax { path: path.to_owned(), source: Box::new(e) })?;
        paper
            .problem()
            .map_or(Ok(()), |problem| Err(PaperError::Inconsistent { path: path.to_owned(), problem }))?;
        Ok(paper)
    }

    fn problem(&self) -> Option<String> {
        let mut seen = HashSet::new();
        for id in self.claims.iter().map(|c| &c.id).chain(self.reported.iter().map(|t| &t.id)) {
            if !seen.insert(id) {
                return Some(format!("the id `{id}` is used twice; claims and tables need distinct ids"));
            }
        }
        for table in &self.reported {
            for row in &table.rows {
                if row.cells.len() != table.columns.len() {
                    let (cells, columns) = (row.cells.len(), table.columns.len());
                    let (id, label) = (&table.id, &row.label);
                    return Some(format!(
                        "table `{id}`, row `{label}`: {cells} cells for {columns} columns; write \"?\" for an unknown cell"
                    ));
                }
            }
        }
        for claim in &self.claims {
            let finite = match &claim.test {
                Test::Paired { comparisons } if comparisons.is_empty() => {
                    return Some(format!(
                        "claim `{}`: a paired test needs at least one comparison",
                        claim.id
                    ));
                }
                Test::Paired { comparisons } => comparisons.iter().all(|c| c.minimum_effect.is_finite()),
                Test::Exact { expected, tolerance, .. } => expected.is_finite() && *tolerance >= 0.0,
                Test::Untested { .. } => true,
            };
            if !finite {
                return Some(format!(
                    "claim `{}`: minimum_effect must be finite, tolerance not negative",
                    claim.id
                ));
            }
        }
        None
    }
}
