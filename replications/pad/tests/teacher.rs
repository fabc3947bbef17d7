//! A teacher played by a local server, with its failures.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod api;

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use api::{Reply, Request, Server, completion, program};
use replica_pad::exec::{Limits, Pool, WorkerCommand};
use replica_pad::judge::Answer;
use replica_pad::problems::Problem;
use replica_pad::synthesis::Funnel;
use replica_pad::teacher::{
    Answers, Clock, Cost, Counts, Event, Prices, Settings, Teacher, TeacherError, Usage,
};
use tempfile::TempDir;

const KEY: &str = "sk-very-secret-0123";

/// A clock that stands at noon of 1 January 2025, and only writes down how long it should have waited.
#[derive(Clone, Default)]
struct Stopped(Arc<Mutex<Vec<Duration>>>);

impl Clock for Stopped {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_735_732_800)
    }

    fn sleep(&self, pause: Duration, _: &dyn Fn() -> bool) {
        self.0.lock().unwrap().push(pause);
    }
}

impl Stopped {
    fn pauses(&self) -> Vec<Duration> {
        self.0.lock().unwrap().clone()
    }
}

struct Place {
    folder: TempDir,
    clock: Stopped,
    settings: Settings,
    warnings: Mutex<Vec<String>>,
}

impl Place {
    fn new(url: &str) -> Self {
        let mut settings = Settings::new(url, "teacher-1", Some(KEY)).unwrap();
        settings.parallel = 1;
        settings.attempts = 4;
        let folder = tempfile::tempdir().unwrap();
        Self { folder, clock: Stopped::default(), settings, warnings: Mutex::default() }
    }

    fn teacher(&self) -> Teacher {
        let folder = self.folder.path().join("answers");
        Teacher::with_clock(self.settings.clone(), folder, self.clock.clone()).unwrap()
    }

    fn ask(&self, problems: &[Problem], rounds: usize) -> Answers {
        let events = |event: Event<'_>| match event {
            Event::Warning(text) => self.warnings.lock().unwrap().push(text.to_owned()),
            Event::Waiting { problem, .. } => assert!(!problem.contains(KEY), "{problem}"),
            Event::Done { .. } => {}
        };
        self.teacher().programs(problems, rounds, &AtomicBool::new(false), &events)
    }

    /// Files of kept answers, those that were set aside not among them.
    fn files(&self) -> Vec<PathBuf> {
        let folders = fs::read_dir(self.folder.path().join("answers")).unwrap().map(|e| e.unwrap().path());
        let mut files: Vec<PathBuf> =
            folders.flat_map(|folder| fs::read_dir(folder).unwrap().map(|e| e.unwrap().path())).collect();
        files.retain(|file| !file.to_string_lossy().contains("refused"));
        files.sort();
        files
    }

    fn warnings(&self) -> Vec<String> {
        self.warnings.lock().unwrap().clone()
    }
}

fn problems(count: usize) -> Vec<Problem> {
    let problem = |i: usize| Problem {
        origin: format!("test-{i}"),
        question: format!("What is 10 plus {i}?"),
        program: String::new(),
        chain: "a chain".to_owned(),
        answer: Answer::Number(10.0 + i as f64),
    };
    (0..count).map(problem).collect()
}

/// A server that knows the answers to all [`problems`].
fn right(request: &Request) -> Reply {
    let number = request.question().strip_prefix("What is 10 plus ").unwrap().strip_suffix('?').unwrap();
    program(&format!("result = 10 + {number}\n    return result"))
}

fn text(answers: &Answers) -> Vec<&str> {
    answers
        .candidates
        .iter()
        .map(|c| c.program.strip_prefix("def solution():\n    \n    ").unwrap())
        .collect()
}

fn pool() -> Pool {
    let program = env!("CARGO_BIN_EXE_pad-worker").into();
    let limits = Limits { time: Duration::from_secs(60), steps: 1_000_000, ..Limits::default() };
    Pool::new(WorkerCommand { program, arguments: Vec::new() }, 1, limits).unwrap()
}

