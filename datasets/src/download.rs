//! Downloads that resume where they stopped.
//!
//! The hub's addresses, token, cache and errors are the `hf-hub` crate's. Its own download into its
//! cache starts over after every interruption and waits for a silent server for ever, so the bytes are
//! taken from its ranged stream into a partial file here, under a time limit.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use futures::{Stream, StreamExt};
use hf_hub::{HFClient, HFError};
use reqwest::StatusCode;
use reqwest::header::{CONTENT_RANGE, RANGE};

use crate::Sources;
use crate::catalogue::HubFile;

/// Where a file is downloaded from.
pub(crate) enum Remote<'a> {
    /// A file of a data set repository on the hub.
    Hub(&'a HubFile),
    /// A file at an address.
    Url(&'a str),
}

impl Remote<'_> {
    /// The address, for people.
    pub(crate) fn url(&self, sources: &Sources) -> String {
        match self {
            Self::Url(url) => (*url).to_owned(),
            Self::Hub(hub) => {
                let endpoint = sources.hub.endpoint.as_deref().unwrap_or("https://huggingface.co");
                let endpoint = endpoint.trim_end_matches('/');
                format!("{endpoint}/datasets/{}/resolve/{}/{}", hub.repo, hub.revision, hub.path)
            }
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
            Self::Denied(_) => "Accept the data set's terms on its page and set HF_TOKEN.",
            Self::Status(_) | Self::TimedOut(_) | Self::CutShort { .. } | Self::Connection(_) => {
                "Run the command again: it continues where it stopped. Behind a mirror, set HF_ENDPOINT."
            }
            Self::Write(_) => "Free some space, or set REPLICA_CACHE to another folder.",
        }
    }

    fn may_pass(&self) -> bool {
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

    fn from_request(error: &reqwest::Error, timeout: Duration) -> Self {
        if error.is_timeout() {
            return Self::TimedOut(timeout);
        }
        if let Some(status) = error.status() {
            return Self::from_status(status);
        }
        Self::Connection(innermost(error))
    }

    fn from_hub(error: &HFError, timeout: Duration) -> Self {
        match error {
            HFError::EntryNotFound { .. }
            | HFError::RepoNotFound { .. }
            | HFError::RevisionNotFound { .. } => Self::NotFound,
            HFError::AuthRequired { context }
            | HFError::Forbidden { context }
            | HFError::Http { context } => Self::from_status(context.status),
            HFError::RateLimited { .. } => Self::Status(429),
            other => {
                let mut source: Option<&(dyn std::error::Error + 'static)> = Some(other);
                while let Some(error) = source {
                    if let Some(request) = error.downcast_ref::<reqwest::Error>() {
                        return Self::from_request(request, timeout);
                    }
                    source = error.source();
                }
                Self::Connection(innermost(other))
            }
        }
    }
}

/// The cause that says most: HTTP clients wrap it several times.
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
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        // On a thread of its own, so that it works inside another runtime too.
        let worker = scope.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(persist(remote, sources, partial, expected, &sender))
        });
        for (bytes, total) in receiver {
            progress(bytes, total);
        }
        worker
            .join()
            .unwrap_or_else(|_| Err(DownloadProblem::Connection("the download thread failed".to_owned())))
    })
}

type Reports = mpsc::Sender<(u64, Option<u64>)>;

