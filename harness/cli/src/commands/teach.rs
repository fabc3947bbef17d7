//! `replica teach`

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use replica_core::{atomic, environment};
use replica_datasets::{Sources, Split, TextDataset};
use replica_pad::exec::{Limits, Pool, WorkerCommand};
use replica_pad::problems::Problem;
use replica_pad::synthesis::Funnel;
use replica_pad::teacher::{Answers, Event, Settings, Teacher, TeacherError, line, questions};
use serde_json::json;

use crate::Session;
use crate::arguments::TeachOptions;
use crate::failure::Failure;
use crate::interrupt;
use crate::table::Table;

/// The data set that has a name of its own.
const GSM8K: &str = "gsm8k";

/// Where there is no bar, a line is written whenever so many requests have come to an end.
const LINE_EVERY: usize = 100;

impl From<TeacherError> for Failure {
    fn from(error: TeacherError) -> Self {
        Self::Environment(error.into())
    }
}

impl From<replica_pad::exec::PoolError> for Failure {
    fn from(error: replica_pad::exec::PoolError) -> Self {
        Self::Environment(error.into())
    }
}

pub(crate) fn teach(session: &mut Session, options: &TeachOptions) -> Result<(), Failure> {
    // whatever can be wrong on this side is found before anything is asked
    let sources = Sources::from_environment();
    let settings = settings(options)?;
    let mut problems = load(&options.questions, &sources)?;
    problems.truncate(options.first.map_or(usize::MAX, |first| first as usize));
    writable(&options.out)?;
    let pool = Pool::new(WorkerCommand::replica(), environment::cores(), Limits::default())?;
    let folder = options.answers.clone().unwrap_or_else(|| sources.cache.join("teacher"));
    let teacher = Teacher::new(settings.clone(), folder)?;

    let asking = format!(
        "asking {} at {}: {} questions, rounds: {}",
        settings.model,
        settings.url(),
        problems.len(),
        options.rounds
    );
    let mut answers = ask(session, &teacher, &problems, options.rounds.into(), &asking)?;
    let error = answers.error.take();
    let incomplete = answers.counts.not_answered > 0;
    let (counts, usage) = (answers.counts, answers.usage);
    let (accepted, funnel) = answers.filter(&pool)?;
    let distinct: BTreeSet<(&str, &str)> =
        accepted.iter().map(|p| (p.question.as_str(), p.program.as_str())).collect();
    let solved: BTreeSet<&str> = accepted.iter().map(|p| p.question.as_str()).collect();
    let (distinct, solved) = (distinct.len(), solved.len());
    let written = !incomplete && !accepted.is_empty();
    if written {
        write(&options.out, &accepted)?;
    }

    let cost = usage.cost(options.prices);
    let streams = &mut *session.streams;
    if session.arguments.global.json {
        streams.json(&json!({
            "paper": options.paper,
            "questions": options.questions,
            "rounds": options.rounds,
            "model": settings.model,
            "url": settings.url(),
            "counts": counts,
            "funnel": funnel,
            "distinct": distinct,
            "solved": solved,
            "usage": usage,
            "cost": cost,
            "prices": options.prices,
            "file": written.then_some(&options.out),
        }))?;
    } else {
        let mut table =
            Table::new(&["requests", "repeated", "kept before", "tokens sent", "received", "cost"]);
        let numbers =
            [usage.requests, usage.retries, usage.cached, usage.prompt_tokens, usage.completion_tokens];
        table.row(numbers.iter().map(u64::to_string).chain([cost.to_string()]));
        table.lines().iter().chain(&funnel_table(&funnel, distinct).lines()).for_each(|l| streams.result(l));
        for (count, what) in [
            (counts.cut, "answers were cut at their longest; --max-tokens allows more"),
            (counts.unreadable, "questions without an answer that can be read; run again to ask them again"),
            (usage.unmetered as usize, "requests whose tokens the server did not count"),
        ] {
            if count > 0 {
                streams.result(&format!("{count} {what}"));
            }
        }
        if written {
            streams.result(&format!(
                "{}: {} programs for {solved} of {} questions",
                options.out.display(),
                accepted.len(),
                problems.len()
            ));
        }
    }
    match error {
        Some(error) => Err(error.into()),
        None if incomplete => Err(Failure::Interrupted(format!(
            "stopped with {} of {} answers, and {} not written; run the same command again to go on",
            counts.questions - counts.not_answered,
            counts.questions,
            options.out.display()
        ))),
        None if accepted.is_empty() => Err(Failure::Check(format!(
            "no program is right, and {} not written; look at the answers in the folder that keeps them",
            options.out.display()
        ))),
        None => Ok(()),
    }
}