fn message(answers: &Answers) -> String {
    answers.error.as_ref().unwrap().to_string()
}

#[test]
fn programs_are_asked_for_run_and_kept_if_right() {
    let server = Server::start(|request, _| match request.question() {
        "What is 10 plus 1?" => program("return 12"),
        "What is 10 plus 2?" => program("return x"),
        "What is 10 plus 3?" => Reply::Whole(200, Vec::new(), completion("It is 13.", "stop")),
        "What is 10 plus 4?" => {
            Reply::Whole(200, Vec::new(), completion("def solution():\n    return 1", "length"))
        }
        _ => right(request),
    });
    let place = Place::new(&server.url());
    let answers = place.ask(&problems(6), 2);
    assert!(answers.error.is_none());
    let expected = Counts { questions: 12, programs: 10, no_program: 2, cut: 2, ..Counts::default() };
    assert_eq!(answers.counts, expected);
    let usage = Usage { requests: 12, prompt_tokens: 1200, completion_tokens: 120, ..Usage::default() };
    assert_eq!(answers.usage, usage);
    // in the order of the questions, and a question's programs together
    let origins: Vec<&str> = answers.candidates.iter().map(|c| c.origin.as_str()).collect();
    let expected =
        ["test-0", "test-0", "test-1", "test-1", "test-2", "test-2", "test-4", "test-4", "test-5", "test-5"];
    assert_eq!(origins, expected);
    assert_eq!(text(&answers)[0], "result = 10 + 0\n    return result");

    let (accepted, funnel) = answers.filter(&pool()).unwrap();
    let expected = Funnel { offered: 12, no_program: 2, raised: 2, limited: 0, wrong: 4, accepted: 4 };
    assert_eq!(funnel, expected);
    assert_eq!((accepted[3].origin.as_str(), accepted[3].chain.as_str()), ("test-5", "a chain"));

    let requests = server.requests();
    let first = &requests[0];
    assert_eq!(first.target, "POST /v1/chat/completions");
    assert_eq!(first.authorization.as_deref(), Some("Bearer sk-very-secret-0123"));
    assert_eq!((&first.body["model"], &first.body["max_tokens"]), (&"teacher-1".into(), &1024.into()));
    assert_eq!((&first.body["temperature"], first.body.get("seed")), (&0.0.into(), None));
    let prompt = |request: &Request| request.body["messages"][0]["content"].as_str().unwrap().to_owned();
    assert_eq!(prompt(first).matches("\ndef solution():\n    \"\"\"").count(), 4);
    let examples = |request: &Request| prompt(request).rsplit_once("Question: ").unwrap().0.to_owned();
    assert_eq!(examples(first), examples(&requests[5]));
    assert_ne!(examples(first), examples(&requests[6]), "each round has examples of its own");
}

#[test]
fn a_second_run_asks_nothing_and_other_requests_are_others() {
    let server = Server::start(|request, _| right(request));
    let mut place = Place::new(&server.url());
    let first = place.ask(&problems(3), 2);
    let second = place.ask(&problems(3), 2);
    assert_eq!((server.requests().len(), &first.candidates), (6, &second.candidates));
    assert_eq!(second.usage, Usage { cached: 6, ..Usage::default() });
    assert_eq!(second.usage.cost(None), Cost::Exactly(0.0));
    // more questions, more rounds: only what is new
    assert_eq!(place.ask(&problems(4), 3).usage.requests, 6);
    // another temperature, seed, model or server is another request
    place.settings.temperature = 0.5;
    assert_eq!(place.ask(&problems(1), 1).usage.requests, 1);
    place.settings.seed = Some(7);
    assert_eq!(place.ask(&problems(1), 1).usage.requests, 1);
    assert_eq!(server.requests().last().unwrap().body["seed"], 7);
    place.settings.model = "teacher-2".to_owned();
    assert_eq!(place.ask(&problems(1), 1).usage.requests, 1);
    let other = Server::start(|request, _| right(request));
    place.settings = Settings::new(&other.url(), "teacher-1", None).unwrap();
    assert_eq!(place.ask(&problems(1), 1).usage.requests, 1);
    assert_eq!(other.requests()[0].authorization, None);
}

