//! The `replica` command as a function: arguments and papers in, an exit code out.
//!
//! Results go to standard output, progress and problems to standard error. Exit codes: 0 fine, 1 a check or a trial
//! failed, 2 usage, 3 data or environment, 130 interrupted.

mod arguments;
mod commands;
mod compared;
mod device;
mod failure;
mod interrupt;
mod progress;
pub mod registry;
mod streams;
mod study;
mod suggestion;
mod table;
mod target;

use std::ffi::OsString;

use clap::Parser;
use replica_core::Replication;

use arguments::{Arguments, Command};
use failure::Failure;
pub use streams::Streams;

/// What every command needs.
struct Session<'a> {
    registry: &'a [Box<dyn Replication>],
    arguments: &'a Arguments,
    /// The command line after the program's name, for messages that repeat it.
    words: Vec<String>,
    streams: &'a mut Streams,
}

/// Runs the command line and returns its exit code.
pub fn run(
    args: impl IntoIterator<Item = OsString>,
    registry: &[Box<dyn Replication>],
    streams: &mut Streams,
) -> u8 {
    let args: Vec<OsString> = args.into_iter().collect();
    let arguments = match Arguments::try_parse_from(&args) {
        Ok(arguments) => arguments,
        Err(help) => {
            let text =
                if streams.colour { help.render().ansi().to_string() } else { help.render().to_string() };
            // clap's help and version are results, its complaints are not
            if help.use_stderr() {
                streams.problem(text.trim_end());
            } else {
                streams.result(text.trim_end());
            }
            return u8::try_from(help.exit_code()).unwrap_or(failure::USAGE);
        }
    };
    let words = args.iter().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
    let mut session = Session { registry, arguments: &arguments, words, streams };
    let result = match &arguments.command {
        Command::List(options) => commands::list::list(&mut session, options),
        Command::Run(options) => commands::run::run(&mut session, options),
        Command::Check(options) => commands::check::check(&mut session, options),
        Command::Bless(options) => commands::bless::bless(&mut session, options),
        Command::Report(options) => commands::report::report(&mut session, options),
        Command::Data(options) => commands::data::data(&mut session, options),
        Command::Diff(options) => commands::diff::diff(&mut session, options),
        Command::Teach(options) => commands::teach::teach(&mut session, options),
        Command::Bench(options) => commands::bench::bench(&mut session, options),
        Command::Doctor => commands::doctor::doctor(&mut session),
        Command::ProgramWorker => replica_pad::exec::serve(std::io::stdin(), std::io::stdout())
            .map_err(|error| Failure::environment(error.to_string())),
    };
    let code = match result {
        Ok(()) => 0,
        Err(failure) => {
            if let Some(message) = failure.message() {
                session.streams.problem(&format!("error: {message}"));
            }
            failure.code()
        }
    };
    // a closed pipe, as of `replica list | head`, is no failure of ours
    session.streams.flush();
    code
}
