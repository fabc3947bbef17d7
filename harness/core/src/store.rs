//! The run store: finished trials, and the checkpoints of unfinished ones, as plain files.
//!
//! ```text
//! runs/lpa/3f/3fa9.../record.json   the record, once the trial has finished
//!                     checkpoint/   what the training loop needs to go on
//!                     progress.json time already spent on an interrupted trial
//!                     lock          held while a process runs the trial
//! ```
//! Two processes may share a store: a record appears whole or not at all, and a trial is run by whoever holds
//! its lock. The system releases the lock of a process that ends, however it ends.
//!
//! ```
//! # use replica_core::store::{Entry, RunStore};
//! # let folder = tempfile::tempdir()?;
//! let store = RunStore::open(folder.path())?;
//! assert!(store.records()?.is_empty());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::atomic;
use crate::digest::Digest;
use crate::record::{RECORD_VERSION, Record};
use crate::trial::TrialSpec;

/// A folder of trials.
#[derive(Clone, Debug)]
pub struct RunStore {
    root: PathBuf,
}

/// Where a trial stands when somebody wants to run it.
#[derive(Debug)]
pub enum Entry {
    /// It is the caller's to run.
    Claimed(Lease),
    /// It has been run.
    Finished(Box<Record>),
    /// Another process or thread is running it.
    Busy,
}

/// The right to run a trial; given back when dropped.
#[derive(Debug)]
pub struct Lease {
    folder: PathBuf,
    // closing the file releases the lock
    _lock: Lock,
}

/// Time spent on a trial before it was interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spent {
    /// First start, seconds since the Unix epoch.
    pub started_at: u64,
    /// Wall-clock seconds.
    pub seconds: f64,
}

/// What can go wrong with a store.
#[derive(Debug, Error)]
pub enum StoreError {
    /// A file or folder cannot be read.
    #[error("cannot read {path}: {source}; {}", atomic::advice(.source))]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file or folder cannot be written. Nothing is left half-written.
    #[error("cannot write {path}: {source}; {}", atomic::advice(.source))]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A record that cannot be trusted.
    #[error("refused {path}: {problem}; {fate}")]
    Refused {
        /// The record's file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// Where it is now, and what to do.
        fate: String,
    },
    /// A record that may not be stored.
    #[error("a record of {trial} may not be stored: {problem}")]
    Unfit {
        /// The trial.
        trial: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A reference that names no record, or several.
    #[error("`{reference}` {problem}")]
    NotFound {
        /// What was asked for.
        reference: String,
        /// Why it names no single record, and what would.
        problem: String,
    },
}

impl RunStore {
    /// Opens a store, creating its folder if need be.
    ///
    /// # Errors
    /// The folder cannot be created, or is not a folder.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let root = root.into();
        fs::create_dir_all(&root).map_err(write_error(&root))?;
        Ok(Self { root })
    }

    /// A store to read from; a folder that does not exist is an empty store.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Its folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Folder of a trial.
    pub fn folder(&self, spec: &TrialSpec) -> PathBuf {
        let id = spec.id();
        self.root.join(&spec.paper).join(&id.as_str()[..2]).join(id.as_str())
    }

    /// The record of a trial, if it has finished.
    ///
    /// # Errors
    /// The record is damaged, of another version, or of another trial; it has been moved aside then, unless
    /// somebody is running the trial, and the next call finds nothing.
    pub fn get(&self, spec: &TrialSpec) -> Result<Option<Record>, StoreError> {
        let folder = self.folder(spec);
        let path = folder.join("record.json");
        let problem = match read_record(&path, &spec.id())? {
            Content::Nothing => return Ok(None),
            Content::Record(record) => return Ok(Some(*record)),
            Content::Bad(problem) => problem,
        };
        let fate = match lock(&folder) {
            // under the lock nobody can have replaced the bad record by a good one meanwhile
            Ok(Some(_lock)) => match read_record(&path, &spec.id())? {
                Content::Nothing => return Ok(None),
                Content::Record(record) => return Ok(Some(*record)),
                Content::Bad(_) => move_aside(&path),
            },
            _ => "it is still there".to_owned(),
        };
        Err(StoreError::Refused { path, problem, fate })
    }