#[test]
fn a_question_that_stands_there_twice_is_asked_once() {
    let server = Server::start(|request, _| right(request));
    let place = Place::new(&server.url());
    let twice = [problems(2), problems(1)].concat();
    let answers = place.ask(&twice, 1);
    assert_eq!((server.requests().len(), answers.counts.programs), (2, 3));
    assert_eq!((answers.usage.requests, answers.usage.cached), (2, 1));
    assert_eq!(answers.candidates[2].program, answers.candidates[0].program);
}

#[test]
fn a_busy_server_is_asked_again_after_the_pause_it_names() {
    let busy = |headers: Vec<(&'static str, String)>| {
        Reply::Whole(429, headers, "{\"error\": \"slow down\"}".to_owned())
    };
    let server = Server::start(move |request, before| match before {
        0 => busy(vec![("Retry-After", "7".to_owned())]),
        1 => busy(vec![("Retry-After", "Wed, 01 Jan 2025 12:01:30 GMT".to_owned())]),
        2 => busy(Vec::new()),
        _ => right(request),
    });
    let place = Place::new(&server.url());
    let answers = place.ask(&problems(2), 1);
    assert_eq!((answers.counts.programs, answers.usage.requests, answers.usage.retries), (2, 5, 3));
    assert_eq!(answers.usage.unmetered, 0);
    let pauses = place.clock.pauses();
    assert_eq!(pauses[..2], [Duration::from_secs(7), Duration::from_secs(90)]);
    // without a word of the server: between half of four seconds and all of them, at the third attempt
    assert!(pauses.len() == 3 && (2.0..=4.0).contains(&pauses[2].as_secs_f64()), "{pauses:?}");
}

#[test]
fn a_server_that_wants_hours_ends_the_run() {
    let server = Server::start(|request, before| match before {
        0 => right(request),
        _ => Reply::Whole(429, vec![("Retry-After", "86400".to_owned())], "daily limit".to_owned()),
    });
    let place = Place::new(&server.url());
    let answers = place.ask(&problems(3), 1);
    assert!(
        message(&answers).contains("status 429: daily limit; it asks to wait for 86400 s"),
        "{}",
        message(&answers)
    );
    assert_eq!((answers.counts.programs, answers.counts.not_answered), (1, 2));
    assert!(place.clock.pauses().is_empty());
}

#[test]
fn errors_of_the_server_pass_and_pauses_are_the_same_every_time() {
    let server = Server::start(|request, before| match before % 4 {
        0 => Reply::Whole(500, Vec::new(), String::new()),
        1 => Reply::Whole(503, Vec::new(), "<html>".to_owned()),
        2 => Reply::Whole(502, Vec::new(), String::new()),
        _ => right(request),
    });
    let run = |question: usize| {
        let place = Place::new(&server.url());
        let answers = place.ask(&problems(question + 1)[question..], 1);
        assert_eq!((answers.counts.programs, answers.usage.retries), (1, 3));
        place.clock.pauses()
    };
    let pauses = run(0);
    assert_eq!(pauses.len(), 3);
    for (pause, whole) in pauses.iter().zip([1.0, 2.0, 4.0]) {
        assert!((whole / 2.0..=whole).contains(&pause.as_secs_f64()), "{pauses:?}");
    }
    assert_eq!(pauses, run(0));
    assert_ne!(pauses, run(1), "requests that failed together do not come back together");
}