async fn persist(
    remote: &Remote<'_>,
    sources: &Sources,
    partial: &Path,
    expected: Option<u64>,
    reports: &Reports,
) -> Result<(), DownloadProblem> {
    let client = reqwest::Client::builder()
        .user_agent(concat!("replica-datasets/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(sources.timeout)
        .read_timeout(sources.timeout)
        .build()
        .map_err(|e| DownloadProblem::from_request(&e, sources.timeout))?;
    let mut failures = 0;
    loop {
        let before = length(partial)?;
        match attempt(remote, sources, &client, partial, expected, reports).await {
            Ok(Outcome::Complete) => return Ok(()),
            Ok(Outcome::StartOver) => {}
            Err(problem) if !problem.may_pass() => return Err(problem),
            Err(problem) => {
                failures = if length(partial)? > before { 1 } else { failures + 1 };
                if failures > sources.retries {
                    return Err(problem);
                }
                tokio::time::sleep(sources.retry_pause * 2u32.saturating_pow(failures - 1)).await;
            }
        }
    }
}

type Chunks = Box<dyn Stream<Item = Result<Vec<u8>, DownloadProblem>> + Unpin>;

/// An answer under way.
struct Opened {
    /// Where in the file its first byte belongs.
    offset: u64,
    /// The length of the whole file.
    total: Option<u64>,
    chunks: Chunks,
}

enum Outcome {
    Complete,
    /// The server sent the whole file although only its rest was asked for; nothing is kept.
    StartOver,
}

async fn attempt(
    remote: &Remote<'_>,
    sources: &Sources,
    client: &reqwest::Client,
    partial: &Path,
    expected: Option<u64>,
    reports: &Reports,
) -> Result<Outcome, DownloadProblem> {
    let mut have = length(partial)?;
    if expected.is_some_and(|total| have > total) {
        truncate(partial)?;
        have = 0;
    }
    if have > 0 && expected == Some(have) {
        return Ok(Outcome::Complete);
    }
    let limit = sources.timeout;
    let opening = async {
        match remote {
            Remote::Hub(hub) => open_hub(hub, sources, client, have, expected).await,
            Remote::Url(url) => open_url(url, client, have, limit).await,
        }
    };
    // Several requests may be needed, each limited by the client; this is for those it does not limit.
    let opened =
        tokio::time::timeout(limit * 4, opening).await.map_err(|_| DownloadProblem::TimedOut(limit))??;
    if opened.offset != have {
        truncate(partial)?;
    }
    // What the server says it sends decides whether it arrived; whether it is right, the digest does.
    let total = opened.total.or(expected);
    let mut chunks = opened.chunks;
    let mut file = OpenOptions::new().create(true).append(true).open(partial)?;
    let mut bytes = opened.offset;
    loop {
        let next = tokio::time::timeout(limit, chunks.next()).await;
        let broken = match next {
            Ok(Some(Ok(chunk))) => {
                bytes += chunk.len() as u64;
                if total.is_some_and(|total| bytes > total) && opened.offset > 0 {
                    truncate(partial)?;
                    return Ok(Outcome::StartOver);
                }
                file.write_all(&chunk)?;
                reports.send((bytes, total)).ok();
                continue;
            }
            Ok(Some(Err(problem))) => Some(problem),
            Ok(None) => None,
            Err(_) => Some(DownloadProblem::TimedOut(limit)),
        };
        file.sync_all()?;
        return match (broken, total) {
            (Some(problem @ DownloadProblem::TimedOut(_)), _) => Err(problem),
            (_, Some(expected)) if bytes < expected => Err(DownloadProblem::CutShort { bytes, expected }),
            (Some(problem), _) => Err(problem),
            (None, _) => Ok(Outcome::Complete),
        };
    }
}

async fn open_url(
    url: &str,
    client: &reqwest::Client,
    have: u64,
    limit: Duration,
) -> Result<Opened, DownloadProblem> {
    let fail = move |e: reqwest::Error| DownloadProblem::from_request(&e, limit);
    let mut request = client.get(url);
    if have > 0 {
        request = request.header(RANGE, format!("bytes={have}-"));
    }
    let mut response = request.send().await.map_err(fail)?;
    if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
        response = client.get(url).send().await.map_err(fail)?;
    }
    if !response.status().is_success() {
        return Err(DownloadProblem::from_status(response.status()));
    }
    let continues = response.status() == StatusCode::PARTIAL_CONTENT
        && response
            .headers()
            .get(CONTENT_RANGE)
            .and_then(|value| value.to_str().ok())
            .is_some_and(|value| value.starts_with(&format!("bytes {have}-")));
    if response.status() == StatusCode::PARTIAL_CONTENT && !continues {
        return Err(DownloadProblem::Connection(
            "the server sent another part than was asked for".to_owned(),
        ));
    }
    let offset = if continues { have } else { 0 };
    let total = response.content_length().map(|rest| offset + rest);
    let chunks = response.bytes_stream().map(move |chunk| chunk.map(|c| c.to_vec()).map_err(fail));
    Ok(Opened { offset, total, chunks: Box::new(Box::pin(chunks)) })
}

async fn open_hub(
    hub: &HubFile,
    sources: &Sources,
    client: &reqwest::Client,
    have: u64,
    expected: Option<u64>,
) -> Result<Opened, DownloadProblem> {
    let limit = sources.timeout;
    let fail = move |e: HFError| DownloadProblem::from_hub(&e, limit);
    let (owner, name) = hf_hub::split_id(&hub.repo);
    let repository = hub_client(sources, Some(client)).map_err(fail)?.dataset(owner, name);
    let mut total = expected;
    if have > 0 && total.is_none() {
        let metadata = repository.get_file_metadata().filepath(&hub.path).revision(&hub.revision).send();
        total = Some(metadata.await.map_err(fail)?.file_size);
    }
    // A range needs its end; without a longer whole there is nothing to continue.
    let rest = total.filter(|&total| have > 0 && have < total).map(|total| have..total);
    let offset = if rest.is_some() { have } else { 0 };
    let stream = repository
        .download_file_stream()
        .filename(&hub.path)
        .revision(&hub.revision)
        .maybe_range(rest)
        .send();
    let (length, stream) = stream.await.map_err(fail)?;
    let chunks = stream.map(move |chunk| chunk.map(|c| c.to_vec()).map_err(fail));
    Ok(Opened { offset, total: if offset > 0 { total } else { length }, chunks: Box::new(chunks) })
}

/// Where the hub's own cache, which other programs share, has a file. Uses no network.
pub(crate) fn hub_cached(hub: &HubFile, sources: &Sources) -> Option<PathBuf> {
    let (owner, name) = hf_hub::split_id(&hub.repo);
    let look = || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().ok()?;
        let repository = hub_client(sources, None).ok()?.dataset(owner, name);
        let file = repository
            .download_file()
            .filename(&hub.path)
            .revision(&hub.revision)
            .local_files_only(true)
            .send();
        runtime.block_on(file).ok()
    };
    thread::scope(|scope| scope.spawn(look).join().ok().flatten())
}

fn hub_client(sources: &Sources, client: Option<&reqwest::Client>) -> Result<HFClient, HFError> {
    let mut builder = HFClient::builder().retry_max_attempts(0);
    if let Some(client) = client {
        builder = builder.client(client.clone());
    }
    if let Some(endpoint) = &sources.hub.endpoint {
        builder = builder.endpoint(endpoint);
    }
    if let Some(token) = &sources.hub.token {
        builder = builder.token(token);
    }
    if let Some(cache) = &sources.hub.cache {
        builder = builder.cache_dir(cache);
    }
    builder.build()
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
