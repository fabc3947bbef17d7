//! Reference vectors of other implementations, and comparison with them.
//!
//! A folder holds `.safetensors` files whose tensors are named `<case>.<part>.<name>` (or without a case, where a file is
//! one) and whose metadata key `config` says how each case was made, and `.json` files. Tests enumerate what is there; they never list
//! cases themselves. This crate serves tests: it panics with a message where something is missing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::Value;

/// The vectors of a paper: the folder `REPLICA_ORACLE` (or its subfolder of the paper's name) if the variable
/// is set, else `golden/reference/<paper>` of this repository.
pub fn folder(paper: &str) -> PathBuf {
    match std::env::var_os("REPLICA_ORACLE") {
        Some(dir) => {
            let dir = PathBuf::from(dir);
            let inner = dir.join(paper);
            if inner.is_dir() { inner } else { dir }
        }
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/reference").join(paper),
    }
}

/// Files with this extension in a folder, sorted by name.
pub fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap_or_else(|e| panic!("{}: {e}", folder.display())).path())
        .filter(|path| path.extension().is_some_and(|e| e == extension))
        .collect();
    files.sort();
    files
}

/// A path's name without folder and extension.
pub fn stem(path: &Path) -> &str {
    path.file_stem().and_then(|s| s.to_str()).unwrap_or_default()
}

/// A JSON file.
pub fn json(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// One case of a `.safetensors` file.
pub struct Case {
    /// `<file>/<case>`, for messages.
    pub name: String,
    /// How it was made.
    pub config: Value,
    tensors: HashMap<String, Tensor>,
}

/// A file's metadata and tensors.
fn read(path: &Path) -> (HashMap<String, String>, HashMap<String, Tensor>) {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let (_, header) =
        safetensors::SafeTensors::read_metadata(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    (header.metadata().clone().unwrap_or_default(), tensors)
}

fn config(path: &Path, metadata: &HashMap<String, String>) -> Value {
    metadata.get("config").map_or(Value::Null, |text| {
        serde_json::from_str(text).unwrap_or_else(|e| panic!("{}: metadata `config`: {e}", path.display()))
    })
}

/// A file that is one case: its tensors' names start with no case.
pub fn whole(path: &Path) -> Case {
    let (metadata, tensors) = read(path);
    Case { name: stem(path).to_owned(), config: config(path, &metadata), tensors }
}

/// The cases of a file, sorted by name.
pub fn cases(path: &Path) -> Vec<Case> {
    let (metadata, all) = read(path);
    let config = config(path, &metadata);
    let mut grouped: BTreeMap<String, HashMap<String, Tensor>> = BTreeMap::new();
    for (name, tensor) in all {
        let (case, rest) = name
            .split_once('.')
            .unwrap_or_else(|| panic!("{}: tensor `{name}` names no case", path.display()));
        grouped.entry(case.to_owned()).or_default().insert(rest.to_owned(), tensor);
    }
    grouped
        .into_iter()
        .map(|(case, tensors)| Case {
            name: format!("{}/{case}", stem(path)),
            config: config.get(&case).unwrap_or(&config).clone(),
            tensors,
        })
        .collect()
}

impl Case {
    /// A tensor of the case, e.g. `in.x`.
    pub fn tensor(&self, name: &str) -> &Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("{}: no tensor `{name}`", self.name))
    }

    /// Whether the case has this tensor.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.tensors.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// All tensors of a part (`w`, `grad`, `out`), without its prefix.
    pub fn part(&self, part: &str) -> HashMap<String, Tensor> {
        let strip = |(name, t): (&String, &Tensor)| {
            Some((name.strip_prefix(part)?.strip_prefix('.')?.to_owned(), t.clone()))
        };
        self.tensors.iter().filter_map(strip).collect()
    }

    /// An integer of the case's configuration.
    pub fn size(&self, key: &str) -> usize {
        let value = self.config.get(key).and_then(Value::as_u64);
        value.unwrap_or_else(|| panic!("{}: no integer `{key}` in {}", self.name, self.config)) as usize
    }

    /// A string of the case's configuration, or empty.
    pub fn text(&self, key: &str) -> &str {
        self.config.get(key).and_then(Value::as_str).unwrap_or_default()
    }

    /// Integer ids as u32, for embeddings.
    pub fn ids(&self, name: &str) -> Tensor {
        self.tensor(name).to_dtype(DType::U32).unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }
}