#[test]
fn a_server_that_stays_broken_ends_the_run_and_keeps_what_came() {
    let server = Server::start(|request, before| match before {
        0 => right(request),
        _ => Reply::Whole(504, Vec::new(), "{\"error\": {\"message\": \"upstream\"}}".to_owned()),
    });
    let place = Place::new(&server.url());
    let answers = place.ask(&problems(3), 1);
    let error = message(&answers);
    assert!(
        error.contains("/v1/chat/completions gave no answer, last of 4 requests: status 504: upstream"),
        "{error}"
    );
    assert!(error.contains("REPLICA_TEACHER_URL") && error.contains("answers that came are kept"), "{error}");
    assert_eq!(server.requests().len(), 5);
    assert_eq!((answers.counts.programs, answers.counts.not_answered, place.files().len()), (1, 2, 1));
}

#[test]
fn answers_that_cannot_be_read_are_asked_for_again_and_counted() {
    let whole = completion("def solution():\n    return 10", "stop");
    let bad = [
        "{\"choices\": [".to_owned(),
        "{\"choices\": []}".to_owned(),
        "{\"choices\": [{\"message\": {}}]}".to_owned(),
        "{\"error\": {\"message\": \"overloaded\"}}".to_owned(),
        String::new(),
    ];
    for bad in bad {
        let body = bad.clone();
        let server = Server::start(move |request, _| match request.question() {
            "What is 10 plus 0?" => Reply::Whole(200, Vec::new(), body.clone()),
            _ => right(request),
        });
        let place = Place::new(&server.url());
        let answers = place.ask(&problems(2), 1);
        assert!(answers.error.is_none(), "{bad}");
        assert_eq!((answers.counts.unreadable, answers.counts.programs), (1, 1), "{bad}");
        assert_eq!(
            (answers.usage.requests, answers.usage.retries, answers.usage.unmetered),
            (5, 3, 4),
            "{bad}"
        );
        let warning = &place.warnings()[0];
        assert!(
            warning.contains("cannot be read") && warning.ends_with("given up after 4 requests"),
            "{warning}"
        );
        // nothing is kept of it: the next run asks again
        assert_eq!((place.files().len(), place.ask(&problems(2), 1).usage.requests), (1, 4), "{bad}");
    }
    // a connection that breaks off in the middle
    let server = Server::start(move |request, before| match before {
        0 | 1 => Reply::CutAfter(20, whole.clone()),
        _ => right(request),
    });
    let place = Place::new(&server.url());
    let answers = place.ask(&problems(1), 1);
    assert_eq!((answers.counts.programs, answers.usage.retries, answers.usage.unmetered), (1, 2, 2));
}

#[test]
fn null_is_an_answer_without_a_program() {
    let body = completion("", "length").replace("\"content\":\"\"", "\"content\":null");
    let server = Server::start(move |_, _| Reply::Whole(200, Vec::new(), body.clone()));
    let answers = Place::new(&server.url()).ask(&problems(1), 1);
    assert_eq!((answers.counts.no_program, answers.counts.cut, answers.usage.retries), (1, 1, 0));
}

#[test]
fn slow_answers_are_given_up() {
    let server = Server::start(|request, before| match before {
        0 => Reply::Silence,
        _ => right(request),
    });
    let mut place = Place::new(&server.url());
    // only the first request waits for it: the second has an answer at once, but may be slow on a busy machine
    place.settings.timeout = Duration::from_millis(300);
    place.settings.attempts = 20;
    let answers = place.ask(&problems(1), 1);
    assert_eq!(answers.counts.programs, 1);
    assert!(answers.usage.retries >= 1 && answers.usage.unmetered == answers.usage.retries);
    assert!(matches!(answers.usage.cost(Some(Prices { prompt: 1.0, completion: 1.0 })), Cost::AtLeast(_)));

    let silent = Server::start(|_, _| Reply::Silence);
    let mut place = Place::new(&silent.url());
    place.settings.timeout = Duration::from_millis(50);
    place.settings.attempts = 2;
    let error = message(&place.ask(&problems(1), 1));
    assert!(error.contains("last of 2 requests: no answer in 50ms"), "{error}");
}

#[test]
fn nobody_there() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let place = Place::new(&format!("http://127.0.0.1:{port}/v1"));
    let answers = place.ask(&problems(2), 1);
    let error = message(&answers);
    assert!(error.contains(&port.to_string()) && error.contains("no connection"), "{error}");
    assert_eq!((answers.usage.requests, answers.usage.unmetered, answers.counts.not_answered), (4, 0, 2));
}

