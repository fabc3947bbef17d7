//! Finding a file and checking it before anything reads it.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

use replica_core::Digest;

use crate::cache::{Cache, FirstUse};
use crate::catalogue::{Entry, FileEntry, catalogue};
use crate::download::{self, Remote};
use crate::error::Refusal;
use crate::packing::Packing;
use crate::status::Progress;
use crate::{Error, Sources, embedded};

/// Files up to this size are hashed and parsed from the same bytes in memory.
const IN_MEMORY: u64 = 64 << 20;

/// A file whose content was checked.
pub(crate) struct Found {
    pub(crate) content: Content,
    pub(crate) digest: Digest,
    pub(crate) bytes: u64,
    pub(crate) source: &'static str,
    pub(crate) path: Option<PathBuf>,
    /// Its digest is the published one, not one recorded at the first download.
    pub(crate) verified: bool,
}

pub(crate) enum Content {
    Memory(Vec<u8>),
    /// At its start.
    File(File),
}

/// What is in the places that need no network.
pub(crate) enum Local {
    Good(Found),
    Bad(Box<Bad>),
    /// With the places that were looked in.
    Absent(Vec<String>),
}

/// A file that must not be used.
pub(crate) struct Bad {
    path: PathBuf,
    refusal: Refusal,
    /// Of the file as it lies there, packed or not.
    content: Digest,
    in_cache: bool,
}

impl Bad {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn problem(&self) -> String {
        self.refusal.to_string()
    }

    /// Puts it, or a copy, into the quarantine.
    pub(crate) fn refuse(self, entry: &Entry, file: &FileEntry, sources: &Sources) -> Error {
        let cache = Cache::new(&sources.cache);
        let kept = if self.in_cache {
            cache.move_aside(&self.path, &file.name, &self.content)
        } else {
            cache.copy_aside(&self.path, &file.name, &self.content)
        };
        Error::Refused {
            dataset: entry.name.clone(),
            file: file.name.clone(),
            path: self.path,
            refusal: Box::new(self.refusal),
            kept,
        }
    }
}

/// What a file must be.
struct Expected<'a> {
    entry: &'a Entry,
    file: &'a FileEntry,
    digest: Option<Digest>,
    bytes: Option<u64>,
}

impl<'a> Expected<'a> {
    fn new(entry: &'a Entry, file: &'a FileEntry, sources: &Sources) -> Result<Self, Error> {
        let (digest, bytes) = match &file.sha256 {
            Some(digest) => (Some(digest.clone()), file.bytes),
            None if file.first_use => match Cache::new(&sources.cache).first_use(&entry.name, &file.name)? {
                Some(record) => (Some(record.sha256), Some(record.bytes)),
                None => (None, None),
            },
            None => {
                let (dataset, file) = (entry.name.clone(), file.name.clone());
                return Err(Error::NoPublishedDigest { dataset, file });
            }
        };
        Ok(Self { entry, file, digest, bytes })
    }

    fn refusal(&self, actual: &Digest, bytes: u64) -> Option<Refusal> {
        let expected = self.digest.as_ref().filter(|expected| *expected != actual)?;
        let own =
            self.entry.files.iter().find(|f| f.sha256.as_ref() == Some(actual)).map(|f| f.name.as_str());
        if let Some(is) = own.or_else(|| catalogue().file_with(actual)) {
            return Some(Refusal::Swapped { is: is.to_owned(), file: self.file.name.clone() });
        }
        match self.bytes {
            Some(expected) if bytes < expected => Some(Refusal::Truncated { bytes, expected }),
            _ => Some(Refusal::Corrupted { actual: actual.clone(), bytes, expected: expected.clone() }),
        }
    }

    fn found(
        &self,
        content: Content,
        digest: Digest,
        bytes: u64,
        source: &'static str,
        path: Option<PathBuf>,
    ) -> Found {
        Found { content, digest, bytes, source, path, verified: self.file.sha256.is_some() }
    }
}

/// A path that may hold the file.
struct Candidate {
    path: PathBuf,
    source: &'static str,
    packing: Packing,
}

/// Looks in the places that need no network; changes nothing.
pub(crate) fn look(entry: &Entry, file: &FileEntry, sources: &Sources) -> Result<Local, Error> {
    look_for(&Expected::new(entry, file, sources)?, sources)
}

