//! What methods made of a few inputs of the test, side by side.

use replica_core::record::{Line, Transcript};
use replica_core::{Evidence, Experiment, Record};
use serde::Serialize;

/// Examples that are shown without being unfolded.
const OPEN: usize = 1;

/// The examples of an experiment.
#[derive(Debug, Serialize)]
pub(crate) struct Examples {
    /// The seed whose trials wrote them.
    seed: u64,
    /// Shown at once.
    open: Vec<Example>,
    /// Unfolded on request.
    folded: Vec<Example>,
}

#[derive(Debug, Serialize)]
struct Example {
    input: String,
    expected: String,
    written: Vec<Written>,
}

#[derive(Debug, Serialize)]
struct Written {
    label: String,
    right: bool,
    lines: Vec<Line>,
}

/// The examples of the first seed that has any: all inputs that its trials recorded, in their order.
pub(crate) fn examples(evidence: &Evidence, experiment: &Experiment) -> Option<Examples> {
    let records = |variant: &str| evidence.records(&experiment.id, variant);
    let all = || experiment.variants.iter().flat_map(|v| records(&v.id));
    let seed = all().filter(|r| !r.measurements.transcripts.is_empty()).map(|r| r.spec.seed).min()?;
    let of_seed: Vec<(&str, &Record)> = experiment
        .variants
        .iter()
        .filter_map(|v| {
            let record = records(&v.id).into_iter().find(|r| r.spec.seed == seed)?;
            Some((v.label.as_str(), record))
        })
        .collect();
    let mut inputs: Vec<&Transcript> = Vec::new();
    for transcript in of_seed.iter().flat_map(|(_, record)| &record.measurements.transcripts) {
        if !inputs.iter().any(|known| known.input == transcript.input) {
            inputs.push(transcript);
        }
    }
    let example = |asked: &Transcript| {
        let written = |(label, record): &(&str, &Record)| {
            let found = record.measurements.transcripts.iter().find(|t| t.input == asked.input)?;
            let lines = found.output.clone();
            Some(Written { label: (*label).to_owned(), right: found.right, lines })
        };
        Example {
            input: asked.input.clone(),
            expected: asked.expected.clone(),
            written: of_seed.iter().filter_map(written).collect(),
        }
    };
    let mut open: Vec<Example> = inputs.into_iter().map(example).collect();
    let folded = open.split_off(OPEN.min(open.len()));
    Some(Examples { seed, open, folded })
}
