//! The side that trusts nobody: worker processes, replaced when they die.

use std::io;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use thiserror::Error;

use super::interpreter::OUT_OF_STEPS;
use super::worker::{Request, receive, send};
use super::{Limit, Limits, Outcome};

/// Programs after which a worker is replaced, whatever it has kept of them.
const PROGRAMS_A_WORKER: usize = 5000;

/// What a worker gets beyond a program's own time to notice that it is up.
const PATIENCE: Duration = Duration::from_secs(1);

/// How to start a worker: a program that calls [`serve`](super::serve) on its standard input and output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerCommand {
    /// The program, an absolute path.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
}

impl WorkerCommand {
    /// The program that is running, which must be `replica`; where the system does not say where it lies, the one that
    /// is found by this name.
    pub fn replica() -> Self {
        let program = std::env::current_exe().unwrap_or_else(|_| "replica".into());
        Self { program, arguments: vec!["program-worker".to_owned()] }
    }
}

/// A pool that cannot do its work.
#[derive(Debug, Error)]
pub enum PoolError {
    /// A worker cannot be started.
    #[error("{}: a worker for programs does not start: {source}", program.display())]
    Start {
        /// What was started.
        program: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A worker starts but does not answer.
    #[error("{}: a worker answers a program that prints 1 with {got}; is it a program that serves?", program.display())]
    Answer {
        /// What was started.
        program: PathBuf,
        /// The answer.
        got: String,
    },
}

/// Workers that run programs, each one at a time.
pub struct Pool {
    command: WorkerCommand,
    limits: Limits,
    idle: Vec<Mutex<Option<Worker>>>,
}

impl Pool {
    /// Starts `workers` workers (at least one), and sees whether they answer.
    ///
    /// # Errors
    /// See [`PoolError`].
    pub fn new(command: WorkerCommand, workers: usize, limits: Limits) -> Result<Self, PoolError> {
        let idle = (0..workers.max(1)).map(|_| Mutex::new(None)).collect();
        let pool = Self { command, limits, idle };
        match pool.run(&["print(1)"])?.pop() {
            Some(Outcome::Finished { stdout }) if stdout == "1\n" => Ok(pool),
            got => Err(PoolError::Answer { program: pool.command.program, got: format!("{got:?}") }),
        }
    }

    /// What programs may use.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Runs programs, in any order; outcome i is that of program i.
    ///
    /// # Errors
    /// A worker cannot be started. Whatever a program does is an outcome.
    pub fn run<S: AsRef<str> + Sync>(&self, programs: &[S]) -> Result<Vec<Outcome>, PoolError> {
        let next = AtomicUsize::new(0);
        let work = &|slot: &Mutex<Option<Worker>>| -> Result<Vec<(usize, Outcome)>, PoolError> {
            let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
            let mut done = Vec::new();
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                let Some(program) = programs.get(i) else { return Ok(done) };
                done.push((i, self.run_in(&mut slot, program.as_ref())?));
            }
        };
        let mut outcomes = thread::scope(|scope| -> Result<Vec<(usize, Outcome)>, PoolError> {
            let busy = self.idle.iter().take(programs.len());
            let threads: Vec<_> = busy.map(|slot| scope.spawn(move || work(slot))).collect();
            let mut all = Vec::new();
            for thread in threads {
                let done = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                all.extend(done?);
            }
            Ok(all)
        })?;
        outcomes.sort_by_key(|(i, _)| *i);
        Ok(outcomes.into_iter().map(|(_, outcome)| outcome).collect())
    }

    /// Process ids of the workers that are alive, for whoever wants to watch them.
    pub fn process_ids(&self) -> Vec<u32> {
        let slots = self.idle.iter().map(|slot| slot.lock().unwrap_or_else(PoisonError::into_inner));
        slots.filter_map(|slot| slot.as_ref().map(|worker| worker.child.id())).collect()
    }