/// Largest allowed difference: `absolute + relative * |expected|`.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// Absolute part.
    pub absolute: f64,
    /// Part that grows with the expected value.
    pub relative: f64,
}

/// Short form.
pub fn within(absolute: f64, relative: f64) -> Tolerance {
    Tolerance { absolute, relative }
}

/// Collects comparisons and the largest error of every case.
#[derive(Default)]
pub struct Tally {
    largest: BTreeMap<String, f64>,
    compared: BTreeSet<String>,
    failures: Vec<String>,
}

impl Tally {
    /// Compares two tensors element by element.
    pub fn tensor(&mut self, case: &str, what: &str, got: &Tensor, expected: &Tensor, tolerance: Tolerance) {
        let numbers = |t: &Tensor| -> Vec<f64> {
            let flat = t.flatten_all().and_then(|t| t.to_dtype(DType::F64)).and_then(|t| t.to_vec1());
            flat.unwrap_or_else(|e| panic!("{case}: {what}: {e}"))
        };
        if got.elem_count() != expected.elem_count() {
            self.failures.push(format!(
                "{case}: {what}: shape {:?}, expected {:?}",
                got.shape(),
                expected.shape()
            ));
        }
        self.numbers(case, what, &numbers(got), &numbers(expected), tolerance);
    }

    /// Compares two sequences of numbers.
    pub fn numbers(&mut self, case: &str, what: &str, got: &[f64], expected: &[f64], tolerance: Tolerance) {
        self.compared.insert(format!("{case} {what}"));
        if got.len() != expected.len() {
            self.failures.push(format!("{case}: {what}: {} values, expected {}", got.len(), expected.len()));
        }
        let largest = self.largest.entry(case.to_owned()).or_default();
        let mut worst: Option<(f64, usize)> = None;
        for (i, (g, e)) in got.iter().zip(expected).enumerate() {
            let difference = (g - e).abs();
            let error = if difference.is_nan() { f64::INFINITY } else { difference };
            *largest = largest.max(error);
            let excess = error - (tolerance.absolute + tolerance.relative * e.abs());
            if excess > 0.0 && worst.is_none_or(|(w, _)| excess > w) {
                worst = Some((excess, i));
            }
        }
        if let Some((_, i)) = worst {
            self.failures.push(format!(
                "{case}: {what}[{i}]: {} expected {} within {tolerance:?}",
                got[i], expected[i]
            ));
        }
    }

    /// Records an exact comparison.
    pub fn equal<T: PartialEq + std::fmt::Debug>(&mut self, case: &str, what: &str, got: &T, expected: &T) {
        self.compared.insert(format!("{case} {what}"));
        self.largest.entry(case.to_owned()).or_default();
        if got != expected {
            self.failures.push(format!("{case}: {what}: {got:?}, expected {expected:?}"));
        }
    }

    /// Prints the largest error of every case, then fails if a comparison did, or if there was none.
    pub fn finish(self) {
        for (case, error) in &self.largest {
            println!("{case:<44} largest error {error:.1e}");
        }
        println!("{} cases, {} comparisons", self.largest.len(), self.compared.len());
        assert!(!self.compared.is_empty(), "nothing was compared: the folder holds no vectors");
        assert!(
            self.failures.is_empty(),
            "{} comparisons failed:\n{}",
            self.failures.len(),
            self.failures.join("\n")
        );
    }
}