    /// Claims a trial, or tells that there is nothing to claim.
    ///
    /// # Errors
    /// A record that is there and cannot be trusted (moved aside: the next call claims the trial), or a folder
    /// that cannot be written.
    pub fn begin(&self, spec: &TrialSpec) -> Result<Entry, StoreError> {
        if let Some(record) = self.get(spec)? {
            return Ok(Entry::Finished(Box::new(record)));
        }
        let Some(lease) = self.claim(spec)? else { return Ok(Entry::Busy) };
        // it may have finished between the first look and the lock
        match read_record(&lease.folder.join("record.json"), &spec.id())? {
            Content::Record(record) => Ok(Entry::Finished(record)),
            _ => Ok(Entry::Claimed(lease)),
        }
    }

    /// Claims a trial whether it has finished or not; nothing if somebody is running it.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn claim(&self, spec: &TrialSpec) -> Result<Option<Lease>, StoreError> {
        let folder = self.folder(spec);
        fs::create_dir_all(&folder).map_err(write_error(&folder))?;
        Ok(lock(&folder)?.map(|lock| Lease { folder, _lock: lock }))
    }

    /// Stores a record.
    ///
    /// # Errors
    /// The record's id is not its spec's, or the folder cannot be written; an earlier record is kept then.
    pub fn put(&self, record: &Record) -> Result<(), StoreError> {
        if let Some(problem) = record_problem(record, &record.spec.id()) {
            return Err(StoreError::Unfit { trial: record.spec.path(), problem });
        }
        let folder = self.folder(&record.spec);
        fs::create_dir_all(&folder).map_err(write_error(&folder))?;
        let path = folder.join("record.json");
        let mut json = serde_json::to_vec_pretty(record)
            .map_err(|e| StoreError::Unfit { trial: record.spec.path(), problem: e.to_string() })?;
        json.push(b'\n');
        atomic::write(&path, &json).map_err(write_error(&path))
    }

    /// All records that can be trusted, by paper, experiment, variant, scale, role, seed and start.
    /// Others are left where they are; [`RunStore::get`] refuses them when they are asked for.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub fn records(&self) -> Result<Vec<Record>, StoreError> {
        let mut records = Vec::new();
        for paper in folders(&self.root)? {
            for prefix in folders(&paper)? {
                for trial in folders(&prefix)? {
                    let name = trial.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
                    let Ok(id) = Digest::try_from(name) else { continue };
                    if let Content::Record(record) = read_record(&trial.join("record.json"), &id)? {
                        records.push(*record);
                    }
                }
            }
        }
        let key = |r: &Record| {
            let s = &r.spec;
            (s.path(), s.scale, s.role, s.seed, r.started_at)
        };
        records.sort_by_cached_key(key);
        Ok(records)
    }

    /// The record that a person means: a path to a `record.json` or its folder, or the first digits of an id
    /// (at least 4).
    ///
    /// # Errors
    /// Nothing, or more than one record, fits; or it cannot be trusted.
    pub fn find(&self, reference: &str) -> Result<Record, StoreError> {
        let not_found = |problem: String| StoreError::NotFound { reference: reference.to_owned(), problem };
        let path = Path::new(reference);
        if path.exists() {
            let path = if path.is_dir() { path.join("record.json") } else { path.to_owned() };
            let refused = |problem| StoreError::Refused {
                path: path.clone(),
                problem,
                fate: "it was left where it is".to_owned(),
            };
            let text = fs::read_to_string(&path).map_err(read_error(&path))?;
            let record: Record = serde_json::from_str(&text).map_err(|e| refused(e.to_string()))?;
            return match record_problem(&record, &record.spec.id()) {
                Some(problem) => Err(refused(problem)),
                None => Ok(record),
            };
        }
        if reference.len() < 4 || !reference.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(not_found(
                "is neither a file nor the beginning of a record's id (4 hexadecimal digits or more)"
                    .to_owned(),
            ));
        }
        let mut fitting: Vec<Record> =
            self.records()?.into_iter().filter(|r| r.id.as_str().starts_with(reference)).collect();
        match fitting.len() {
            1 => Ok(fitting.remove(0)),
            0 => Err(not_found(format!(
                "names no record in {}; `replica list --json` shows their ids",
                self.root.display()
            ))),
            n => {
                let ids: Vec<&str> = fitting.iter().map(|r| r.id.short()).collect();
                Err(not_found(format!("names {n} records ({}); give more digits", ids.join(", "))))
            }
        }
    }
}

