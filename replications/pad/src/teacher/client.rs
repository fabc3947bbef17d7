//! One question to the server: sent, repeated where that may help, given up where it does not.

use std::error::Error;
use std::thread;
use std::time::{Duration, SystemTime};

use rand::Rng;
use replica_core::{Digest, Seed};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use ureq::Agent;
use ureq::http::HeaderMap;
use ureq::http::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use ureq::tls::{RootCerts, TlsConfig};

use super::cache::Reply;
use super::usage::Usage;
use super::{Event, Settings, TeacherError};

/// Bytes of an answer; programs for school problems take a thousandth of it.
const LARGEST_ANSWER: u64 = 8 << 20;

/// Characters of a server's message that are shown.
const LONGEST_MESSAGE: usize = 400;

/// A piece of a pause, after which it is seen whether anybody still waits.
const SLICE: Duration = Duration::from_millis(50);

/// The time, and waiting.
pub trait Clock: Send + Sync {
    /// The time of day, for servers that say until when to wait.
    fn now(&self) -> SystemTime;
    /// Waits; returns early once `stopped` says so.
    fn sleep(&self, pause: Duration, stopped: &dyn Fn() -> bool);
}

/// The system's clock.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn sleep(&self, pause: Duration, stopped: &dyn Fn() -> bool) {
        let mut left = pause;
        while !left.is_zero() && !stopped() {
            let slice = left.min(SLICE);
            thread::sleep(slice);
            left -= slice;
        }
    }
}

/// What a question came to.
pub(super) enum Asked {
    Reply(Reply),
    /// No answer that could be read, as often as it was asked for.
    Unreadable,
    /// Somebody does not want to know any more.
    Stopped,
}

/// Why a request failed.
enum Failure {
    /// For a reason that does not pass: the status and the server's message.
    Refused(u16, String),
    /// The server is busy or out of order, and may have said how long to wait.
    Busy(String, Option<Duration>),
    /// No answer in time.
    Late(String),
    /// No connection, or one that broke before an answer began.
    Unreachable(String),
    /// An answer that cannot be read.
    Unreadable(String),
}

pub(super) struct Client {
    settings: Settings,
    agent: Agent,
    address: String,
    clock: Box<dyn Clock>,
}

