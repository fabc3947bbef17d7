//! What a trial leaves behind.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::trial::TrialSpec;

/// Version of the record format; a store refuses records of another version.
pub const RECORD_VERSION: u32 = 1;

/// A finished trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// [`RECORD_VERSION`] when it was written.
    pub version: u32,
    /// Identity of `spec`.
    pub id: Digest,
    /// What was run.
    pub spec: TrialSpec,
    /// What was measured.
    pub measurements: Measurements,
    /// Where it was run.
    pub environment: Environment,
    /// Start, seconds since the Unix epoch.
    pub started_at: u64,
    /// Wall-clock seconds, over all parts of an interrupted and resumed run.
    pub seconds: f64,
    /// Largest number of bytes allocated at once; only for trials that had the machine for themselves.
    pub peak_memory_bytes: Option<u64>,
}

/// What a trial measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measurements {
    /// Results by metric name. A diverged tuning trial has an infinite one.
    #[serde(with = "crate::number::map")]
    pub metrics: BTreeMap<String, f64>,
    /// Curves by name, e.g. `valid_loss` over tokens.
    pub curves: BTreeMap<String, Curve>,
    /// Data that was read, as verified.
    pub data: Vec<DataUse>,
    /// One entry a training step.
    pub trace: Trace,
    /// What a reader of the report should know about this trial.
    pub notes: Vec<String>,
    /// A few inputs of a test with what the model made of them. Variants of one experiment show the same inputs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub transcripts: Vec<Transcript>,
}

/// What a model was asked and what it wrote.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transcript {
    /// What it was asked.
    pub input: String,
    /// The gold answer.
    pub expected: String,
    /// What it wrote.
    pub output: Vec<Line>,
    /// Whether that is right.
    pub right: bool,
}

/// A line of a model's output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// The line, with its indentation.
    pub text: String,
    /// What came of it, e.g. the value it computed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// A curve.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Curve {
    /// Label of the x axis, e.g. `tokens`.
    pub x_label: String,
    /// Abscissae, ascending.
    #[serde(with = "crate::number::list")]
    pub x: Vec<f64>,
    /// Ordinates.
    #[serde(with = "crate::number::list")]
    pub y: Vec<f64>,
}

/// A data file that a trial read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataUse {
    /// Data set and file, e.g. `webster-kjv/train`.
    pub name: String,
    /// Digest of the bytes that were parsed.
    pub sha256: Digest,
    /// Their number.
    pub bytes: u64,
    /// Where they came from, e.g. `embedded`.
    pub source: String,
    /// Licence of the data.
    pub licence: String,
    /// Whether the digest was known before and agreed.
    pub verified: bool,
}

/// Bits of loss and gradient norm of every step: two runs part at the first step where these differ.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Trace(pub Vec<(u32, u32)>);

impl Trace {
    /// Appends a step.
    pub fn push(&mut self, loss: f32, gradient_norm: f32) {
        self.0.push((loss.to_bits(), gradient_norm.to_bits()));
    }

    /// The first step at which the two differ, if they do.
    pub fn first_difference(&self, other: &Self) -> Option<usize> {
        let shared = self.0.iter().zip(&other.0).position(|(a, b)| a != b);
        shared.or_else(|| (self.0.len() != other.0.len()).then(|| self.0.len().min(other.0.len())))
    }

    /// Digest over all steps.
    pub fn digest(&self) -> Digest {
        Digest::of(String::from(self.clone()).as_bytes())
    }
}

impl From<Trace> for String {
    fn from(trace: Trace) -> Self {
        trace.0.iter().map(|(loss, norm)| format!("{loss:08x}{norm:08x}")).collect()
    }
}

impl TryFrom<String> for Trace {
    type Error = String;

    fn try_from(s: String) -> Result<Self, String> {
        let bad = || "a trace is 16 hexadecimal digits a step".to_owned();
        if !s.is_ascii() || !s.len().is_multiple_of(16) {
            return Err(bad());
        }
        let word = |w: &str| u32::from_str_radix(w, 16).map_err(|_| bad());
        (0..s.len())
            .step_by(16)
            .map(|i| Ok((word(&s[i..i + 8])?, word(&s[i + 8..i + 16])?)))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

/// The machine and programs a trial ran on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Environment {
    /// Version of this suite.
    pub replica: String,
    /// Git commit of this suite, with `-dirty` where the tree differed; unknown outside a checkout.
    pub commit: Option<String>,
    /// Compiler version.
    pub rustc: String,
    /// Operating system and architecture.
    pub platform: String,
    /// Processor model.
    pub cpu: String,
    /// Vector instructions in use, e.g. `avx512`.
    pub simd: String,
    /// Threads the trial had.
    pub threads: usize,
    /// Accelerator, if one was used.
    pub accelerator: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trace_round_trips_and_finds_the_first_difference() {
        let mut a = Trace::default();
        for i in 0..5 {
            a.push(1.0 / i as f32, f32::NAN);
        }
        let json = serde_json::to_string(&a).unwrap();
        assert_eq!(serde_json::from_str::<Trace>(&json).unwrap(), a);
        let mut b = a.clone();
        assert_eq!(a.first_difference(&b), None);
        b.0[3].1 ^= 1;
        assert_eq!(a.first_difference(&b), Some(3));
        b.0.truncate(2);
        assert_eq!(a.first_difference(&b), Some(2));
        assert!(serde_json::from_str::<Trace>("\"0123\"").is_err());
    }

    #[test]
    fn infinite_measurements_round_trip() {
        let mut m = Measurements::default();
        m.metrics.insert("loss".into(), f64::INFINITY);
        m.metrics.insert("count".into(), 3.0);
        let curve = Curve {
            x_label: "step".into(),
            x: vec![0.0, 1.0, 2.0],
            y: vec![0.1, f64::NEG_INFINITY, f64::NAN],
        };
        m.curves.insert("loss".into(), curve);
        let json = serde_json::to_string(&m).unwrap();
        let back: Measurements = serde_json::from_str(&json).unwrap();
        assert_eq!(back.metrics, m.metrics);
        let (y, expected) = (&back.curves["loss"].y, &m.curves["loss"].y);
        assert!(y.iter().zip(expected).all(|(a, b)| a == b || a.is_nan() && b.is_nan()));
        let bad = json.replace("\"inf\"", "\"infinite\"");
        let error = serde_json::from_str::<Measurements>(&bad).unwrap_err().to_string();
        assert!(error.contains("expected a number"), "{error}");
        let whole: Measurements = serde_json::from_str(&json.replace("3.0", "3")).unwrap();
        assert_eq!(whole.metrics["count"], 3.0);
    }
}
