//! A teacher that answers questions with programs, over an OpenAI-compatible HTTP interface (paper, data synthesis;
//! paper card, 2.1): `POST {base URL}/chat/completions`, as hosted services and local servers have it.
//!
//! ```no_run
//! # use std::sync::atomic::AtomicBool;
//! # use replica_pad::exec::{Limits, Pool, WorkerCommand};
//! # use replica_pad::teacher::{Settings, Teacher, questions};
//! let problems = questions(r#"{"question": "What is 2 + 3?", "answer": 5}"#, "mine")?;
//! let teacher = Teacher::new(Settings::from_environment()?, "answers")?;
//! let answers = teacher.programs(&problems, 2, &AtomicBool::new(false), &|_| {});
//! let pool = Pool::new(WorkerCommand::replica(), 2, Limits::default())?;
//! let (accepted, funnel) = answers.filter(&pool)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Every answer is kept in a folder, in a file named by the digest of the base URL and the request: models of one name
//! differ between servers. Questions whose answer is there are not asked again, so an interrupted run goes on where it
//! stopped. The key is part of neither file nor message.

mod answer;
mod cache;
mod client;
mod questions;
mod usage;

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use replica_core::digest::canonical_json;
use replica_core::{Digest, Seed, atomic};
use serde::Serialize;
use serde_json::{Value, json};
use thiserror::Error;

pub use answer::extract;
pub use client::{Clock, SystemClock};
pub use questions::{QuestionsError, line, questions};
pub use usage::{Cost, Prices, Usage};

use cache::{Cache, Found, Reply};
use client::{Asked, Client};

use crate::exec::{Pool, PoolError};
use crate::problems::{Problem, Templates};
use crate::synthesis::{self, Funnel};

/// Worked examples in a prompt (paper card, 2.1, item 2).
const EXAMPLES: usize = 4;

/// Before the examples (our choice, the authors' prompt has examples only): models that chat are told what to do.
const INSTRUCTION: &str = "Answer the last question with a Python function `solution()` that computes the answer and returns it. \
     Import what you need inside the function; of the standard library only `math` is there. Write nothing but the function.";

/// The shortest key that is taken for a secret and hidden in what a server sends; local servers take any word, which
/// may stand in a program.
const SECRET: usize = 8;

/// A key. It goes into the header of requests only.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// A text without the key, should a server repeat it.
    fn hidden_in(&self, text: &str) -> String {
        if self.0.len() < SECRET { text.to_owned() } else { text.replace(&self.0, "[key]") }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(hidden)")
    }
}

/// Which teacher, and how it is asked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Base URL, without a slash at its end.
    url: String,
    key: Option<Key>,
    /// Name of the model.
    pub model: String,
    /// Temperature of sampling; 0 by default (the paper's is not known): rounds differ in their examples.
    pub temperature: f64,
    /// Most tokens of an answer.
    pub max_tokens: u32,
    /// Seed for servers that take one.
    pub seed: Option<u64>,
    /// Time for one request, from the connection to the end of the answer.
    pub timeout: Duration,
    /// Requests for one answer, at least one.
    pub attempts: u32,
    /// Pause before the second request for an answer; it doubles from one to the next.
    pub pause: Duration,
    /// A server that asks for a longer pause ends the run.
    pub longest_pause: Duration,
    /// Requests at a time, at least one.
    pub parallel: usize,
}

