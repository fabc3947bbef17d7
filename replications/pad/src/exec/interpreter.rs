//! One program in this process. Only workers call this: over its hard ceiling of memory the process ends.

use std::borrow::Cow;
use std::process;
use std::sync::atomic::Ordering;

use monty::MontyRepl;
use monty_types::{
    BASELINE_MEMORY, CompileOptions, ExcType, LIVE_MEMORY, MontyException, PrintWriter, PrintWriterCallback,
    ResourceLimits, ResourceTracker,
};
use replica_core::memory;

use super::{Limit, Limits, Outcome};

/// Exit code of a worker whose program went on after the steps were used up.
pub(super) const OUT_OF_STEPS: i32 = 66;

/// Instructions between two calls of [`PrintWriterCallback::poll_flush`].
const STEPS_A_POLL: u64 = 256;

/// Polls that a program gets to end by itself once a limit was hit: it may catch what it is told.
const GRACE: u64 = 1000;

/// Runs a program and says what became of it.
pub(super) fn execute(text: &str, limits: &Limits) -> Outcome {
    if text.len() > limits.source {
        return Outcome::Limited { limit: Limit::Source };
    }
    let before = memory::live().unwrap_or(0);
    memory::set_ceiling(Some(before + 2 * limits.memory));
    BASELINE_MEMORY.store(before as usize, Ordering::Relaxed);
    LIVE_MEMORY.store(before as usize, Ordering::Relaxed);
    let mut printer = Printer {
        text: String::new(),
        limit: limits.output,
        polls: limits.steps / STEPS_A_POLL,
        polled: 0,
        hit: None,
    };
    let result = run(text, limits, &mut printer);
    memory::set_ceiling(None);
    match (printer.hit, result) {
        (Some(limit), _) => Outcome::Limited { limit },
        (None, Ok(())) if is_wrong(text, &printer.text) => {
            Outcome::Unsupported { what: "a power that is complex or out of range".to_owned() }
        }
        (None, Ok(())) => Outcome::Finished { stdout: printer.text },
        (None, Err(exception)) => from_exception(exception),
    }
}

/// Rounds to digits as CPython does, which the interpreter does not: 2.675 is below what it looks like.
const ROUND: &str = "\
_whole_round = round
def round(number, ndigits=None):
    if isinstance(number, float) and ndigits is not None and 0 <= ndigits < 300:
        return float(f'{number:.{ndigits}f}')
    if ndigits is None:
        return _whole_round(number)
    return _whole_round(number, ndigits)
";

fn run(text: &str, limits: &Limits, printer: &mut Printer) -> Result<(), MontyException> {
    let resources = ResourceLimits::default()
        .max_duration(limits.time)
        .max_memory(limits.memory as usize)
        .max_recursion_depth(limits.recursion);
    let mut session =
        MontyRepl::new("program.py", ResourceTracker::new(resources), CompileOptions::default());
    if text.contains("round") {
        session.feed_run(ROUND, Vec::new(), PrintWriter::Disabled)?;
    }
    session.feed_run(text, Vec::new(), PrintWriter::Callback(printer)).map(drop)
}

/// Whether a result may come from the interpreter's powers, which give nan or inf where Python gives a complex number
/// or an OverflowError.
fn is_wrong(text: &str, stdout: &str) -> bool {
    let power = text.contains("**") || text.contains("pow");
    power && stdout.split(|c: char| !c.is_alphanumeric()).any(|word| matches!(word, "nan" | "inf"))
}

fn from_exception(exception: MontyException) -> Outcome {
    let message = exception.message().unwrap_or_default();
    let limit = match exception.exc_type() {
        ExcType::MemoryError if message.starts_with("memory limit exceeded") => Some(Limit::Memory),
        ExcType::TimeoutError if message.starts_with("time limit exceeded") => Some(Limit::Time),
        _ => None,
    };
    match limit {
        Some(limit) => Outcome::Limited { limit },
        None => Outcome::Raised {
            kind: exception.exc_type().to_string(),
            message: message.to_owned(),
            line: exception.traceback().last().map(|frame| frame.start.line),
        },
    }
}

/// Takes what is printed, and counts steps where the interpreter asks whether to flush.
struct Printer {
    text: String,
    limit: usize,
    /// Polls that are allowed.
    polls: u64,
    polled: u64,
    hit: Option<Limit>,
}

impl Printer {
    fn push(&mut self, text: &str) -> Result<(), MontyException> {
        if self.text.len() + text.len() > self.limit {
            return Err(self.over(Limit::Output));
        }
        self.text.push_str(text);
        Ok(())
    }

    fn over(&mut self, limit: Limit) -> MontyException {
        let limit = *self.hit.get_or_insert(limit);
        // from now on only the grace is left
        self.polls = self.polls.min(self.polled);
        MontyException::new(ExcType::MemoryError, Some(format!("{limit} limit exceeded")))
    }
}

impl PrintWriterCallback for Printer {
    fn stdout_write(&mut self, output: Cow<'_, str>) -> Result<(), MontyException> {
        self.push(&output)
    }

    fn stdout_push(&mut self, end: char) -> Result<(), MontyException> {
        self.push(end.encode_utf8(&mut [0; 4]))
    }

    fn poll_flush(&mut self) -> Result<(), MontyException> {
        LIVE_MEMORY.store(memory::live().unwrap_or(0) as usize, Ordering::Relaxed);
        self.polled += 1;
        if self.polled <= self.polls {
            return Ok(());
        }
        if self.polled > self.polls + GRACE {
            // it catches every exception
            process::exit(OUT_OF_STEPS);
        }
        Err(self.over(Limit::Steps))
    }
}
