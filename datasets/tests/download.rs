//! Downloads from a local server that plays the hub, or a plain web server.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use replica_core::Digest;
use replica_datasets::{
    DataFile, DownloadProblem, Entry, Error, ModelFile, Refusal, Sources, Split, TextDataset, catalogue,
    fetch_entry, model_files, status_entry,
};
use server::{Answer, Request, Server, cut, file, hub_headers};
use tempfile::TempDir;

const REVISION: &str = "cccccccccccccccccccccccccccccccccccccccc";
const PATH: &str = "/datasets/someone/some-set/resolve/cccccccccccccccccccccccccccccccccccccccc/data/a.txt";

fn body() -> Vec<u8> {
    (0..5000).map(|i| format!("line {i}\n")).collect::<String>().into_bytes()
}

/// A data set of one file on the hub.
fn hub_entry(digest: Option<&Digest>, bytes: Option<usize>) -> Entry {
    entry("https://hub.invalid/a.txt", digest, bytes, true)
}

/// A data set of one file at an address.
fn url_entry(url: &str, digest: &Digest) -> Entry {
    entry(url, Some(digest), None, false)
}

fn entry(url: &str, digest: Option<&Digest>, bytes: Option<usize>, hub: bool) -> Entry {
    let mut file = serde_json::json!({
        "name": "a.txt", "contentUrl": url, "encodingFormat": "text/plain",
        "replica:format": "text", "replica:split": "test"
    });
    match digest {
        Some(digest) => file["sha256"] = digest.as_str().into(),
        None => file["replica:trustOnFirstUse"] = true.into(),
    }
    if let Some(bytes) = bytes {
        file["contentSize"] = format!("{bytes} B").into();
    }
    if hub {
        file["replica:hub"] =
            serde_json::json!({"repo": "someone/some-set", "revision": REVISION, "path": "data/a.txt"});
    }
    let dataset = serde_json::json!({
        "conformsTo": "http://mlcommons.org/croissant/1.1", "name": "some-set", "alternateName": "Some set",
        "description": "", "citeAs": "", "url": "", "replica:licence": "none", "distribution": [file]
    });
    Entry::from_croissant("some-set.json", &dataset.to_string()).unwrap()
}

struct Place {
    folder: TempDir,
    sources: Sources,
}

fn place(server: &Server) -> Place {
    let folder = tempfile::tempdir().unwrap();
    let mut sources = sources(&folder.path().join("cache"), &server.url());
    sources.hub.token = Some("hf_secret".to_owned());
    Place { folder, sources }
}

fn sources(cache: &Path, endpoint: &str) -> Sources {
    let mut sources = Sources::offline(cache);
    sources.offline = false;
    sources.retries = 0;
    sources.retry_pause = Duration::ZERO;
    sources.hub.endpoint = Some(endpoint.to_owned());
    sources.hub.cache = Some(cache.join("hub"));
    sources
}

impl Place {
    fn fetch(&self, entry: &Entry) -> Result<Vec<DataFile>, Error> {
        fetch_entry(entry, &self.sources, &mut |_| {})
    }

    fn problem(&self, entry: &Entry) -> DownloadProblem {
        match self.fetch(entry).unwrap_err() {
            Error::Download { problem, .. } => problem,
            other => panic!("not a failed download: {other}"),
        }
    }

    fn listing(&self, folder: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.sources.cache.join(folder));
        entries.map(|entries| entries.map(|e| e.unwrap().path()).collect()).unwrap_or_default()
    }
}

#[test]
fn packed_file_is_unpacked_before_it_is_checked_and_cached() {
    let packed = || {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, &body()).unwrap();
        encoder.finish().unwrap()
    };
    let server = Server::start(move |request| file(request, &packed()));
    let place = place(&server);
    let entry = url_entry(&format!("{}/a.txt.gz", server.url()), &Digest::of(&body()));
    let files = place.fetch(&entry).unwrap();
    assert_eq!((files[0].source.as_str(), files[0].bytes), ("url", body().len() as u64));
    let data = TextDataset::load_entry(&entry, &Split::ALL, &place.sources).unwrap();
    assert_eq!(data.split(Split::Test).unwrap().as_bytes(), body());
    assert_eq!(data.files[0].source, "cache");
    assert!(place.listing("partial").is_empty());
}

