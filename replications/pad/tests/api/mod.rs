//! A local server whose answers a test writes, to play a teacher and its failures.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use serde_json::{Value, json};

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Method and path.
    pub target: String,
    pub authorization: Option<String>,
    pub body: Value,
}

impl Request {
    /// The question at the end of the prompt.
    pub fn question(&self) -> &str {
        let prompt = self.body["messages"][0]["content"].as_str().unwrap();
        prompt.rsplit_once("Question: ").unwrap().1.strip_suffix("\nSolution:").unwrap()
    }
}

/// What the server does.
pub enum Reply {
    /// Status, headers and body.
    Whole(u16, Vec<(&'static str, String)>, String),
    /// The same with status 200, but the connection closes after so many bytes of the body.
    CutAfter(usize, String),
    /// Nothing, until the client goes away.
    Silence,
}

/// The body of an answer with 100 tokens of prompt and 10 of completion.
pub fn completion(content: &str, finish_reason: &str) -> String {
    let message = json!({ "role": "assistant", "content": content });
    let choice = json!({ "index": 0, "message": message, "finish_reason": finish_reason });
    json!({
        "id": "chatcmpl-1", "object": "chat.completion", "model": "teacher-1", "choices": [choice],
        "usage": { "prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110 }
    })
    .to_string()
}

/// A good answer.
pub fn program(body: &str) -> Reply {
    let content = format!("```python\ndef solution():\n    \"\"\"The question.\"\"\"\n    {body}\n```");
    Reply::Whole(200, Vec::new(), completion(&content, "stop"))
}

pub struct Server {
    address: SocketAddr,
    log: Arc<Mutex<Vec<Request>>>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// `reply` is told the request and how many came before it.
    pub fn start(reply: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let stopping = Arc::new(AtomicBool::new(false));
        let (requests, stop, reply) = (log.clone(), stopping.clone(), Arc::new(reply));
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                let (requests, reply) = (requests.clone(), reply.clone());
                thread::spawn(move || {
                    // a client that gives up is part of the tests
                    let _ = serve(stream.unwrap(), &requests, &*reply);
                });
            }
        });
        Self { address, log, stopping, thread: Some(thread) }
    }

    /// The base URL.
    pub fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
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
    reply: &(impl Fn(&Request, usize) -> Reply + ?Sized),
) -> std::io::Result<()> {
    let mut input = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    input.read_line(&mut first)?;
    let target = first.trim_end().trim_end_matches(" HTTP/1.1").to_owned();
    let (mut length, mut authorization) = (0, None);
    loop {
        let mut line = String::new();
        input.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap(),
            "authorization" => authorization = Some(value.to_owned()),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    input.read_exact(&mut body)?;
    let request = Request { target, authorization, body: serde_json::from_slice(&body).unwrap() };
    let before = {
        let mut log = log.lock().unwrap();
        log.push(request.clone());
        log.len() - 1
    };
    let (sent, status, headers, body) = match reply(&request, before) {
        Reply::Whole(status, headers, body) => (body.len(), status, headers, body),
        Reply::CutAfter(sent, body) => (sent, 200, Vec::new(), body),
        Reply::Silence => {
            stream.read_to_end(&mut Vec::new())?;
            return Ok(());
        }
    };
    write!(stream, "HTTP/1.1 {status} As Asked\r\nConnection: close\r\nContent-Length: {}\r\n", body.len())?;
    for (name, value) in headers {
        write!(stream, "{name}: {value}\r\n")?;
    }
    stream.write_all(b"\r\n")?;
    stream.write_all(&body.as_bytes()[..sent])?;
    stream.flush()
}