    fn run_in(&self, slot: &mut Option<Worker>, program: &str) -> Result<Outcome, PoolError> {
        let mut last = Outcome::Crashed { how: "never started".to_owned() };
        // a worker may have died of something else than this program
        for _ in 0..2 {
            let worker = match slot {
                Some(worker) => worker,
                None => slot.insert(Worker::start(&self.command, &self.limits)?),
            };
            match worker.run(program, &self.limits) {
                Answer::Outcome(outcome) => {
                    if worker.programs >= PROGRAMS_A_WORKER {
                        *slot = None;
                    }
                    return Ok(outcome);
                }
                Answer::Killed(limit) => {
                    *slot = None;
                    return Ok(Outcome::Limited { limit });
                }
                Answer::Died(how) => {
                    *slot = None;
                    last = Outcome::Crashed { how };
                }
            }
        }
        Ok(last)
    }
}

enum Answer {
    Outcome(Outcome),
    /// A limit that the worker could only end by ending.
    Killed(Limit),
    Died(String),
}

struct Worker {
    child: Child,
    /// Closed when the worker is dropped.
    input: Option<ChildStdin>,
    answers: Receiver<io::Result<Outcome>>,
    programs: usize,
}

impl Worker {
    fn start(command: &WorkerCommand, limits: &Limits) -> Result<Self, PoolError> {
        let failed = |source| PoolError::Start { program: command.program.clone(), source };
        let mut start = Command::new(&command.program);
        start
            .args(&command.arguments)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        // an interrupt from the keyboard is for this process, which stops at a place of its own choice
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut start, 0);
        let mut child = start.spawn().map_err(failed)?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let (sender, answers) = channel();
        // JSON may write a character of output as six
        let most = 6 * limits.output + 4096 + 6 * limits.source;
        let mut output = output.ok_or_else(|| failed(io::Error::other("no standard output")))?;
        thread::spawn(move || {
            while let Some(answer) = receive(&mut output, most).transpose() {
                let ends = answer.is_err();
                if sender.send(answer).is_err() || ends {
                    break;
                }
            }
        });
        Ok(Self { child, input, answers, programs: 0 })
    }

    fn run(&mut self, program: &str, limits: &Limits) -> Answer {
        self.programs += 1;
        let request = Request { text: program.to_owned(), limits: *limits };
        let sent = self.input.as_mut().map(|input| send(input, &request));
        if !matches!(sent, Some(Ok(()))) {
            return self.end();
        }
        match self.answers.recv_timeout(limits.time + PATIENCE) {
            Ok(Ok(outcome)) => Answer::Outcome(outcome),
            Ok(Err(noise)) => Answer::Died(format!("the worker sent noise: {noise}")),
            Err(RecvTimeoutError::Timeout) => Answer::Killed(Limit::Time),
            Err(RecvTimeoutError::Disconnected) => self.end(),
        }
    }

    /// What a worker's death says.
    fn end(&mut self) -> Answer {
        // one that is on its way out keeps the status it goes with
        let _ = self.child.kill();
        match self.child.wait() {
            Ok(status) if status.code() == Some(replica_core::memory::CEILING_EXIT) => {
                Answer::Killed(Limit::Memory)
            }
            Ok(status) if status.code() == Some(OUT_OF_STEPS) => Answer::Killed(Limit::Steps),
            Ok(status) if is_alarm(status) => Answer::Killed(Limit::Time),
            Ok(status) => Answer::Died(format!("the worker ended with {status}")),
            Err(error) => Answer::Died(format!("the worker is gone: {error}")),
        }
    }
}

#[cfg(unix)]
fn is_alarm(status: ExitStatus) -> bool {
    std::os::unix::process::ExitStatusExt::signal(&status) == Some(libc::SIGALRM)
}

#[cfg(not(unix))]
fn is_alarm(_: ExitStatus) -> bool {
    false
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.input.take());
        // it may be busy, or deaf
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