#[test]
fn file_of_the_hub_arrives_once_and_is_cached() {
    let body = body();
    let digest = Digest::of(&body);
    let server = Server::start(move |request| file(request, &self::body()));
    let place = place(&server);
    let entry = hub_entry(Some(&digest), None);
    assert_eq!(status_entry(&entry, &place.sources).unwrap()[0].source, None);

    let mut reports = Vec::new();
    let files = fetch_entry(&entry, &place.sources, &mut |progress| reports.push(progress)).unwrap();
    assert_eq!((files[0].source.as_str(), &files[0].sha256, files[0].verified), ("hub", &digest, true));
    let last = reports.last().unwrap();
    assert_eq!((last.bytes, last.total), (body.len() as u64, Some(body.len() as u64)));
    assert!(server.requests().iter().all(|r| r.path == PATH));
    assert!(server.requests().iter().all(|r| r.authorization.as_deref() == Some("Bearer hf_secret")));

    let asked = server.requests().len();
    let data = TextDataset::load_entry(&entry, &Split::ALL, &place.sources).unwrap();
    assert_eq!(data.split(Split::Test).unwrap().as_bytes(), body);
    assert_eq!(data.files[0].source, "cache");
    assert_eq!(server.requests().len(), asked);
    assert!(place.listing("partial").is_empty());
}

#[test]
fn broken_download_resumes_within_a_run() {
    let body = body();
    let count = AtomicUsize::new(0);
    let server = Server::start(move |request| match request.method.as_str() {
        "GET" if count.fetch_add(1, Ordering::SeqCst) < 2 => cut(request, &self::body(), 1000),
        _ => file(request, &self::body()),
    });
    let mut place = place(&server);
    place.sources.retries = 1;
    let files = place.fetch(&hub_entry(Some(&Digest::of(&body)), Some(body.len()))).unwrap();
    assert_eq!(files[0].bytes, body.len() as u64);
    assert_eq!(server.gets(), [None, Some(1000), Some(2000)]);
}

#[test]
fn broken_download_resumes_in_the_next_run() {
    let body = body();
    for size in [Some(body.len()), None] {
        let count = AtomicUsize::new(0);
        let server = Server::start(move |request| match request.method.as_str() {
            "GET" if count.fetch_add(1, Ordering::SeqCst) == 0 => cut(request, &self::body(), 1234),
            _ => file(request, &self::body()),
        });
        let place = place(&server);
        let entry = hub_entry(Some(&Digest::of(&body)), size);
        let problem = place.problem(&entry);
        assert!(
            matches!(problem, DownloadProblem::CutShort { bytes: 1234, expected } if expected == body.len() as u64),
            "{problem}"
        );
        assert_eq!(place.listing("partial").len(), 1);
        place.fetch(&entry).unwrap();
        assert_eq!(server.gets(), [None, Some(1234)]);
    }
}

#[test]
fn server_that_ignores_ranges_makes_it_start_over() {
    let body = body();
    let count = AtomicUsize::new(0);
    let server = Server::start(move |request| {
        let whole = Request { from: None, ..request.clone() };
        match request.method.as_str() {
            "GET" if count.fetch_add(1, Ordering::SeqCst) == 0 => cut(&whole, &self::body(), 1000),
            _ => file(&whole, &self::body()),
        }
    });
    let mut place = place(&server);
    place.sources.retries = 1;
    place.fetch(&hub_entry(Some(&Digest::of(&body)), Some(body.len()))).unwrap();
    assert_eq!(server.gets(), [None, Some(1000), None]);
}

