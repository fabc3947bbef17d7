//! Another process that trains the same model, and the protocol it is asked by.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::error::BenchError;

/// A running twin. It is killed when dropped.
pub struct Twin {
    program: String,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// What it writes to standard error: shown if it fails.
    complaints: File,
}

/// What a twin did on `step N`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// Wall-clock seconds of every step.
    pub seconds: Vec<f64>,
    /// Processor seconds of every step, over all threads; empty where they are not measured.
    #[serde(default)]
    pub cpu_seconds: Vec<f64>,
    /// Loss of every step, before its update.
    pub losses: Vec<f64>,
}

/// Memory of a process that has trained a workload, in megabytes (10^6 bytes).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// The most it had in memory.
    pub peak_rss_mb: Option<f64>,
    /// What it had before it built the model: the program and its libraries.
    pub baseline_rss_mb: Option<f64>,
}

impl Memory {
    /// What training added to the program itself.
    pub fn added_mb(&self) -> Option<f64> {
        Some((self.peak_rss_mb? - self.baseline_rss_mb?).max(0.0))
    }
}

#[derive(Deserialize)]
struct Ready {
    ready: bool,
}

impl Twin {
    /// Starts `command` with the arguments of the protocol, and waits until it can train.
    ///
    /// # Errors
    /// It does not start, or says something else.
    pub fn start(
        program: &str,
        mut command: Command,
        weights: &Path,
        threads: usize,
    ) -> Result<Self, BenchError> {
        let failed = |problem: String| BenchError::Twin { program: program.to_owned(), problem };
        let complaints = tempfile::tempfile().map_err(|e| failed(e.to_string()))?;
        let threads = threads.to_string();
        command.arg("--weights").arg(weights).args(["--threads", &threads]);
        // the libraries behind PyTorch read these before they can be asked by calls
        command.env("OMP_NUM_THREADS", &threads).env("MKL_NUM_THREADS", &threads);
        let stderr = complaints.try_clone().map_err(|e| failed(e.to_string()))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = command.spawn().map_err(|e| failed(format!("cannot be started: {e}")))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed("has no standard streams".to_owned()));
        };
        let output = BufReader::new(output);
        let mut twin = Self { program: program.to_owned(), child, input, output, complaints };
        match twin.answer::<Ready>()? {
            Ready { ready: true } => Ok(twin),
            Ready { ready: false } => Err(twin.failure("says that it is not ready")),
        }
    }

    /// Lets it take `steps` training steps.
    ///
    /// # Errors
    /// It stopped, or answered with another number of steps.
    pub fn step(&mut self, steps: usize) -> Result<Turn, BenchError> {
        self.ask(&format!("step {steps}"))?;
        let turn: Turn = self.answer()?;
        if turn.seconds.len() != steps
            || turn.losses.len() != steps
            || ![0, steps].contains(&turn.cpu_seconds.len())
        {
            return Err(self.failure(&format!("answered `step {steps}` with {} steps", turn.seconds.len())));
        }
        Ok(turn)
    }

    /// Ends it.
    ///
    /// # Errors
    /// It stopped before.
    pub fn quit(mut self) -> Result<Memory, BenchError> {
        self.ask("quit")?;
        self.answer()
    }

    fn ask(&mut self, line: &str) -> Result<(), BenchError> {
        match writeln!(self.input, "{line}").and_then(|()| self.input.flush()) {
            Ok(()) => Ok(()),
            Err(_) => Err(self.failure("stopped")),
        }
    }

    fn answer<T: for<'a> Deserialize<'a>>(&mut self) -> Result<T, BenchError> {
        let mut line = String::new();
        match self.output.read_line(&mut line) {
            Ok(0) | Err(_) => Err(self.failure("stopped")),
            Ok(_) => {
                serde_json::from_str(&line).map_err(|e| self.failure(&format!("said `{}`: {e}", line.trim())))
            }
        }
    }

    fn failure(&mut self, problem: &str) -> BenchError {
        let mut text = String::new();
        // without its words the problem alone has to do
        let _ = self.complaints.rewind().and_then(|()| self.complaints.read_to_string(&mut text));
        let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
        let last = lines[lines.len().saturating_sub(5)..].join(" | ");
        let problem = if last.is_empty() { problem.to_owned() } else { format!("{problem}: {last}") };
        BenchError::Twin { program: self.program.clone(), problem }
    }
}

impl Drop for Twin {
    fn drop(&mut self) {
        // it may have ended already
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn shell(script: &str) -> Result<Twin, BenchError> {
        let mut command = Command::new("sh");
        command.args(["-c", script, "twin"]);
        Twin::start("the shell", command, Path::new("w.safetensors"), 2)
    }

    #[test]
    fn a_twin_is_asked_line_by_line() {
        let mut twin = shell(
            r#"test "$*" = "--weights w.safetensors --threads 2" && test "$OMP_NUM_THREADS" = 2 || exit 1
            echo '{"ready": true}'
            while read word n; do case "$word $n" in
                "step 2") echo '{"seconds": [0.5, 0.25], "losses": [3, 2.5]}';;
                "quit ") echo '{"peak_rss_mb": 30.5, "baseline_rss_mb": 10}'; exit;;
            esac; done"#,
        )
        .unwrap();
        assert_eq!(
            twin.step(2).unwrap(),
            Turn { seconds: vec![0.5, 0.25], cpu_seconds: vec![], losses: vec![3.0, 2.5] }
        );
        assert_eq!(twin.quit().unwrap().added_mb(), Some(20.5));
    }

    #[test]
    fn what_it_complained_about_is_told() {
        let error = shell("echo 'no module named torch' >&2; exit 1").err().unwrap().to_string();
        assert_eq!(error, "the shell: stopped: no module named torch");
        let error = shell("echo hello").err().unwrap().to_string();
        assert!(error.starts_with("the shell: said `hello`"), "{error}");
        let mut twin =
            shell(r#"echo '{"ready": true}'; read l; echo '{"seconds": [1], "losses": [1]}'"#).unwrap();
        let error = twin.step(3).unwrap_err().to_string();
        assert_eq!(error, "the shell: answered `step 3` with 1 steps");
    }
}