fn look_for(expected: &Expected<'_>, sources: &Sources) -> Result<Local, Error> {
    let file = expected.file;
    let mut looked = Vec::new();
    for candidate in candidates(expected, sources) {
        if let Some(local) = inspect(&candidate, expected)? {
            return Ok(local);
        }
        looked.push(format!("{}: {}", candidate.source, candidate.path.display()));
    }
    if sources.folder.is_none() && file.folder.is_some() {
        looked.push("REPLICA_DATA: not set".to_owned());
    }
    if file.embedded
        && let Some(read) = embedded::read(&file.name)
    {
        let bytes = read.map_err(Error::io("unpack the embedded", Path::new(&file.name)))?;
        let (digest, length) = (Digest::of(&bytes), bytes.len() as u64);
        return Ok(match expected.refusal(&digest, length) {
            None => Local::Good(expected.found(Content::Memory(bytes), digest, length, "embedded", None)),
            Some(refusal) => Local::Bad(Box::new(Bad {
                path: PathBuf::from(format!("{} in the binary", file.name)),
                refusal,
                content: digest,
                in_cache: false,
            })),
        });
    }
    if let Some(hub) = &file.hub {
        if let Some(path) = download::hub_cached(hub, sources) {
            let candidate = Candidate { path, source: "hub cache", packing: Packing::Plain };
            if let Some(local) = inspect(&candidate, expected)? {
                return Ok(local);
            }
        }
        looked.push(format!("hub cache: {} at {}, {}", hub.repo, hub.revision, hub.path));
    }
    Ok(Local::Absent(looked))
}

fn candidates(expected: &Expected<'_>, sources: &Sources) -> Vec<Candidate> {
    let mut candidates = Vec::new();
    if let Some(digest) = &expected.digest {
        let path = Cache::new(&sources.cache).path_of(digest);
        candidates.push(Candidate { path, source: "cache", packing: Packing::Plain });
    }
    if let Some(folder) = &sources.folder {
        let mut add = |relative: &str, packing| {
            candidates.push(Candidate { path: folder.join(relative), source: "REPLICA_DATA", packing });
        };
        if let Some(relative) = &expected.file.folder {
            let (packing, plain) = Packing::of(relative);
            add(relative, packing);
            if packing != Packing::Plain {
                add(plain, Packing::Plain);
            }
        }
        if let Some(digest) = &expected.digest {
            add(digest.as_str(), Packing::Plain);
        }
    }
    candidates
}

/// The content of a path, checked; none if there is no such file.
fn inspect(candidate: &Candidate, expected: &Expected<'_>) -> Result<Option<Local>, Error> {
    let path = &candidate.path;
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(e) => return Err(Error::io("open", path)(e)),
    };
    let bad = |refusal, content| {
        let in_cache = candidate.source == "cache";
        Ok(Some(Local::Bad(Box::new(Bad { path: path.clone(), refusal, content, in_cache }))))
    };
    let length = file.metadata().map_err(Error::io("read", path))?.len();
    let (content, digest, bytes) = if candidate.packing != Packing::Plain || length <= IN_MEMORY {
        let mut raw = Vec::new();
        file.read_to_end(&mut raw).map_err(Error::io("read", path))?;
        match candidate.packing.unpack(&raw) {
            Ok(Some(unpacked)) => raw = unpacked,
            Ok(None) => {}
            Err(e) => {
                let problem = match e.kind() {
                    io::ErrorKind::UnexpectedEof => {
                        format!("truncated: it ends early, after {length} bytes")
                    }
                    _ => e.to_string(),
                };
                return bad(Refusal::Packed { problem }, Digest::of(&raw));
            }
        }
        let (digest, bytes) = (Digest::of(&raw), raw.len() as u64);
        (Content::Memory(raw), digest, bytes)
    } else {
        let (digest, bytes) = Digest::of_reader(&mut file).map_err(Error::io("read", path))?;
        file.rewind().map_err(Error::io("read", path))?;
        (Content::File(file), digest, bytes)
    };
    match expected.refusal(&digest, bytes) {
        Some(refusal) => bad(refusal, digest),
        None => Ok(Some(Local::Good(expected.found(
            content,
            digest,
            bytes,
            candidate.source,
            Some(path.clone()),
        )))),
    }
}

/// Finds a file, downloading it if need be and allowed.
pub(crate) fn locate(
    entry: &Entry,
    file: &FileEntry,
    sources: &Sources,
    progress: &mut dyn FnMut(Progress),
) -> Result<Found, Error> {
    let expected = Expected::new(entry, file, sources)?;
    match look_for(&expected, sources)? {
        Local::Good(found) => {
            if expected.digest.is_none() {
                remember(&expected, &found, sources)?;
            }
            Ok(found)
        }
        Local::Bad(bad) => Err(bad.refuse(entry, file, sources)),
        Local::Absent(looked) => match remote(file) {
            Some(remote) if !sources.offline => fetch(&expected, &remote, sources, progress),
            remote => Err(missing(&expected, looked, remote)),
        },
    }
}

