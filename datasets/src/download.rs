//! Downloads that resume where they stopped.
//!
//! The hub's addresses, token and cache are the `hf-hub` crate's. Its own download into its cache
//! takes no time limit and forgets where it stopped when the program ends, so the bytes are asked for
//! here, into a partial file.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use hf_hub::{Cache, Repo, RepoType};
use ureq::Agent;
use ureq::config::RedirectAuthHeaders;
use ureq::http::StatusCode;
use ureq::http::header::{AUTHORIZATION, CONTENT_RANGE, RANGE};
use ureq::tls::{RootCerts, TlsConfig};

use crate::Sources;
use crate::catalogue::{HubFile, HubKind};

/// Bytes are written and reported in pieces of at most this many.
const CHUNK: usize = 1 << 16;

/// Where a file is downloaded from.
pub(crate) enum Remote<'a> {
    /// A file of a repository on the hub.
    Hub(&'a HubFile),
    /// A file at an address.
    Url(&'a str),
}

impl Remote<'_> {
    /// The address.
    pub(crate) fn url(&self, sources: &Sources) -> String {
        match self {
            Self::Url(url) => (*url).to_owned(),
            Self::Hub(hub) => hub_url(hub, sources),
        }
    }
}

/// Why a download failed.
#[derive(Debug, thiserror::Error)]
pub enum DownloadProblem {
    /// There is no such file, revision or repository.
    #[error("not found (404)")]
    NotFound,
    /// A token is missing or not sufficient.
    #[error("access denied ({0})")]
    Denied(u16),
    /// Another HTTP status.
    #[error("the server answered with status {0}")]
    Status(u16),
    /// The server fell silent.
    #[error("timed out: no answer for {0:?}")]
    TimedOut(Duration),
    /// The connection ended before the file did.
    #[error("cut short: {bytes} of {expected} bytes arrived")]
    CutShort {
        /// What arrived, earlier attempts included.
        bytes: u64,
        /// What should have.
        expected: u64,
    },
    /// No connection, or one that broke.
    #[error("connection failed: {0}")]
    Connection(String),
    /// What arrived cannot be written.
    #[error("cannot write what arrives: {0}")]
    Write(#[from] io::Error),
}

impl DownloadProblem {
    /// What to do about it.
    pub(crate) fn advice(&self) -> &'static str {
        match self {
            Self::NotFound => "The file was moved or removed; the catalogue's address needs an update.",
            Self::Denied(_) => "Accept the terms on its page, if it has some, and set HF_TOKEN.",
            Self::Status(_) | Self::TimedOut(_) | Self::CutShort { .. } | Self::Connection(_) => {
                "Run the command again: it continues where it stopped. Behind a mirror, set HF_ENDPOINT."
            }
            Self::Write(_) => "Free some space, or set REPLICA_CACHE to another folder.",
        }
    }

    /// Whether another attempt may bring it; if not, the server was reached and refused.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::TimedOut(_) | Self::CutShort { .. } | Self::Connection(_) => true,
            Self::Status(status) => *status >= 500 || matches!(status, 408 | 429),
            Self::NotFound | Self::Denied(_) | Self::Write(_) => false,
        }
    }

    fn from_status(status: StatusCode) -> Self {
        match status.as_u16() {
            404 | 410 => Self::NotFound,
            code @ (401 | 403) => Self::Denied(code),
            code => Self::Status(code),
        }
    }

    fn from_request(error: ureq::Error, timeout: Duration) -> Self {
        match error {
            ureq::Error::Timeout(_) => Self::TimedOut(timeout),
            ureq::Error::Io(error) => Self::Connection(innermost(&error)),
            other => Self::Connection(other.to_string()),
        }
    }
}

/// The cause that says most: errors wrap it several times.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

/// Downloads into `partial`, continuing what is there; `expected` is the length of the whole, if known.
/// Gives up after as many broken attempts in a row without any progress as `sources.retries` allows.
pub(crate) fn download(
    remote: &Remote<'_>,
    sources: &Sources,
    partial: &Path,
    expected: Option<u64>,
    progress: &mut dyn FnMut(u64, Option<u64>),
) -> Result<(), DownloadProblem> {
    let request = Request::new(remote, sources);
    let mut furthest = length(partial)?;
    let mut failures = 0;
    loop {
        match attempt(&request, partial, expected, progress) {
            Ok(Outcome::Complete) => return Ok(()),
            Ok(Outcome::StartOver) => {}
            Err(problem) if !problem.may_pass() => return Err(problem),
            Err(problem) => {
                let reached = length(partial)?;
                failures = if reached > furthest { 1 } else { failures + 1 };
                furthest = furthest.max(reached);
                if failures > sources.retries {
                    return Err(problem);
                }
                thread::sleep(sources.retry_pause * 2u32.saturating_pow(failures - 1));
            }
        }
    }
}

/// What is asked for again and again until it is here.
struct Request {
    agent: Agent,
    url: String,
    token: Option<String>,
    limit: Duration,
}

/// An answer under way.
struct Opened {
    /// The length of the whole file.
    total: Option<u64>,
    body: ureq::BodyReader<'static>,
}

enum Outcome {
    Complete,
    /// The server cannot send only the rest; nothing is kept.
    StartOver,
}

