//! A Python that can import torch, and the twins' scripts, which are part of this program.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::BenchError;

/// The scripts of `ci/bench/` by name.
pub const SCRIPTS: &[(&str, &str)] = &[
    ("twin.py", include_str!("../../../ci/bench/twin.py")),
    ("decoder.py", include_str!("../../../ci/bench/decoder.py")),
    ("encoder_decoder.py", include_str!("../../../ci/bench/encoder_decoder.py")),
    ("bert_layers.py", include_str!("../../../ci/bench/bert_layers.py")),
    ("bert.py", include_str!("../../../ci/bench/bert.py")),
    ("bob.py", include_str!("../../../ci/bench/bob.py")),
    ("s4d.py", include_str!("../../../ci/bench/s4d.py")),
    ("selective_scan.py", include_str!("../../../ci/bench/selective_scan.py")),
];

/// An interpreter that imports torch.
#[derive(Clone, Debug)]
pub struct Python {
    path: PathBuf,
    /// Version of torch.
    pub torch: String,
}

impl Python {
    /// Whether `path` (looked up as the shell does) is a Python that imports torch; if not, why.
    ///
    /// # Errors
    /// It cannot be started, or has no torch.
    pub fn at(path: &Path) -> Result<Self, String> {
        let output = Command::new(path).args(["-c", "import torch; print(torch.__version__)"]).output();
        match output {
            Err(e) => Err(format!("{} cannot be started: {e}", path.display())),
            Ok(output) if output.status.success() => {
                let torch = String::from_utf8_lossy(&output.stdout).trim().to_owned();
                Ok(Self { path: path.to_owned(), torch })
            }
            Ok(output) => {
                let complaint = String::from_utf8_lossy(&output.stderr);
                let last = complaint.lines().last().unwrap_or("it failed without a word").to_owned();
                Err(format!("{} cannot import torch: {last}", path.display()))
            }
        }
    }

    /// A command that runs the script `name` from `folder` with further arguments.
    pub fn command(&self, folder: &Path, name: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.path);
        command.arg(folder.join(name)).args(arguments.iter().map(OsStr::new));
        command
    }
}

/// Writes all scripts to `folder`.
///
/// # Errors
/// It cannot be written.
pub fn write_scripts(folder: &Path) -> Result<(), BenchError> {
    for (name, text) in SCRIPTS {
        let path = folder.join(name);
        fs::write(&path, text).map_err(BenchError::io(&path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told() {
        let error = Python::at(Path::new("no-such-python")).expect_err("there is no such program");
        assert!(error.starts_with("no-such-python cannot be started"), "{error}");
    }

    #[test]
    fn every_workload_has_its_script() {
        for workload in crate::workload::all() {
            let script = workload.twin();
            assert!(SCRIPTS.iter().any(|(name, _)| *name == script), "{}: {script}", workload.name());
        }
    }
}