impl Settings {
    /// A teacher at a base URL such as `http://localhost:8000/v1`, with our defaults.
    ///
    /// # Errors
    /// Names the variable that [`Settings::from_environment`] takes the wrong part from.
    pub fn new(url: &str, model: &str, key: Option<&str>) -> Result<Self, TeacherError> {
        let wrong = |variable, problem: &str| TeacherError::Setting { variable, problem: problem.to_owned() };
        let address =
            url.strip_prefix("http://").or_else(|| url.strip_prefix("https://")).unwrap_or_default();
        if address.is_empty() || address.starts_with('/') || !address.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(wrong(URL, "is no base URL; set it to one such as http://localhost:8000/v1"));
        }
        // a password or a key in there would get into messages and files
        if address.contains(['@', '?', '#']) {
            return Err(wrong(
                URL,
                "may have no user, query or fragment; a key belongs into REPLICA_TEACHER_KEY",
            ));
        }
        let url = url.trim_end_matches('/');
        let url = url.strip_suffix("/chat/completions").unwrap_or(url).to_owned();
        if model.trim().is_empty() {
            return Err(wrong(MODEL, "is not set; set it to a model's name at that server"));
        }
        if key.is_some_and(|key| !key.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(wrong(
                KEY,
                "has a character that no key has; set it again, without blanks or ends of line",
            ));
        }
        Ok(Self {
            url,
            key: key.filter(|key| !key.is_empty()).map(|key| Key(key.to_owned())),
            model: model.to_owned(),
            temperature: 0.0,
            max_tokens: 1024,
            seed: None,
            timeout: Duration::from_secs(120),
            attempts: 6,
            pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(600),
            parallel: 4,
        })
    }

    /// As the environment says: `REPLICA_TEACHER_URL`, `REPLICA_TEACHER_MODEL`, and `REPLICA_TEACHER_KEY`, which local
    /// servers do not need.
    ///
    /// # Errors
    /// Names the variable that is missing or wrong, and what to set it to.
    pub fn from_environment() -> Result<Self, TeacherError> {
        Self::from_variables(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
    }

    /// The same from any source of variables.
    ///
    /// # Errors
    /// As [`Settings::from_environment`].
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, TeacherError> {
        let set = |name: &str| variable(name).map(|value| value.trim().to_owned()).filter(|v| !v.is_empty());
        let missing = |variable, what: &str| TeacherError::Setting {
            variable,
            problem: format!("is not set; set it to {what}"),
        };
        let url = set(URL).ok_or_else(|| {
            missing(URL, "the base URL of an OpenAI-compatible server, such as http://localhost:8000/v1")
        })?;
        let model = set(MODEL).ok_or_else(|| missing(MODEL, "a model's name at that server"))?;
        Self::new(&url, &model, set(KEY).as_deref())
    }

    /// The base URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What is sent.
    fn request(&self, prompt: &str) -> Value {
        let mut request = json!({
            "model": self.model,
            "messages": [{ "role": "user", "content": prompt }],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        });
        if let Some(seed) = self.seed {
            request["seed"] = seed.into();
        }
        request
    }
}

const URL: &str = "REPLICA_TEACHER_URL";
const MODEL: &str = "REPLICA_TEACHER_MODEL";
const KEY: &str = "REPLICA_TEACHER_KEY";

/// Why no teacher can be asked, or no more.
#[derive(Debug, Error)]
pub enum TeacherError {
    /// A variable is missing or wrong. Its value is not shown.
    #[error("{variable} {problem}")]
    Setting {
        /// Name of the variable.
        variable: &'static str,
        /// What is wrong, and what to set it to.
        problem: String,
    },
    /// The server refuses for a reason that does not pass.
    #[error("{address} refuses (status {status}): {message}; {}", advice(*.status))]
    Refused {
        /// Where the question was sent.
        address: String,
        /// The HTTP status.
        status: u16,
        /// What the server says.
        message: String,
    },
    /// The server does not answer, or says that it cannot.
    #[error(
        "{address} gave no answer, last of {attempts} requests: {problem}; see that the server runs and REPLICA_TEACHER_URL \
         is right, then run again: answers that came are kept"
    )]
    Unavailable {
        /// Where the question was sent.
        address: String,
        /// How often.
        attempts: u32,
        /// What happened the last time.
        problem: String,
    },
    /// The folder of answers cannot be read or written.
    #[error("cannot keep answers in {}: {source}; {}", path.display(), atomic::advice(.source))]
    Cache {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}