#[test]
fn refusals_are_not_repeated_and_show_the_servers_message_without_the_key() {
    for (status, advice) in [
        (400, "check REPLICA_TEACHER_MODEL"),
        (401, "set REPLICA_TEACHER_KEY"),
        (403, "set REPLICA_TEACHER_KEY"),
        (404, "check REPLICA_TEACHER_URL"),
        (308, "has moved"),
    ] {
        let server = Server::start(move |_, _| {
            let body = format!("{{\"error\": {{\"message\": \"wrong: {KEY}\"}}}}");
            Reply::Whole(status, vec![("Location", "http://127.0.0.1:9/".to_owned())], body)
        });
        let place = Place::new(&server.url());
        let answers = place.ask(&problems(3), 1);
        let error = message(&answers);
        assert!(matches!(answers.error, Some(TeacherError::Refused { status: s, .. }) if s == status));
        assert!(
            error.contains(&format!("(status {status}): wrong: [key]; {advice}")) || status == 308,
            "{error}"
        );
        assert!(error.contains(advice) && !error.contains(KEY), "{error}");
        assert_eq!((server.requests().len(), answers.usage.retries), (1, 0));
    }
}

#[test]
fn the_key_is_in_no_file_even_if_the_server_repeats_it() {
    let server = Server::start(|_, _| {
        let content = format!("def solution():\n    return '{KEY}'");
        Reply::Whole(200, Vec::new(), completion(&content, KEY).replace("chatcmpl-1", KEY))
    });
    let place = Place::new(&server.url());
    let answers = place.ask(&problems(2), 1);
    assert_eq!(text(&answers)[0], "return '[key]'");
    let files = place.files();
    assert_eq!(files.len(), 2);
    assert!(files.iter().all(|file| !fs::read_to_string(file).unwrap().contains(KEY)));
}

#[test]
fn an_interrupted_run_goes_on_where_it_stopped() {
    let server = Server::start(|request, _| right(request));
    let place = Place::new(&server.url());
    let stop = AtomicBool::new(false);
    let interrupt = |event: Event<'_>| {
        if let Event::Done { done: 3, total } = event {
            assert_eq!(total, 10);
            stop.store(true, Ordering::SeqCst);
        }
    };
    let first = place.teacher().programs(&problems(5), 2, &stop, &interrupt);
    assert!(first.error.is_none());
    assert_eq!((first.counts.programs, first.counts.not_answered, server.requests().len()), (3, 7, 3));
    let second = place.ask(&problems(5), 2);
    assert_eq!((second.usage.requests, second.usage.cached, server.requests().len()), (7, 3, 10));
    let asked: BTreeSet<String> = server.requests().iter().map(|r| r.body.to_string()).collect();
    assert_eq!(asked.len(), 10, "nothing was asked twice");
    let whole = Place::new(&server.url()).ask(&problems(5), 2);
    assert_eq!(second.candidates, whole.candidates);
}

#[test]
fn a_stop_ends_a_pause_without_another_request() {
    let server = Server::start(|_, _| Reply::Whole(500, Vec::new(), String::new()));
    let place = Place::new(&server.url());
    let stop = AtomicBool::new(false);
    let interrupt = |event: Event<'_>| match event {
        Event::Waiting { .. } => stop.store(true, Ordering::SeqCst),
        _ => panic!("{event:?}"),
    };
    let answers = place.teacher().programs(&problems(2), 1, &stop, &interrupt);
    assert!(answers.error.is_none());
    assert_eq!((answers.counts.not_answered, server.requests().len()), (2, 1));
}

