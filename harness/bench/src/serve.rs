//! This engine at the other end of the protocol: a process of its own, whose memory is comparable with a twin's.

use std::io::{BufRead, Write};
use std::path::Path;

use serde_json::json;

use crate::error::BenchError;
use crate::resident;
use crate::trainer::Trainer;
use crate::workload::Workload;

/// Answers the lines of `input` until `quit` or its end. Call it inside the pool that steps should use.
///
/// # Errors
/// The workload cannot be loaded or a step fails; a line that is no command.
pub fn serve(
    workload: &dyn Workload,
    weights: &Path,
    input: impl BufRead,
    mut output: impl Write,
) -> Result<(), BenchError> {
    let said = |problem: String| BenchError::Twin { program: workload.name().to_owned(), problem };
    let mut say = |line: serde_json::Value| {
        writeln!(output, "{line}").and_then(|()| output.flush()).map_err(|e| said(e.to_string()))
    };
    let baseline = resident::now_mb();
    let mut trainer = Trainer::load(workload, weights)?;
    say(json!({ "ready": true }))?;
    for line in input.lines() {
        let line = line.map_err(|e| said(e.to_string()))?;
        let mut words = line.split_whitespace();
        match (words.next(), words.next().map(str::parse::<usize>)) {
            (Some("step"), Some(Ok(steps))) => {
                let turn = trainer.turn(steps)?;
                say(json!(turn))?;
            }
            (Some("quit"), None) => {
                return say(json!({ "peak_rss_mb": resident::peak_mb(), "baseline_rss_mb": baseline }));
            }
            _ => return Err(said(format!("`{line}` is neither `step N` nor `quit`"))),
        }
    }
    Ok(())
}