fn attempt(
    request: &Request,
    partial: &Path,
    expected: Option<u64>,
    progress: &mut dyn FnMut(u64, Option<u64>),
) -> Result<Outcome, DownloadProblem> {
    let mut have = length(partial)?;
    if expected.is_some_and(|total| have > total) {
        truncate(partial)?;
        have = 0;
    }
    if have > 0 && expected == Some(have) {
        return Ok(Outcome::Complete);
    }
    let Some(Opened { total, mut body }) = request.open(have)? else {
        truncate(partial)?;
        return Ok(Outcome::StartOver);
    };
    // What the server says it sends decides whether it arrived; whether it is right, the digest does.
    let total = total.or(expected);
    let mut file = OpenOptions::new().create(true).append(true).open(partial)?;
    let mut bytes = have;
    let mut chunk = vec![0; CHUNK];
    let broken = loop {
        let read = match body.read(&mut chunk) {
            Ok(0) => break None,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => break Some(DownloadProblem::from_request(error.into(), request.limit)),
        };
        bytes += read as u64;
        if total.is_some_and(|total| bytes > total) && have > 0 {
            truncate(partial)?;
            return Ok(Outcome::StartOver);
        }
        file.write_all(&chunk[..read])?;
        progress(bytes, total);
    };
    file.sync_all()?;
    match (broken, total) {
        (Some(problem @ DownloadProblem::TimedOut(_)), _) => Err(problem),
        (_, Some(expected)) if bytes < expected => Err(DownloadProblem::CutShort { bytes, expected }),
        (Some(problem), _) => Err(problem),
        (None, _) => Ok(Outcome::Complete),
    }
}

impl Request {
    fn new(remote: &Remote<'_>, sources: &Sources) -> Self {
        let limit = sources.timeout;
        let agent = Agent::config_builder()
            .user_agent(concat!("replica-datasets/", env!("CARGO_PKG_VERSION")))
            // Ranges count the bytes of the file, not of a compressed form.
            .accept_encoding("identity")
            .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build())
            .http_status_as_error(false)
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .timeout_resolve(Some(limit))
            .timeout_connect(Some(limit))
            .timeout_per_read(Some(limit))
            .timeout_per_write(Some(limit))
            // For a header that trickles in; a body may take as long as it moves.
            .timeout_recv_response(Some(limit * 4))
            .build()
            .new_agent();
        let token = match remote {
            Remote::Hub(_) => hub_token(sources),
            Remote::Url(_) => None,
        };
        Self { agent, url: remote.url(sources), token, limit }
    }

    /// Asks for all but the first `have` bytes; none if the server has or sends no such part.
    fn open(&self, have: u64) -> Result<Option<Opened>, DownloadProblem> {
        let response = self.send(have)?;
        match response.status() {
            StatusCode::RANGE_NOT_SATISFIABLE if have > 0 => return Ok(None),
            StatusCode::PARTIAL_CONTENT => {
                let part = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
                if !part.is_some_and(|part| part.starts_with(&format!("bytes {have}-"))) {
                    return Err(DownloadProblem::Connection(
                        "the server sent another part than was asked for".to_owned(),
                    ));
                }
            }
            status if !status.is_success() => return Err(DownloadProblem::from_status(status)),
            _ if have > 0 => return Ok(None),
            _ => {}
        }
        let body = response.into_body();
        let total = body.content_length().map(|rest| have + rest);
        Ok(Some(Opened { total, body: body.into_reader() }))
    }

    fn send(&self, have: u64) -> Result<ureq::http::Response<ureq::Body>, DownloadProblem> {
        let mut request = self.agent.get(&self.url);
        if have > 0 {
            request = request.header(RANGE, format!("bytes={have}-"));
        }
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        request.call().map_err(|error| DownloadProblem::from_request(error, self.limit))
    }
}

/// Where the hub's own cache, which other programs share, has a file. Uses no network.
pub(crate) fn hub_cached(hub: &HubFile, sources: &Sources) -> Option<PathBuf> {
    let cache = sources.hub.cache.clone().map(Cache::new).or_else(default_cache)?.repo(repository(hub));
    // The revision is a commit, which needs no reference to it in the cache.
    let path = cache.pointer_path(&hub.revision).join(&hub.path);
    if path.exists() { Some(path) } else { cache.get(&hub.path) }
}

fn repository(hub: &HubFile) -> Repo {
    let kind = match hub.kind {
        HubKind::Dataset => RepoType::Dataset,
        HubKind::Model => RepoType::Model,
    };
    Repo::with_revision(hub.repo.clone(), kind, hub.revision.clone())
}

fn hub_url(hub: &HubFile, sources: &Sources) -> String {
    let endpoint = sources.hub.endpoint.as_deref().unwrap_or("https://huggingface.co").trim_end_matches('/');
    let repository = repository(hub);
    let (name, revision) = (repository.url(), repository.url_revision());
    format!("{endpoint}/{name}/resolve/{revision}/{}", encoded(&hub.path))
}

/// A path as it is written in an address.
fn encoded(path: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/+".contains(&byte);
    path.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

fn hub_token(sources: &Sources) -> Option<String> {
    let stored = || {
        let refused = std::env::var_os("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(|v| !v.is_empty());
        if refused { None } else { default_cache()?.token() }
    };
    sources.hub.token.clone().or_else(stored)
}

/// The hub's folder in `HF_HOME`, in the platform's cache folder or in the home folder, if there is one.
fn default_cache() -> Option<Cache> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    match (set("HF_HOME"), set("XDG_CACHE_HOME")) {
        (None, Some(caches)) => Some(Cache::new(PathBuf::from(caches).join("huggingface/hub"))),
        (None, None) => std::env::home_dir().map(|_| Cache::default()),
        (Some(_), _) => Some(Cache::from_env()),
    }
}

fn length(partial: &Path) -> io::Result<u64> {
    match std::fs::metadata(partial) {
        Ok(metadata) => Ok(metadata.len()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(e) => Err(e),
    }
}

fn truncate(partial: &Path) -> io::Result<()> {
    File::create(partial).map(drop)
}