#[test]
fn server_that_ignores_ranges_and_always_breaks_off_is_given_up() {
    let body = body();
    let server =
        Server::start(move |request| cut(&Request { from: None, ..request.clone() }, &self::body(), 1000));
    let mut place = place(&server);
    place.sources.retries = 1;
    let problem = place.problem(&hub_entry(Some(&Digest::of(&body)), Some(body.len())));
    assert!(matches!(problem, DownloadProblem::CutShort { bytes: 1000, .. }), "{problem}");
    assert_eq!(server.gets(), [None, Some(1000), None]);
}

#[test]
fn missing_file_says_so_and_is_not_asked_for_again() {
    let server =
        Server::start(|_| Answer::Reply(404, vec![("X-Error-Code", "EntryNotFound".into())], vec![]));
    let mut place = place(&server);
    place.sources.retries = 5;
    let entry = hub_entry(Some(&Digest::of(b"")), None);
    assert!(matches!(place.problem(&entry), DownloadProblem::NotFound));
    assert_eq!(server.requests().len(), 1);
    let message = place.fetch(&entry).unwrap_err().to_string();
    assert!(message.contains("404") && message.contains(PATH), "{message}");
}

#[test]
fn refused_access_asks_for_a_token() {
    let server = Server::start(|_| Answer::Reply(401, vec![], vec![]));
    let message = place(&server).fetch(&hub_entry(Some(&Digest::of(b"")), None)).unwrap_err().to_string();
    assert!(message.contains("401") && message.contains("HF_TOKEN"), "{message}");
}

#[test]
fn passing_trouble_of_the_server_is_waited_out() {
    let body = body();
    let count = AtomicUsize::new(0);
    let server = Server::start(move |request| match count.fetch_add(1, Ordering::SeqCst) {
        0 => Answer::Reply(503, vec![], vec![]),
        _ => file(request, &self::body()),
    });
    let mut place = place(&server);
    place.sources.retries = 1;
    assert!(place.fetch(&hub_entry(Some(&Digest::of(&body)), None)).is_ok());
}

#[test]
fn wrong_content_is_kept_aside_and_never_cached() {
    let server = Server::start(|request| file(request, b"something else"));
    let place = place(&server);
    let entry = hub_entry(Some(&Digest::of(b"expected text!")), Some(14));
    let error = place.fetch(&entry).unwrap_err();
    let Error::Refused { refusal, kept, .. } = &error else { panic!("{error}") };
    assert!(matches!(**refusal, Refusal::Corrupted { bytes: 14, .. }), "{refusal}");
    let quarantined = place.listing("quarantine");
    assert_eq!(fs::read(&quarantined[0]).unwrap(), b"something else");
    assert!(kept.contains(quarantined[0].to_str().unwrap()), "{kept}");
    assert!(place.listing("files").is_empty() && place.listing("partial").is_empty());
}

#[test]
fn body_that_always_ends_early_is_reported_as_cut_short() {
    let body = body();
    let server = Server::start(move |request| cut(request, &self::body(), 0));
    let mut place = place(&server);
    place.sources.retries = 2;
    let problem = place.problem(&hub_entry(Some(&Digest::of(&body)), Some(body.len())));
    assert!(matches!(problem, DownloadProblem::CutShort { bytes: 0, .. }), "{problem}");
    assert_eq!(server.gets().len(), 3);
}

#[test]
fn silent_server_is_given_up() {
    let body = body();
    let digest = Digest::of(&body);
    // silent at once, after the header, and as a plain web server
    let silent = Server::start(|_| Answer::Silence);
    let mute = Server::start(|request| match request.method.as_str() {
        "HEAD" => file(request, &self::body()),
        _ => Answer::Silence,
    });
    for server in [&silent, &mute] {
        for entry in [hub_entry(Some(&digest), None), url_entry(&format!("{}/a.txt", server.url()), &digest)]
        {
            let mut place = place(server);
            place.sources.timeout = Duration::from_millis(50);
            let problem = place.problem(&entry);
            assert!(matches!(problem, DownloadProblem::TimedOut(_)), "{problem}");
        }
    }
}

#[test]
fn no_server_is_a_failed_connection() {
    let server = Server::start(|_| Answer::Silence);
    let place = place(&server);
    drop(server);
    let problem = place.problem(&hub_entry(Some(&Digest::of(b"")), None));
    assert!(matches!(problem, DownloadProblem::Connection(_)), "{problem}");
}