fn advice(status: u16) -> &'static str {
    match status {
        300..=399 => "set REPLICA_TEACHER_URL to where the server has moved",
        401 | 403 => "set REPLICA_TEACHER_KEY to a key that this server accepts",
        404 | 405 => "check REPLICA_TEACHER_URL, which often ends in /v1, and REPLICA_TEACHER_MODEL",
        _ => "check REPLICA_TEACHER_MODEL and the options of the request",
    }
}

/// What goes on while a teacher is asked; may come from several threads.
#[derive(Debug)]
pub enum Event<'a> {
    /// So many of so many requests have come to an end.
    Done {
        /// So many.
        done: usize,
        /// Of so many.
        total: usize,
    },
    /// A request failed and will be repeated.
    Waiting {
        /// Why it failed.
        problem: &'a str,
        /// After this time.
        pause: Duration,
    },
    /// Something a person should know.
    Warning(&'a str),
}

/// What became of the questions of all rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Questions times rounds: the sum of the next four.
    pub questions: usize,
    /// Answered with a program.
    pub programs: usize,
    /// Answered without one.
    pub no_program: usize,
    /// Without an answer that could be read; the next run asks again.
    pub unreadable: usize,
    /// Not asked, or without an answer when the run was stopped.
    pub not_answered: usize,
    /// Answers that end because they were too long (`finish_reason` is `length`), with a program or without.
    pub cut: usize,
}

/// A teacher's answers.
#[derive(Debug)]
pub struct Answers {
    /// The problems with the teacher's programs in place of their own, in the order of the questions, those of one
    /// question in the order of the rounds. Nobody has run them yet.
    pub candidates: Vec<Problem>,
    /// What became of all questions.
    pub counts: Counts,
    /// What it took.
    pub usage: Usage,
    /// What ended the asking early, if it was not the caller. What had come by then is above, and is kept.
    pub error: Option<TeacherError>,
}

impl Answers {
    /// Runs the programs and keeps those that are right; answers without a program are counted too.
    ///
    /// # Errors
    /// A worker cannot be started.
    pub fn filter(self, pool: &Pool) -> Result<(Vec<Problem>, Funnel), PoolError> {
        let (accepted, funnel) = synthesis::filter(pool, self.candidates)?;
        let no_program = self.counts.no_program;
        Ok((accepted, Funnel { offered: funnel.offered + no_program, no_program, ..funnel }))
    }
}

/// A model that is asked for programs.
pub struct Teacher {
    settings: Settings,
    client: Client,
    cache: Cache,
}

/// What one request came to.
enum Outcome {
    Answer { program: Option<String>, cut: bool, cached: bool },
    Unreadable,
}