impl Client {
    pub(super) fn new(settings: Settings, clock: Box<dyn Clock>) -> Self {
        let agent = Agent::config_builder()
            .user_agent(concat!("replica-pad/", env!("CARGO_PKG_VERSION")))
            .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build())
            .http_status_as_error(false)
            // a key goes where it was meant to go, and nowhere else
            .max_redirects(0)
            .timeout_global(Some(settings.timeout))
            .build()
            .new_agent();
        Self { address: format!("{}/chat/completions", settings.url), settings, agent, clock }
    }

    /// Asks for the answer to `request`, whose digest is `id`, until there is one or no hope.
    pub(super) fn ask(
        &self,
        id: &Digest,
        request: &str,
        usage: &mut Usage,
        stopped: &dyn Fn() -> bool,
        events: &dyn Fn(Event<'_>),
    ) -> Result<Asked, TeacherError> {
        let settings = &self.settings;
        for attempt in 1.. {
            if stopped() {
                break;
            }
            usage.requests += 1;
            usage.retries += u64::from(attempt > 1);
            let failure = match self.send(request) {
                Ok(reply) => {
                    match (reply.prompt_tokens, reply.completion_tokens) {
                        (Some(prompt), Some(completion)) => {
                            usage.prompt_tokens += prompt;
                            usage.completion_tokens += completion;
                        }
                        _ => usage.unmetered += 1,
                    }
                    return Ok(Asked::Reply(reply));
                }
                Err(failure) => failure,
            };
            usage.unmetered += u64::from(matches!(failure, Failure::Late(_) | Failure::Unreadable(_)));
            let last = attempt >= settings.attempts;
            let (problem, wait) = match failure {
                Failure::Refused(status, message) => {
                    return Err(TeacherError::Refused { address: self.address.clone(), status, message });
                }
                Failure::Unreadable(problem) if last => {
                    let problem = format!("{problem}; given up after {attempt} requests");
                    events(Event::Warning(&problem));
                    return Ok(Asked::Unreadable);
                }
                Failure::Busy(problem, wait) => (problem, wait),
                Failure::Late(problem) | Failure::Unreachable(problem) | Failure::Unreadable(problem) => {
                    (problem, None)
                }
            };
            let unavailable = |problem: String| TeacherError::Unavailable {
                address: self.address.clone(),
                attempts: attempt,
                problem,
            };
            if last {
                return Err(unavailable(problem));
            }
            let pause = backoff(settings, id, attempt).max(wait.unwrap_or_default());
            if pause > settings.longest_pause {
                return Err(unavailable(format!("{problem}; it asks to wait for {} s", pause.as_secs())));
            }
            events(Event::Waiting { problem: &problem, pause });
            self.clock.sleep(pause, stopped);
        }
        Ok(Asked::Stopped)
    }

    fn send(&self, request: &str) -> Result<Reply, Failure> {
        let settings = &self.settings;
        let clean = |text: &str| settings.key.as_ref().map_or(text.to_owned(), |key| key.hidden_in(text));
        let failed = |error: ureq::Error| match error {
            ureq::Error::Timeout(_) => Failure::Late(format!("no answer in {:?}", settings.timeout)),
            other => Failure::Unreachable(clean(&format!("no connection: {}", innermost(&other)))),
        };
        let mut post = self.agent.post(&self.address).header(CONTENT_TYPE, "application/json");
        if let Some(key) = &settings.key {
            post = post.header(AUTHORIZATION, key.header());
        }
        let mut response = post.send(request).map_err(failed)?;
        let status = response.status();
        let wait = wait(response.headers(), self.clock.now());
        let body = response.body_mut().with_config().limit(LARGEST_ANSWER).read_to_vec();
        if status.is_success() {
            let body = body.map_err(|error| match failed(error) {
                Failure::Unreachable(problem) => {
                    Failure::Unreadable(format!("the answer broke off: {problem}"))
                }
                failure => failure,
            })?;
            let mut reply = read(&body).map_err(|problem| Failure::Unreadable(clean(&problem)))?;
            reply.content = clean(&reply.content);
            reply.finish_reason = reply.finish_reason.map(|reason| clean(&reason));
            return Ok(reply);
        }
        let message = clean(&message(&body.unwrap_or_default()));
        Err(match status.as_u16() {
            code @ (408 | 429 | 500..=599) => Failure::Busy(format!("status {code}: {message}"), wait),
            code => Failure::Refused(code, message),
        })
    }
}

/// Doubles with every attempt; between half of it and all of it is waited, so that threads that failed together do not
/// come back together. The same for the same request, whatever the run.
fn backoff(settings: &Settings, id: &Digest, attempt: u32) -> Duration {
    let whole = settings.pause.saturating_mul(2_u32.saturating_pow(attempt - 1)).min(settings.longest_pause);
    let random = Seed(0).named_stream(id.as_str(), &attempt.to_string()).next_u32();
    whole.mul_f64(0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX))
}

/// How long the server asks to wait: seconds, or until a date.
fn wait(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        Err(_) => http_date(text).map(|date| date.duration_since(now).unwrap_or_default()),
    }
}