/// The error for a file that is nowhere and may not or cannot be downloaded.
pub(crate) fn absent(entry: &Entry, file: &FileEntry, looked: Vec<String>) -> Error {
    missing(&Expected { entry, file, digest: None, bytes: None }, looked, remote(file))
}

fn missing(expected: &Expected<'_>, looked: Vec<String>, remote: Option<Remote<'_>>) -> Error {
    let Expected { entry, file, .. } = expected;
    let folder = file.folder.as_ref().map(|path| format!("set REPLICA_DATA to a folder that has {path}"));
    let network = remote.map(|_| format!("get it with `replica data fetch {}` while online", entry.name));
    let next = match (folder, network) {
        (Some(folder), Some(network)) => format!("Either {folder}, or {network}."),
        (Some(one), None) | (None, Some(one)) => format!("To have it, {one}."),
        (None, None) => format!("It is published at {}.", entry.url),
    };
    Error::Missing { dataset: entry.name.clone(), file: file.name.clone(), looked, next }
}

/// Where a file can be downloaded from.
fn remote(file: &FileEntry) -> Option<Remote<'_>> {
    match &file.hub {
        Some(hub) => Some(Remote::Hub(hub)),
        None => file
            .urls
            .iter()
            .find(|url| url.starts_with("https://") || url.starts_with("http://"))
            .filter(|_| !file.embedded)
            .map(|url| Remote::Url(url)),
    }
}

fn fetch(
    expected: &Expected<'_>,
    remote: &Remote<'_>,
    sources: &Sources,
    progress: &mut dyn FnMut(Progress),
) -> Result<Found, Error> {
    let Expected { entry, file, .. } = expected;
    let cache = Cache::new(&sources.cache);
    let url = remote.url(sources);
    let key = Digest::of(url.as_bytes());
    let _lock = cache.lock(&key)?;
    // Another process may have finished it while this one waited.
    let expected = &Expected::new(entry, file, sources)?;
    if let Some(digest) = &expected.digest
        && let path = cache.path_of(digest)
        && let Some(Local::Good(found)) =
            inspect(&Candidate { path, source: "cache", packing: Packing::Plain }, expected)?
    {
        return Ok(found);
    }

    let partial = cache.partial(&key)?;
    // the catalogue's digest and length are those of the content inside
    let (packing, length) = match Packing::of(&url) {
        (packing, _) if Packing::of(&file.name).0 == Packing::Plain && packing != Packing::Plain => {
            (packing, None)
        }
        _ => (Packing::Plain, expected.bytes),
    };
    download::download(remote, sources, &partial, length, &mut |bytes, total| {
        progress(Progress { dataset: entry.name.clone(), file: file.name.clone(), bytes, total });
    })
    .map_err(|problem| {
        let (file, url, folder) = (file.name.clone(), url.clone(), file.folder.clone());
        Error::Download { file, url, problem, folder }
    })?;

    let source = match remote {
        Remote::Hub(_) => "hub",
        Remote::Url(_) => "url",
    };
    let candidate = Candidate { path: partial.clone(), source, packing };
    match inspect(&candidate, expected)? {
        Some(Local::Good(mut found)) => {
            if expected.digest.is_none() {
                remember(expected, &found, sources)?;
            }
            let mut complete = partial.clone();
            if packing != Packing::Plain
                && let Content::Memory(unpacked) = &found.content
            {
                complete = cache.partial(&found.digest)?;
                fs::write(&complete, unpacked).map_err(Error::io("write", &complete))?;
                fs::remove_file(&partial).map_err(Error::io("remove", &partial))?;
            }
            found.path = Some(cache.admit(&complete, &found.digest)?);
            Ok(found)
        }
        Some(Local::Bad(bad)) => Err(Bad { in_cache: true, ..*bad }.refuse(entry, file, sources)),
        _ => Err(Error::io("read", &partial)(
            fs::metadata(&partial).err().unwrap_or_else(|| io::Error::other("another process removed it")),
        )),
    }
}

/// Records the digest of a file that has no published one.
fn remember(expected: &Expected<'_>, found: &Found, sources: &Sources) -> Result<(), Error> {
    let Expected { entry, file, .. } = expected;
    let url = file.urls.first().cloned().unwrap_or_default();
    let record = FirstUse { sha256: found.digest.clone(), bytes: found.bytes, url };
    Cache::new(&sources.cache).remember(&entry.name, &file.name, &record)
}
