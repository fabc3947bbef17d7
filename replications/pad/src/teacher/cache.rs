//! Answers that have been paid for.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use replica_core::{Digest, atomic};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::TeacherError;

/// What is kept of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Reply {
    /// Empty where the server sent null.
    pub content: String,
    pub finish_reason: Option<String>,
    pub prompt_tokens: Option<u64>,
    pub completion_tokens: Option<u64>,
}

/// A file: what was asked, what came, and the digest of both.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    asked: Value,
    reply: Reply,
    digest: Digest,
}

impl Entry {
    fn digest(asked: &Value, reply: &Reply) -> Digest {
        Digest::of_json(&json!({ "asked": asked, "reply": reply }))
    }
}

/// A folder of answers, each in a file that is named by the digest of what was asked.
pub(super) struct Cache {
    folder: PathBuf,
}

/// What the cache has.
pub(super) enum Found {
    Reply(Reply),
    Nothing,
    /// A file that cannot be trusted; says where it is now.
    Damaged(String),
}

impl Cache {
    pub(super) fn open(folder: PathBuf) -> Result<Self, TeacherError> {
        match fs::create_dir_all(&folder) {
            Ok(()) => Ok(Self { folder }),
            Err(source) => Err(TeacherError::Cache { path: folder, source }),
        }
    }

    fn path(&self, id: &Digest) -> PathBuf {
        self.folder.join(&id.as_str()[..2]).join(format!("{id}.json"))
    }

    pub(super) fn get(&self, id: &Digest) -> Result<Found, TeacherError> {
        let path = self.path(id);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(source) => return Err(TeacherError::Cache { path, source }),
        };
        let problem = match serde_json::from_slice::<Entry>(&text) {
            Err(error) => error.to_string(),
            Ok(entry) if Digest::of_json(&entry.asked) != *id => "it answers another request".to_owned(),
            Ok(entry) if Entry::digest(&entry.asked, &entry.reply) != entry.digest => {
                "its content is not what was written".to_owned()
            }
            Ok(entry) => return Ok(Found::Reply(entry.reply)),
        };
        let fate = move_aside(&path, id);
        Ok(Found::Damaged(format!(
            "the kept answer {} is damaged ({problem}); {fate}, and the teacher is asked again",
            path.display()
        )))
    }

    /// Keeps an answer; `asked` is what `id` is the digest of.
    pub(super) fn put(&self, id: &Digest, asked: Value, reply: &Reply) -> Result<(), TeacherError> {
        let path = self.path(id);
        let entry = Entry { digest: Entry::digest(&asked, reply), asked, reply: reply.clone() };
        let write = || {
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            atomic::write(&path, serde_json::to_string_pretty(&entry)?.as_bytes())
        };
        write().map_err(|source| TeacherError::Cache { path: path.clone(), source })
    }
}

fn move_aside(path: &Path, id: &Digest) -> String {
    let name = |n: u32| path.with_file_name(format!("{id}.refused-{n}.json"));
    let free = (1..).map(name).find(|target| !target.exists());
    match free.map(|target| (fs::rename(path, &target), target)) {
        Some((Ok(()), target)) => format!("it was moved to {}", target.display()),
        _ => "it could not be moved aside".to_owned(),
    }
}
