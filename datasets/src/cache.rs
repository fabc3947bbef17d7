//! The folder of verified files.
//!
//! ```text
//! files/ab/abcd...      content that was verified, named by its SHA-256
//! partial/KEY           a download under way or broken off, taken up again next time
//! locks/KEY             held by the process that downloads
//! first-use/SET/FILE    the digest of a first download, where none is published
//! quarantine/FILE.xxxx  what was refused, for inspection
//! ```
//!
//! Files appear under their final name only when complete, so that processes can share the folder.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use replica_core::Digest;
use serde::{Deserialize, Serialize};

use crate::Error;

pub(crate) struct Cache<'a> {
    root: &'a Path,
}

/// What a first download brought, where no digest is published.
#[derive(Serialize, Deserialize)]
pub(crate) struct FirstUse {
    pub(crate) sha256: Digest,
    pub(crate) bytes: u64,
    pub(crate) url: String,
}

impl<'a> Cache<'a> {
    pub(crate) fn new(root: &'a Path) -> Self {
        Self { root }
    }

    /// Where verified content of that digest lies, or would.
    pub(crate) fn path_of(&self, digest: &Digest) -> PathBuf {
        self.root.join("files").join(&digest.as_str()[..2]).join(digest.as_str())
    }

    /// Where a download is collected.
    pub(crate) fn partial(&self, key: &Digest) -> Result<PathBuf, Error> {
        Ok(self.folder("partial")?.join(key.as_str()))
    }

    /// Waits until no other process downloads the same file. Dropping the handle releases it.
    pub(crate) fn lock(&self, key: &Digest) -> Result<File, Error> {
        let path = self.folder("locks")?.join(key.as_str());
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(Error::io("open the lock file", &path))?;
        file.lock().map_err(Error::io("lock", &path))?;
        Ok(file)
    }

    /// Gives verified content its final name.
    pub(crate) fn admit(&self, partial: &Path, digest: &Digest) -> Result<PathBuf, Error> {
        let path = self.path_of(digest);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        }
        File::open(partial).and_then(|f| f.sync_all()).map_err(Error::io("write", partial))?;
        fs::rename(partial, &path).map_err(Error::io("put in place", &path))?;
        sync_parent(&path);
        Ok(path)
    }

    pub(crate) fn first_use(&self, dataset: &str, file: &str) -> Result<Option<FirstUse>, Error> {
        let path = self.root.join("first-use").join(dataset).join(file);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| Error::Io {
                action: "read the record",
                path,
                source: io::Error::other(e),
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("read the record", &path)(e)),
        }
    }

    pub(crate) fn remember(&self, dataset: &str, file: &str, record: &FirstUse) -> Result<(), Error> {
        let folder = self.root.join("first-use").join(dataset);
        let path = folder.join(file);
        let write = || -> io::Result<()> {
            fs::create_dir_all(&folder)?;
            let mut temporary = tempfile::NamedTempFile::new_in(&folder)?;
            temporary.write_all(&serde_json::to_vec_pretty(record)?)?;
            temporary.as_file().sync_all()?;
            temporary.persist(&path)?;
            sync_parent(&path);
            Ok(())
        };
        write().map_err(Error::io("write the record", &path))
    }

    /// Moves a refused file of the cache to the quarantine; says where it is now.
    pub(crate) fn move_aside(&self, path: &Path, name: &str, content: &Digest) -> String {
        let moved = self.quarantine(name, content).and_then(|kept| fs::rename(path, &kept).map(|()| kept));
        match moved {
            Ok(kept) => format!(
                "It was not used and is now {}. Run the command again to get a fresh copy.",
                kept.display()
            ),
            Err(e) => format!("It was not used, but could not be moved aside ({e}): remove it."),
        }
    }

    /// Copies a refused file of the user's to the quarantine; says where the copy is.
    pub(crate) fn copy_aside(&self, path: &Path, name: &str, content: &Digest) -> String {
        let copied = self.quarantine(name, content).and_then(|kept| fs::copy(path, &kept).map(|_| kept));
        match copied {
            Ok(kept) => format!(
                "It was not used and not changed; a copy is kept as {}. Replace or remove the file.",
                kept.display()
            ),
            Err(e) => format!(
                "It was not used and not changed (no copy could be kept: {e}). Replace or remove the file."
            ),
        }
    }

    fn quarantine(&self, name: &str, content: &Digest) -> io::Result<PathBuf> {
        let folder = self.root.join("quarantine");
        fs::create_dir_all(&folder)?;
        Ok(folder.join(format!("{name}.{}", content.short())))
    }

    fn folder(&self, name: &str) -> Result<PathBuf, Error> {
        let path = self.root.join(name);
        fs::create_dir_all(&path)
            .map_err(Error::io("create (set REPLICA_CACHE to a folder you can write to)", &path))?;
        Ok(path)
    }
}

/// Makes a rename durable, where folders can be synced; the content itself is synced before.
fn sync_parent(path: &Path) {
    if let Some(folder) = path.parent().and_then(|parent| File::open(parent).ok()) {
        folder.sync_all().ok();
    }
}