impl Teacher {
    /// A teacher whose answers are kept in a folder, which is made if need be.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn new(settings: Settings, answers: impl Into<PathBuf>) -> Result<Self, TeacherError> {
        Self::with_clock(settings, answers, SystemClock)
    }

    /// The same with a clock of the caller's.
    ///
    /// # Errors
    /// As [`Teacher::new`].
    pub fn with_clock(
        settings: Settings,
        answers: impl Into<PathBuf>,
        clock: impl Clock + 'static,
    ) -> Result<Self, TeacherError> {
        let client = Client::new(settings.clone(), Box::new(clock));
        Ok(Self { cache: Cache::open(answers.into())?, client, settings })
    }

    /// Asks every question in every round, each round with other examples. The first round is asked to its end before
    /// the second begins. Setting `stop` ends the asking once the requests under way have ended.
    pub fn programs(
        &self,
        problems: &[Problem],
        rounds: usize,
        stop: &AtomicBool,
        events: &(dyn Fn(Event<'_>) + Sync),
    ) -> Answers {
        // a question that stands there twice is asked once
        let mut number = HashMap::new();
        let mut unique: Vec<&str> = Vec::new();
        for problem in problems {
            number.entry(problem.question.as_str()).or_insert_with(|| {
                unique.push(&problem.question);
                unique.len() - 1
            });
        }
        let prompts: Vec<String> = (0..rounds).map(examples).collect();
        let (outcomes, mut usage, error) = self.ask_all(&prompts, &unique, stop, events);

        let mut counts = Counts { questions: rounds * problems.len(), ..Counts::default() };
        let mut candidates = Vec::new();
        let mut seen = vec![false; outcomes.len()];
        for problem in problems {
            for round in 0..rounds {
                let i = round * unique.len() + number[problem.question.as_str()];
                let again = std::mem::replace(&mut seen[i], true);
                match &outcomes[i] {
                    None => counts.not_answered += 1,
                    Some(Outcome::Unreadable) => counts.unreadable += 1,
                    Some(Outcome::Answer { program, cut, cached }) => {
                        usage.cached += u64::from(*cached || again);
                        counts.cut += usize::from(*cut);
                        match program {
                            None => counts.no_program += 1,
                            Some(program) => {
                                counts.programs += 1;
                                candidates.push(Problem { program: program.clone(), ..problem.clone() });
                            }
                        }
                    }
                }
            }
        }
        Answers { candidates, counts, usage, error }
    }

    /// Outcome r q + i is that of question i of q in round r; none if it was not asked.
    fn ask_all(
        &self,
        prompts: &[String],
        questions: &[&str],
        stop: &AtomicBool,
        events: &(dyn Fn(Event<'_>) + Sync),
    ) -> (Vec<Option<Outcome>>, Usage, Option<TeacherError>) {
        let total = prompts.len() * questions.len();
        let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let error: Mutex<Option<TeacherError>> = Mutex::new(None);
        let failed = AtomicBool::new(false);
        let stopped = || stop.load(Ordering::SeqCst) || failed.load(Ordering::SeqCst);
        let work = || {
            let (mut outcomes, mut usage) = (Vec::new(), Usage::default());
            while !stopped() {
                let i = next.fetch_add(1, Ordering::SeqCst);
                if i >= total {
                    break;
                }
                let (round, question) = (i / questions.len(), questions[i % questions.len()]);
                match self.ask(&prompts[round], question, &mut usage, &stopped, events) {
                    Ok(Some(outcome)) => outcomes.push((i, outcome)),
                    Ok(None) => break,
                    Err(problem) => {
                        failed.store(true, Ordering::SeqCst);
                        error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(problem);
                        break;
                    }
                }
                events(Event::Done { done: done.fetch_add(1, Ordering::SeqCst) + 1, total });
            }
            (outcomes, usage)
        };
        let mut all: Vec<Option<Outcome>> = (0..total).map(|_| None).collect();
        let mut usage = Usage::default();
        thread::scope(|scope| {
            let threads = self.settings.parallel.max(1).min(total);
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            for thread in threads {
                let (outcomes, of_thread) =
                    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                usage.add(&of_thread);
                outcomes.into_iter().for_each(|(i, outcome)| all[i] = Some(outcome));
            }
        });
        (all, usage, error.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// One question, from the cache or the server; none if the run was stopped.
    fn ask(
        &self,
        examples: &str,
        question: &str,
        usage: &mut Usage,
        stopped: &dyn Fn() -> bool,
        events: &dyn Fn(Event<'_>),
    ) -> Result<Option<Outcome>, TeacherError> {
        let request = self.settings.request(&format!("{examples}Question: {question}\nSolution:"));
        let text = canonical_json(&request);
        let asked = json!({ "url": self.settings.url, "request": request });
        let id = Digest::of_json(&asked);
        match self.cache.get(&id)? {
            Found::Reply(reply) => return Ok(Some(outcome(&reply, true))),
            Found::Damaged(warning) => events(Event::Warning(&warning)),
            Found::Nothing => {}
        }
        match self.client.ask(&id, &text, usage, stopped, events)? {
            Asked::Stopped => Ok(None),
            Asked::Unreadable => Ok(Some(Outcome::Unreadable)),
            Asked::Reply(reply) => {
                self.cache.put(&id, asked, &reply)?;
                Ok(Some(outcome(&reply, false)))
            }
        }
    }
}

fn outcome(reply: &Reply, cached: bool) -> Outcome {
    let cut = reply.finish_reason.as_deref() == Some("length");
    Outcome::Answer { program: extract(&reply.content), cut, cached }
}

/// The part of a prompt before the question: four problems from our templates, other ones in every round, with their
/// programs as a teacher should write them. The authors' examples are partly test questions of GSM8K (paper card, 2.1).
fn examples(round: usize) -> String {
    let problems = Templates::embedded().draw((round + 1) * EXAMPLES, Seed(0), "teacher");
    let mut text = format!("{INSTRUCTION}\n\n");
    for Problem { question, program, .. } in &problems[round * EXAMPLES..] {
        let docstring = format!("def solution():\n    \"\"\"{question}\"\"\"\n");
        let program = program.replacen("def solution():\n    \n", &docstring, 1);
        text.push_str(&format!("Question: {question}\nSolution:\n{program}\n\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(url: &str, model: &str, key: &str) -> String {
        let variable = |name: &str| match name {
            URL => Some(url.to_owned()),
            MODEL => Some(model.to_owned()),
            _ => Some(key.to_owned()),
        };
        Settings::from_variables(variable).unwrap_err().to_string()
    }

    #[test]
    fn settings_name_the_variable_and_the_next_step() {
        let local = "http://localhost:8000/v1";
        assert!(error("", "m", "").starts_with("REPLICA_TEACHER_URL is not set; set it to the base URL"));
        assert!(
            error(local, " ", "").starts_with("REPLICA_TEACHER_MODEL is not set; set it to a model's name")
        );
        for url in ["localhost:8000", "ftp://a/v1", "http://", "http:///v1", "http://a b/v1"] {
            assert!(error(url, "m", "").starts_with("REPLICA_TEACHER_URL is no base URL; set it"), "{url}");
        }
        for url in ["http://me:secret@a/v1", "http://a/v1?key=secret"] {
            let error = error(url, "m", "");
            assert!(
                error.contains("a key belongs into REPLICA_TEACHER_KEY") && !error.contains("secret"),
                "{error}"
            );
        }
        let broken_key = error(local, "m", "sk-se\ncret");
        assert!(broken_key.starts_with("REPLICA_TEACHER_KEY has a character"), "{broken_key}");
        assert!(!broken_key.contains("cret"));
        let settings = Settings::new("http://a/v1/chat/completions/", "m", Some("sk-secret")).unwrap();
        assert_eq!(settings.url(), "http://a/v1");
        assert!(!format!("{settings:?}").contains("secret"));
    }

    #[test]
    fn rounds_have_other_examples_in_the_form_of_the_authors() {
        let (first, second) = (examples(0), examples(1));
        assert_ne!(first, second);
        assert_eq!(first, examples(0));
        let (head, blocks) = first.split_once("\n\nQuestion: ").unwrap();
        assert_eq!(head, INSTRUCTION);
        let blocks: Vec<&str> = blocks.split("\n\nQuestion: ").collect();
        assert_eq!(blocks.len(), EXAMPLES);
        for (block, problem) in blocks.iter().zip(Templates::embedded().draw(EXAMPLES, Seed(0), "teacher")) {
            let (question, solution) = block.split_once("\nSolution:\n").unwrap();
            assert!(
                solution.starts_with(&format!("def solution():\n    \"\"\"{question}\"\"\"\n    ")),
                "{solution}"
            );
            assert_eq!(extract(solution).as_deref(), Some(problem.program.as_str()));
        }
    }
}
