//! A local HTTP server whose answers a test writes, to play the hub and its failures.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

/// What a client asked for.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// First byte of a range.
    pub from: Option<usize>,
    pub authorization: Option<String>,
}

/// What the server does.
pub enum Answer {
    /// A whole answer.
    Reply(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// The header of a whole answer, but the connection closes after so many bytes of the body.
    CutAfter(usize, u16, Vec<(&'static str, String)>, Vec<u8>),
    /// Nothing, until the client goes away.
    Silence,
}

pub struct Server {
    address: SocketAddr,
    log: Arc<Mutex<Vec<Request>>>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let stopping = Arc::new(AtomicBool::new(false));
        let (requests, stop, answer) = (log.clone(), stopping.clone(), Arc::new(answer));
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                let (requests, answer) = (requests.clone(), answer.clone());
                thread::spawn(move || {
                    // A client that gives up is part of the tests.
                    let _ = serve(stream.unwrap(), &requests, &*answer);
                });
            }
        });
        Self { address, log, stopping, thread: Some(thread) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    /// The first bytes of the ranges of all GET requests; none for a request of the whole.
    pub fn gets(&self) -> Vec<Option<usize>> {
        self.requests().iter().filter(|r| r.method == "GET").map(|r| r.from).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        self.thread.take().map(JoinHandle::join);
    }
}

fn serve(
    mut stream: TcpStream,
    log: &Mutex<Vec<Request>>,
    answer: &(impl Fn(&Request) -> Answer + ?Sized),
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let mut words = first.split(' ').map(str::to_owned);
    let mut request = Request {
        method: words.next().unwrap_or_default(),
        path: words.next().unwrap_or_default(),
        from: None,
        authorization: None,
    };
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "range" => {
                request.from = value.strip_prefix("bytes=").and_then(|v| v.split('-').next()?.parse().ok())
            }
            "authorization" => request.authorization = Some(value.to_owned()),
            _ => {}
        }
    }
    log.lock().unwrap().push(request.clone());
    let (sent, status, headers, body) = match answer(&request) {
        Answer::Reply(status, headers, body) => (body.len(), status, headers, body),
        Answer::CutAfter(sent, status, headers, body) => (sent, status, headers, body),
        Answer::Silence => {
            stream.read_to_end(&mut Vec::new())?;
            return Ok(());
        }
    };
    write!(stream, "HTTP/1.1 {status} As Asked\r\nConnection: close\r\nContent-Length: {}\r\n", body.len())?;
    for (name, value) in headers {
        write!(stream, "{name}: {value}\r\n")?;
    }
    stream.write_all(b"\r\n")?;
    if request.method != "HEAD" {
        stream.write_all(&body[..sent.min(body.len())])?;
    }
    stream.flush()
}

/// The headers the hub sends with a file.
pub fn hub_headers() -> Vec<(&'static str, String)> {
    vec![("ETag", "\"0123abcd\"".to_owned()), ("X-Repo-Commit", "c".repeat(40))]
}

/// The whole body or the part that was asked for.
pub fn file(request: &Request, body: &[u8]) -> Answer {
    let mut headers = hub_headers();
    match request.from {
        None => Answer::Reply(200, headers, body.to_vec()),
        Some(from) => {
            headers.push(("Content-Range", format!("bytes {from}-{}/{}", body.len() - 1, body.len())));
            Answer::Reply(206, headers, body[from..].to_vec())
        }
    }
}

/// As [`file`], but only so many bytes of the body arrive.
pub fn cut(request: &Request, body: &[u8], sent: usize) -> Answer {
    match file(request, body) {
        Answer::Reply(status, headers, body) => Answer::CutAfter(sent, status, headers, body),
        other => other,
    }
}
