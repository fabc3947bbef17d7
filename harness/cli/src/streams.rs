//! Where text goes: results to standard output, everything else to standard error.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::failure::Failure;

/// The two streams of a command, and what their other end is.
pub struct Streams {
    out: Box<dyn Write + Send>,
    err: Box<dyn Write + Send>,
    /// Whether results may be coloured.
    pub(crate) colour: bool,
    /// Whether a person watches progress.
    pub(crate) terminal: bool,
}

/// Colours with a meaning; the word beside them says the same.
#[derive(Clone, Copy)]
pub(crate) enum Tone {
    Good,
    Bad,
    Unclear,
    Quiet,
    Heading,
}

impl Streams {
    /// The process's own. `NO_COLOR` switches colours off.
    pub fn standard() -> Self {
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        Self {
            colour: !no_colour && io::stdout().is_terminal(),
            terminal: io::stderr().is_terminal(),
            out: Box::new(io::stdout()),
            err: Box::new(io::stderr()),
        }
    }

    /// Any two writers; neither is a terminal.
    pub fn to(out: impl Write + Send + 'static, err: impl Write + Send + 'static) -> Self {
        Self { out: Box::new(out), err: Box::new(err), colour: false, terminal: false }
    }

    /// Writes a line of the result. A reader that has gone does not stop the command.
    pub(crate) fn result(&mut self, line: &str) {
        let _ = writeln!(self.out, "{line}");
    }

    /// Writes a value for machines.
    pub(crate) fn json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(value)?;
        self.result(&text);
        Ok(())
    }

    /// Writes a line about what is going on.
    pub(crate) fn problem(&mut self, line: &str) {
        let _ = writeln!(self.err, "{line}");
    }

    pub(crate) fn flush(&mut self) {
        let _ = self.out.flush();
        let _ = self.err.flush();
    }

    pub(crate) fn err(&mut self) -> &mut (dyn Write + Send) {
        &mut *self.err
    }

    /// Text in a tone.
    pub(crate) fn tone(&self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Good => "32",
            Tone::Bad => "31",
            Tone::Unclear => "33",
            Tone::Quiet => "2",
            Tone::Heading => "1",
        };
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