#[test]
fn damaged_answers_are_set_aside_and_asked_for_again() {
    let server = Server::start(|request, _| right(request));
    let place = Place::new(&server.url());
    let first = place.ask(&problems(4), 1);
    let files = place.files();
    let contents: Vec<String> = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    fs::write(&files[0], &contents[0][..contents[0].len() / 2]).unwrap();
    fs::write(&files[1], contents[1].replace("result = 10", "result = 11")).unwrap();
    fs::write(&files[2], &contents[3]).unwrap();
    let second = place.ask(&problems(4), 1);
    assert_eq!((second.usage.requests, second.usage.cached), (3, 1));
    assert_eq!(second.candidates, first.candidates);
    let warnings = place.warnings();
    assert_eq!(warnings.len(), 3);
    for problem in ["EOF while parsing", "its content is not what was written", "it answers another request"]
    {
        let warning = warnings.iter().find(|w| w.contains(problem)).unwrap();
        assert!(warning.contains("it was moved to") && warning.contains("refused-1.json"), "{warning}");
        assert!(warning.ends_with("the teacher is asked again"), "{warning}");
    }
    let aside = |file: &Path| PathBuf::from(file.to_string_lossy().replace(".json", ".refused-1.json"));
    assert_eq!(fs::read_to_string(aside(&files[2])).unwrap(), contents[3]);
    assert_eq!(place.ask(&problems(4), 1).usage.requests, 0);
}

#[test]
fn a_folder_that_cannot_be_written_is_told() {
    let server = Server::start(|request, _| right(request));
    let place = Place::new(&server.url());
    let file = place.folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error = Teacher::new(place.settings.clone(), file.join("answers")).err().unwrap().to_string();
    assert!(error.starts_with("cannot keep answers in") && error.contains("a file stands"), "{error}");
    // a file where the folder of an answer should be
    place.ask(&problems(1), 1);
    let folder = place.files()[0].parent().unwrap().to_owned();
    fs::remove_dir_all(&folder).unwrap();
    fs::write(&folder, "").unwrap();
    let answers = place.ask(&problems(1), 1);
    assert!(matches!(answers.error, Some(TeacherError::Cache { .. })));
}

#[test]
fn results_do_not_depend_on_the_number_of_requests_at_a_time() {
    let server = Server::start(|request, _| match request.question() {
        "What is 10 plus 7?" => Reply::Whole(200, Vec::new(), "{}".to_owned()),
        _ => right(request),
    });
    let run = |parallel| {
        let mut place = Place::new(&server.url());
        place.settings.parallel = parallel;
        let answers = place.ask(&problems(20), 2);
        assert_eq!(place.files().len(), 38);
        (answers.candidates, answers.counts, answers.usage)
    };
    let alone = run(1);
    assert_eq!((alone.1.programs, alone.1.unreadable, alone.2.requests), (38, 2, 46));
    assert_eq!(alone, run(8));
}

#[test]
fn tokens_and_cost_add_up() {
    let server = Server::start(|request, before| {
        let Reply::Whole(status, headers, body) = right(request) else { panic!("a whole answer") };
        let body = match before {
            2 => body.replace("\"usage\"", "\"other\""),
            _ => body,
        };
        Reply::Whole(status, headers, body)
    });
    let prices = Some(Prices { prompt: 0.5, completion: 1.5 });
    let metered = Place::new(&server.url()).ask(&problems(2), 1).usage;
    assert_eq!((metered.prompt_tokens, metered.completion_tokens, metered.unmetered), (200, 20, 0));
    assert_eq!(metered.cost(prices), Cost::Exactly(200.0 / 1e6 * 0.5 + 20.0 / 1e6 * 1.5));
    assert_eq!(metered.cost(None), Cost::Unknown);
    let one_without = Place::new(&server.url()).ask(&problems(2), 1).usage;
    assert_eq!((one_without.prompt_tokens, one_without.unmetered), (100, 1));
    assert!(matches!(one_without.cost(prices), Cost::AtLeast(_)));
    let json = serde_json::to_value(one_without).unwrap();
    assert_eq!(
        (&json["requests"], &json["prompt_tokens"], &json["unmetered"]),
        (&2.into(), &100.into(), &1.into())
    );
}
