//! From candidates to training data.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use replica_datasets::{Error, Sources, Split, TextDataset};
use replica_pad::exec::{Limits, Pool, WorkerCommand};
use replica_pad::judge::Answer;
use replica_pad::problems::Problem;
use replica_pad::synthesis::{Funnel, Gsm8k, filter, from_marks};

fn pool() -> Pool {
    let program = env!("CARGO_BIN_EXE_pad-worker").into();
    let limits = Limits { time: Duration::from_secs(60), steps: 1_000_000, ..Limits::default() };
    Pool::new(WorkerCommand { program, arguments: Vec::new() }, 2, limits).unwrap()
}

#[test]
fn only_right_programs_stay_and_every_loss_is_counted() {
    let candidate = |body: &str| Problem {
        origin: String::new(),
        question: body.to_owned(),
        program: format!("def solution():\n    {body}"),
        chain: String::new(),
        answer: Answer::Number(6.0),
    };
    let bodies = ["return 6", "return 6.4", "return x", "while True: pass", "return 2 * 3.0", "return 'six'"];
    let (kept, funnel) = filter(&pool(), bodies.map(candidate).to_vec()).unwrap();
    let questions: Vec<&str> = kept.iter().map(|c| c.question.as_str()).collect();
    assert_eq!(questions, ["return 6", "return 2 * 3.0"]);
    let expected = Funnel { offered: 6, no_program: 0, raised: 1, limited: 1, wrong: 2, accepted: 2 };
    assert_eq!(funnel, expected);
}

#[test]
fn marks_are_converted_and_filtered() {
    let text = r#"{"question": "a", "answer": "<<2+3=5>>5, <<5*2=10>>10\n#### 10"}
{"question": "b", "answer": "<<2+3=5>>5 more than 1,000\n#### 1,005"}

{"question": "c", "answer": "no marks\n#### 3"}"#;
    let (kept, funnel) = from_marks(&pool(), &Gsm8k::parse(text).unwrap()).unwrap();
    assert_eq!((kept.len(), kept[0].question.as_str(), &kept[0].answer), (1, "a", &Answer::Number(10.0)));
    let expected = Funnel { offered: 3, no_program: 1, raised: 0, limited: 0, wrong: 1, accepted: 1 };
    assert_eq!(funnel, expected);
    let error = Gsm8k::parse("{\"question\": \"a\", \"answer\": \"\"}\n{\"question\": \"b\"}").unwrap_err();
    assert!(error.to_string().starts_with("GSM8K, line 2: missing field `answer`"), "{error}");
}

/// The counts of the rule on the published files, where they are.
#[test]
fn published_counts() {
    let sources = Sources::offline(std::env::temp_dir().join("replica-pad-no-cache"));
    let sources = Sources { folder: Sources::from_environment().folder, ..sources };
    if sources.folder.is_none() {
        println!("skipped: REPLICA_DATA is not set");
        return;
    }
    let data = match TextDataset::load_splits("gsm8k", &[Split::Train, Split::Test], &sources) {
        Err(Error::Missing { .. }) => {
            println!("skipped: GSM8K is not in REPLICA_DATA");
            return;
        }
        data => data.unwrap(),
    };
    let pool = pool();
    let funnel = |split| {
        let (_, funnel) = from_marks(&pool, &Gsm8k::parse(data.split(split).unwrap()).unwrap()).unwrap();
        println!("{split:?}: {funnel:?}");
        funnel
    };
    let train = funnel(Split::Train);
    assert_eq!((train.offered, train.no_program, train.accepted), (7473, 95, 7001));
    assert_eq!((train.wrong, train.raised + train.limited), (377, 0));
    let test = funnel(Split::Test);
    assert_eq!((test.offered, test.accepted), (1319, 1207));
}