impl Lease {
    /// Folder of the trial.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder for checkpoints, created if need be; what was in it is removed unless it is to be resumed.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn checkpoints(&self, resume: bool) -> Result<PathBuf, StoreError> {
        let folder = self.folder.join("checkpoint");
        if !resume {
            self.discard_progress()?;
        }
        fs::create_dir_all(&folder).map_err(write_error(&folder))?;
        Ok(folder)
    }

    /// Removes checkpoints and the note on time spent.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn discard_progress(&self) -> Result<(), StoreError> {
        let (checkpoints, note) = (self.folder.join("checkpoint"), self.folder.join("progress.json"));
        gone(fs::remove_dir_all(&checkpoints)).map_err(write_error(&checkpoints))?;
        gone(fs::remove_file(&note)).map_err(write_error(&note))
    }

    /// Time spent before an interruption; nothing is known after a kill.
    pub fn spent(&self) -> Option<Spent> {
        serde_json::from_slice(&fs::read(self.folder.join("progress.json")).ok()?).ok()
    }

    /// Notes time spent, for the record of the resumed trial.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn note_spent(&self, spent: Spent) -> Result<(), StoreError> {
        let path = self.folder.join("progress.json");
        let json = serde_json::to_vec(&spent).unwrap_or_default();
        atomic::write(&path, &json).map_err(write_error(&path))
    }
}

enum Content {
    Nothing,
    Record(Box<Record>),
    Bad(String),
}

fn read_record(path: &Path, id: &Digest) -> Result<Content, StoreError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Content::Nothing);
        }
        Err(e) => return Err(read_error(path)(e)),
    };
    // the version is looked at first: another version's fields need not be ours
    let version = serde_json::from_slice::<serde_json::Value>(&bytes)
        .ok()
        .and_then(|value| value.get("version")?.as_u64());
    if let Some(version) = version.filter(|v| *v != u64::from(RECORD_VERSION)) {
        return Ok(Content::Bad(other_version(version)));
    }
    Ok(match serde_json::from_slice::<Record>(&bytes) {
        Err(e) => Content::Bad(format!("not a complete record ({e})")),
        Ok(record) => match record_problem(&record, id) {
            Some(problem) => Content::Bad(problem),
            None => Content::Record(Box::new(record)),
        },
    })
}

fn other_version(version: u64) -> String {
    format!("record format {version}; this program reads and writes format {RECORD_VERSION}")
}

fn record_problem(record: &Record, id: &Digest) -> Option<String> {
    let of_spec = record.spec.id();
    if record.version != RECORD_VERSION {
        Some(other_version(record.version.into()))
    } else if record.id != of_spec {
        Some(format!("its id is {} and its spec's is {}: it was edited", record.id.short(), of_spec.short()))
    } else if of_spec != *id {
        Some(format!(
            "it is the record of trial {} and lies in the folder of {}",
            of_spec.short(),
            id.short()
        ))
    } else {
        None
    }
}

fn move_aside(path: &Path) -> String {
    let free = (1..).map(|n| path.with_file_name(format!("record.refused-{n}.json"))).find(|p| !p.exists());
    match free.map(|target| (fs::rename(path, &target), target)) {
        Some((Ok(()), target)) => {
            format!("moved to {} for inspection; the trial can be run again", target.display())
        }
        Some((Err(e), _)) => format!("it could not be moved aside ({e}); remove it to run the trial again"),
        None => "it is still there".to_owned(),
    }
}

/// An exclusive lock, released when dropped.
#[derive(Debug)]
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: a process that another thread starts holds a copy of the file until it has begun. A failure
        // leaves that copy to be waited for.
        let _ = self.0.unlock();
    }
}

fn lock(folder: &Path) -> Result<Option<Lock>, StoreError> {
    let path = folder.join("lock");
    let file =
        File::options().create(true).truncate(false).write(true).open(&path).map_err(write_error(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(Lock(file))),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(e)) => Err(write_error(&path)(e)),
    }
}

fn folders(parent: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let entries = match fs::read_dir(parent) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(read_error(parent)(e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(read_error(parent))?.path();
        if path.is_dir() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn read_error(path: &Path) -> impl FnOnce(io::Error) -> StoreError + '_ {
    |source| StoreError::Read { path: path.to_owned(), source }
}

fn write_error(path: &Path) -> impl FnOnce(io::Error) -> StoreError + '_ {
    |source| StoreError::Write { path: path.to_owned(), source }
}