#[test]
fn server_that_does_not_speak_tls_is_a_failed_connection() {
    let server = Server::start(|request| file(request, &body()));
    let mut place = place(&server);
    place.sources.timeout = Duration::from_secs(5);
    let url = format!("{}/a.txt", server.url().replace("http:", "https:"));
    let problem = place.problem(&url_entry(&url, &Digest::of(&body())));
    assert!(matches!(problem, DownloadProblem::Connection(_)), "{problem}");
    assert!(server.gets().is_empty());
}

#[test]
fn redirects_are_followed() {
    let digest = Digest::of(&body());
    let server = Server::start(|request| match request.path.as_str() {
        "/cdn/blob" => file(request, &body()),
        _ => {
            let mut headers = hub_headers();
            headers.push(("Location", "/cdn/blob".to_owned()));
            headers.push(("X-Linked-Size", body().len().to_string()));
            Answer::Reply(302, headers, vec![])
        }
    });
    for entry in [hub_entry(Some(&digest), None), url_entry(&format!("{}/a.txt", server.url()), &digest)] {
        assert_eq!(place(&server).fetch(&entry).unwrap()[0].sha256, digest);
    }
    assert!(server.requests().iter().filter(|r| r.path == "/cdn/blob" && r.method == "GET").count() == 2);
}

#[test]
fn file_at_an_address_resumes_too() {
    let digest = Digest::of(&body());
    let count = AtomicUsize::new(0);
    let server = Server::start(move |request| match count.fetch_add(1, Ordering::SeqCst) {
        0 => cut(request, &body(), 777),
        _ => file(request, &body()),
    });
    let mut place = place(&server);
    place.sources.retries = 1;
    let files = place.fetch(&url_entry(&format!("{}/a.txt", server.url()), &digest)).unwrap();
    assert_eq!((files[0].source.as_str(), files[0].verified), ("url", true));
    assert_eq!(server.gets(), [None, Some(777)]);
    assert!(
        server.requests().iter().all(|r| r.authorization.is_none()),
        "the hub's token is only for the hub"
    );
}

#[test]
fn offline_means_no_request() {
    let server = Server::start(|request| file(request, &body()));
    let mut place = place(&server);
    place.sources.offline = true;
    let message = place.fetch(&hub_entry(Some(&Digest::of(&body())), None)).unwrap_err().to_string();
    assert!(message.contains("hub cache") && message.contains("replica data fetch some-set"), "{message}");
    assert!(server.requests().is_empty());
}

#[test]
fn cache_of_the_hub_is_used_but_not_trusted() {
    let server = Server::start(|request| file(request, &body()));
    let mut place = place(&server);
    place.sources.offline = true;
    let snapshot = format!("datasets--someone--some-set/snapshots/{REVISION}/data/a.txt");
    let path = place.folder.path().join("cache/hub").join(snapshot);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, body()).unwrap();
    let entry = hub_entry(Some(&Digest::of(&body())), None);
    assert_eq!(place.fetch(&entry).unwrap()[0].source, "hub cache");

    fs::write(&path, "tampered").unwrap();
    assert!(matches!(place.fetch(&entry).unwrap_err(), Error::Refused { .. }));
    assert!(path.exists(), "other programs' files stay where they are");
}

#[test]
fn without_a_published_digest_the_first_download_is_held_to() {
    let count = AtomicUsize::new(0);
    let server = Server::start(move |request| match request.method.as_str() {
        "HEAD" => file(request, &body()),
        _ => match count.fetch_add(1, Ordering::SeqCst) {
            0 => file(request, &body()),
            _ => file(request, b"changed upstream"),
        },
    });
    let place = place(&server);
    let entry = hub_entry(None, None);
    assert!(matches!(entry.expected_digests().unwrap_err(), Error::NoPublishedDigest { .. }));
    let first = place.fetch(&entry).unwrap();
    assert!(!first[0].verified, "nobody published what it should be");
    let again = place.fetch(&entry).unwrap();
    assert_eq!((again[0].source.as_str(), &again[0].sha256), ("cache", &first[0].sha256));

    fs::remove_dir_all(place.sources.cache.join("files")).unwrap();
    let error = place.fetch(&entry).unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error}");
}