/// A date as HTTP writes it: `Sun, 06 Nov 1994 08:49:37 GMT`.
fn http_date(text: &str) -> Option<SystemTime> {
    const MONTHS: [&str; 12] =
        ["Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec", "Jan", "Feb"];
    let words: Vec<&str> = text.split_once(", ")?.1.split(' ').collect();
    let [day, month, year, time, "GMT"] = words[..] else { return None };
    let number = |text: &str, range: std::ops::RangeInclusive<u64>| {
        text.parse().ok().filter(|number: &u64| range.contains(number))
    };
    // years that begin in March have their leap day at the end
    let month = MONTHS.iter().position(|name| *name == month)? as u64;
    let year = number(year, 1971..=9999)? - u64::from(month >= 10);
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + number(day, 1..=31)?;
    let time: Vec<&str> = time.split(':').collect();
    let [hours, minutes, seconds] = time[..] else { return None };
    let (hours, minutes, seconds) =
        (number(hours, 0..=23)?, number(minutes, 0..=59)?, number(seconds, 0..=60)?);
    // 719,469 days lie before 1 January 1970, and the first of a month is no day after its beginning
    let seconds = (days - 719_469) * 86_400 + hours * 3600 + minutes * 60 + seconds;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

#[derive(Deserialize)]
struct Completion {
    choices: Vec<Choice>,
    usage: Option<Tokens>,
}

#[derive(Deserialize)]
struct Choice {
    message: Message,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Message {
    #[serde(deserialize_with = "there_or_null")]
    content: Option<String>,
}

#[derive(Deserialize)]
struct Tokens {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
}

/// A field that may be null but may not be missing.
fn there_or_null<'de, D: Deserializer<'de>>(field: D) -> Result<Option<String>, D::Error> {
    Option::deserialize(field)
}

fn read(body: &[u8]) -> Result<Reply, String> {
    let unreadable =
        |problem: String| format!("the answer cannot be read: {problem}; it is {}", message(body));
    let completion: Completion =
        serde_json::from_slice(body).map_err(|error| unreadable(error.to_string()))?;
    let choice = completion.choices.into_iter().next().ok_or_else(|| unreadable("no choices".to_owned()))?;
    Ok(Reply {
        content: choice.message.content.unwrap_or_default(),
        finish_reason: choice.finish_reason,
        prompt_tokens: completion.usage.as_ref().and_then(|usage| usage.prompt_tokens),
        completion_tokens: completion.usage.as_ref().and_then(|usage| usage.completion_tokens),
    })
}

/// What a server says in a body: its message where there is one, else the body's beginning; one line.
fn message(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let json: Option<Value> = serde_json::from_slice(body).ok();
    let places = ["/error/message", "/message", "/error", "/detail"];
    let found =
        json.iter().flat_map(|json| places.iter().filter_map(|place| json.pointer(place)?.as_str())).next();
    let line: Vec<&str> = found
        .unwrap_or(&text)
        .split(|c: char| c.is_control() || c == ' ')
        .filter(|w| !w.is_empty())
        .collect();
    let line = line.join(" ");
    match line.char_indices().nth(LONGEST_MESSAGE) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None if line.is_empty() => "nothing".to_owned(),
        None => line,
    }
}

/// The cause that says most.
fn innermost(error: &dyn Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_http_are_read() {
        let seconds =
            |text| http_date(text)?.duration_since(SystemTime::UNIX_EPOCH).ok().map(|d| d.as_secs());
        assert_eq!(seconds("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(seconds("Thu, 29 Feb 2024 23:59:59 GMT"), Some(1_709_251_199));
        assert_eq!(seconds("Fri, 01 Mar 2024 00:00:00 GMT"), Some(1_709_251_200));
        assert_eq!(seconds("Wed, 01 Jan 2025 00:00:00 GMT"), Some(1_735_689_600));
        for none in [
            "",
            "soon",
            "Sun, 06 Nov 1994 08:49:37 CET",
            "Sun, 32 Nov 1994 08:49:37 GMT",
            "Sun, 06 Now 1994 08:49:37 GMT",
            "Sun, 06 Nov 0 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49 GMT",
        ] {
            assert_eq!(seconds(none), None, "{none}");
        }
    }

    #[test]
    fn messages_are_one_short_line() {
        assert_eq!(
            message(br#"{"error": {"message": "no such\nmodel\u001b[31m", "code": 1}}"#),
            "no such model [31m"
        );
        assert_eq!(message(br#"{"error": "out of memory"}"#), "out of memory");
        assert_eq!(message(b"<html> busy"), "<html> busy");
        assert_eq!(message(b""), "nothing");
        assert_eq!(message("é".repeat(1000).as_bytes()).chars().count(), LONGEST_MESSAGE + 3);
    }
}