fn settings(options: &TeachOptions) -> Result<Settings, Failure> {
    let mut settings = Settings::from_environment()?;
    settings.temperature = options.temperature;
    settings.seed = options.seed;
    settings.max_tokens = options.max_tokens;
    settings.timeout = Duration::from_secs(options.timeout.into());
    settings.parallel = options.jobs.into();
    Ok(settings)
}

fn load(name: &str, sources: &Sources) -> Result<Vec<Problem>, Failure> {
    let text = if name == GSM8K {
        let data = TextDataset::load_splits(GSM8K, &[Split::Train], sources)?;
        data.split(Split::Train)?.to_owned()
    } else if Path::new(name).exists() {
        fs::read_to_string(name)
            .map_err(|error| Failure::environment(format!("cannot read {name}: {error}")))?
    } else {
        return Err(Failure::usage(format!(
            "--questions `{name}` is neither {GSM8K} nor a file that exists"
        )));
    };
    let problems = questions(&text, name).map_err(|error| Failure::Environment(error.into()))?;
    if problems.is_empty() {
        return Err(Failure::environment(format!("{name} has no questions")));
    }
    Ok(problems)
}

/// Whether a file can be written later, when its content has cost something.
fn writable(path: &Path) -> Result<(), Failure> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if path.is_dir() {
        return Err(Failure::usage(format!("--out {} is a folder; name a file", path.display())));
    }
    match tempfile::Builder::new().prefix(".teach-").tempfile_in(folder) {
        Ok(_) => Ok(()),
        Err(error) => Err(cannot_write(path, &error)),
    }
}

fn cannot_write(path: &Path, error: &std::io::Error) -> Failure {
    Failure::environment(format!("cannot write {}: {error}; {}", path.display(), atomic::advice(error)))
}

fn write(path: &Path, accepted: &[Problem]) -> Result<(), Failure> {
    let mut text = accepted.iter().map(line).collect::<Vec<_>>().join("\n");
    text.push('\n');
    atomic::write(path, text.as_bytes()).map_err(|error| cannot_write(path, &error))
}

fn ask(
    session: &mut Session,
    teacher: &Teacher,
    problems: &[Problem],
    rounds: usize,
    asking: &str,
) -> Result<Answers, Failure> {
    let stop = interrupt::flag()?;
    let quiet = session.arguments.global.quiet;
    let bar =
        (!quiet && session.streams.terminal).then(|| ProgressBar::new((problems.len() * rounds) as u64));
    if let (Some(bar), Ok(style)) = (
        &bar,
        ProgressStyle::with_template("  {pos}/{len} answers  {wide_bar:.green}  {elapsed}, {eta} left"),
    ) {
        bar.set_style(style);
    }
    let err = Mutex::new(session.streams.err());
    let say = |text: &str| match &bar {
        Some(bar) => bar.println(text),
        None => drop(writeln!(err.lock().unwrap_or_else(PoisonError::into_inner), "{text}")),
    };
    if !quiet {
        say(asking);
    }
    let answers = teacher.programs(problems, rounds, stop, &|event| match (event, &bar) {
        (Event::Warning(text), _) => say(&format!("warning: {text}")),
        (Event::Waiting { problem, pause }, _) if !quiet && !stop.load(Ordering::SeqCst) => {
            say(&format!("wait    {:.1} s: {problem}", pause.as_secs_f64()));
        }
        (Event::Done { .. }, Some(bar)) => bar.inc(1),
        (Event::Done { done, total }, None) if !quiet && (done % LINE_EVERY == 0 || done == total) => {
            say(&format!("done    {done} of {total}"));
        }
        _ => {}
    });
    if let Some(bar) = &bar {
        bar.finish_and_clear();
    }
    Ok(answers)
}

/// From answers to training data.
fn funnel_table(funnel: &Funnel, distinct: usize) -> Table {
    let mut table =
        Table::new(&["answers", "no program", "raised", "limit hit", "wrong", "right", "different"]);
    let counts = [
        funnel.offered,
        funnel.no_program,
        funnel.raised,
        funnel.limited,
        funnel.wrong,
        funnel.accepted,
        distinct,
    ];
    table.row(counts.iter().map(usize::to_string));
    table
}