const T5: &str = "google-t5/t5-small/resolve/df1b051c49625cf57a3d0d8d3863ed4d13564fe4";

#[test]
fn checkpoints_come_from_repositories_of_models() {
    let server = Server::start(|request| file(request, request.path.as_bytes()));
    let place = place(&server);
    let entry = catalogue().model("t5-small").unwrap();
    for source in ["hub", "cache"] {
        let files = model_files(entry, &place.sources).unwrap();
        let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(names, ["config.json", "tokenizer.json", "model.safetensors"]);
        for ModelFile { name, path, file } in &files {
            assert_eq!((file.source.as_str(), file.verified), (source, false));
            assert_eq!(fs::read_to_string(path).unwrap(), format!("/{T5}/{name}"));
        }
    }
    assert_eq!(server.gets().len(), 3);

    let shared = "models--google-t5--t5-small/snapshots/df1b051c49625cf57a3d0d8d3863ed4d13564fe4";
    let folder = place.folder.path().join("other");
    let sources = sources(&folder, "http://127.0.0.1:1");
    fs::create_dir_all(folder.join("hub").join(shared)).unwrap();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        fs::write(folder.join("hub").join(shared).join(name), "{}").unwrap();
    }
    let files = model_files(entry, &sources).unwrap();
    assert!(files.iter().all(|file| file.file.source == "hub cache"));
}

#[test]
fn an_unreachable_hub_is_named_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    // nothing listens there
    let mut sources = sources(&folder.path().join("cache"), "http://127.0.0.1:1");
    let entry = catalogue().model("t5-small").unwrap();
    let error = model_files(entry, &sources).unwrap_err();
    let message = error.to_string();
    for part in [
        "t5-small.config.json",
        "http://127.0.0.1:1",
        T5,
        "HF_ENDPOINT",
        "REPLICA_DATA",
        "models/t5-small/config.json",
    ] {
        assert!(message.contains(part), "{part} in {message}");
    }
    assert!(error.is_unavailable());
    sources.offline = true;
    let offline = model_files(entry, &sources).unwrap_err();
    assert!(
        offline.is_unavailable() && offline.to_string().contains("models/t5-small/config.json"),
        "{offline}"
    );

    // a server that refuses was reached
    let server = Server::start(|_| Answer::Reply(404, vec![], vec![]));
    assert!(!model_files(entry, &place(&server).sources).unwrap_err().is_unavailable());

    let data = folder.path().join("data");
    fs::create_dir_all(data.join("models/t5-small")).unwrap();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        fs::write(data.join("models/t5-small").join(name), "{}").unwrap();
    }
    sources.folder = Some(data);
    let files = model_files(entry, &sources).unwrap();
    assert!(files.iter().all(|file| file.file.source == "REPLICA_DATA"));
}

#[test]
fn processes_share_a_cache() {
    let server = Server::start(|request| file(request, &body()));
    let place = place(&server);
    let children: Vec<_> = (0..4)
        .map(|_| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "one_of_several_processes", "--ignored"])
                .env("TEST_CACHE", &place.sources.cache)
                .env("TEST_ENDPOINT", server.url())
                .stdout(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(server.gets().len(), 1, "one process downloads, the others wait for it");
}

#[test]
#[ignore = "run by processes_share_a_cache"]
fn one_of_several_processes() {
    let variable = |name| std::env::var(name).expect("set by processes_share_a_cache");
    let sources = sources(Path::new(&variable("TEST_CACHE")), &variable("TEST_ENDPOINT"));
    let data =
        TextDataset::load_entry(&hub_entry(Some(&Digest::of(&body())), None), &Split::ALL, &sources).unwrap();
    assert_eq!(data.split(Split::Test).unwrap().as_bytes(), body());
}
