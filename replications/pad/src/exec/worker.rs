//! The worker's side: reads programs, answers with outcomes, until its input ends.
//!
//! A message is its length in bytes (u32, little-endian) and JSON.

use std::io::{self, Read, Write};
use std::thread;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Limits, Outcome, interpreter};

/// What the interpreter may recurse in; touched pages alone cost memory.
const STACK: usize = 256 << 20;

/// A program to run.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Request {
    pub(super) text: String,
    pub(super) limits: Limits,
}

/// Why a worker stopped before its input did.
#[derive(Debug, Error)]
pub enum ServeError {
    /// Nobody counts what is allocated, so no limit on memory would hold.
    #[error("a worker needs `replica_core::memory::Counting` as its global allocator")]
    NotCounting,
    /// The other side is gone, or sent no message.
    #[error("a worker speaks with a pool through its standard input and output: {0}")]
    Messages(#[from] io::Error),
}

/// Answers programs from `input` on `output` until `input` ends.
///
/// # Errors
/// See [`ServeError`].
pub fn serve(
    input: impl Read + Send + 'static,
    output: impl Write + Send + 'static,
) -> Result<(), ServeError> {
    if replica_core::memory::live().is_none() {
        return Err(ServeError::NotCounting);
    }
    confine();
    let answering = thread::Builder::new().stack_size(STACK).spawn(move || answer_all(input, output))?;
    answering.join().unwrap_or_else(|_| Err(io::Error::other("the interpreter panicked"))).map_err(From::from)
}

fn answer_all(mut input: impl Read, mut output: impl Write) -> io::Result<()> {
    // the pool decides how long a program may be; this only keeps noise from being taken for a length
    while let Some(Request { text, limits }) = receive(&mut input, u32::MAX as usize)? {
        let _alarm = Alarm::set(&limits);
        let outcome: Outcome = interpreter::execute(&text, &limits);
        send(&mut output, &outcome)?;
    }
    Ok(())
}

/// Gives up what no interpreted program needs, should one ever get out of the interpreter: new files, growing files,
/// core dumps.
#[cfg(unix)]
fn confine() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    for (resource, most) in [(Resource::Nofile, 3), (Resource::Fsize, 0), (Resource::Core, 0)] {
        // a system that refuses leaves the interpreter's own walls
        let _ = setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) });
    }
}

#[cfg(not(unix))]
fn confine() {}

/// Ends the process if a program neither stops by itself nor is stopped by the pool, which may be gone.
struct Alarm;

impl Alarm {
    #[cfg(unix)]
    fn set(limits: &Limits) -> Self {
        let seconds = limits.time.as_secs().saturating_add(10);
        // SAFETY: a plain system call; the default action of the signal ends the process.
        unsafe { libc::alarm(u32::try_from(seconds).unwrap_or(u32::MAX)) };
        Self
    }

    #[cfg(not(unix))]
    fn set(_: &Limits) -> Self {
        Self
    }
}

#[cfg(unix)]
impl Drop for Alarm {
    fn drop(&mut self) {
        // SAFETY: as above; 0 takes the alarm back.
        unsafe { libc::alarm(0) };
    }
}

/// Writes a message.
pub(super) fn send(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let json = serde_json::to_vec(message)?;
    let length = u32::try_from(json.len()).map_err(|_| io::Error::other("a message of 4 GiB"))?;
    let mut frame = Vec::with_capacity(4 + json.len());
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&json);
    to.write_all(&frame)?;
    to.flush()
}

/// Reads a message of at most `most` bytes; nothing if the other side has closed.
pub(super) fn receive<T: DeserializeOwned>(from: &mut impl Read, most: usize) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > most {
        return Err(io::Error::other(format!("a message of {length} bytes, at most {most} are expected")));
    }
    let mut json = vec![0; length];
    from.read_exact(&mut json)?;
    Ok(Some(serde_json::from_slice(&json)?))
}
