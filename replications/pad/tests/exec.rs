//! Programs in worker processes: agreement with CPython, and programs that mean harm.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod hostile;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use hostile::{LIMITS, assert_intact, command, hostile, hostile_texts};
use replica_core::Seed;
use replica_oracle::{folder, json};
use replica_pad::exec::{Limit, Limits, Outcome, Pool, PoolError, WorkerCommand, with_call};
use replica_pad::judge::{Answer, judge, judge_chain};
use replica_pad::problems::Templates;
use serde_json::Value;

fn pool() -> Pool {
    Pool::new(command(), 2, LIMITS).unwrap()
}

/// Whether two outputs are the same text, or the same but for numbers that differ by less than a billionth.
fn same_output(got: &str, expected: &str) -> bool {
    let words = |text: &str| -> Vec<String> {
        text.split(|c: char| c.is_whitespace() || "[](),".contains(c)).map(str::to_owned).collect()
    };
    let (got, expected) = (words(got), words(expected));
    let same = |(a, b): (&String, &String)| match (a.parse::<f64>(), b.parse::<f64>()) {
        (Ok(a), Ok(b)) if a.is_finite() && b.is_finite() => (a - b).abs() <= 1e-9 * b.abs(),
        _ => a == b,
    };
    got.len() == expected.len() && got.iter().zip(&expected).all(same)
}

/// The class that this interpreter has for an exception of CPython.
fn class(kind: &str) -> &str {
    if matches!(kind, "IndentationError" | "TabError") { "SyntaxError" } else { kind }
}

/// Whether an outcome is the one that CPython had.
fn agrees(outcome: &Outcome, cpython: &Value) -> bool {
    match (outcome, cpython["status"].as_str().unwrap()) {
        (Outcome::Finished { stdout }, "ok") => same_output(stdout, cpython["stdout"].as_str().unwrap()),
        (Outcome::Raised { kind, .. }, "error") => kind == class(cpython["exc_type"].as_str().unwrap()),
        (Outcome::Limited { .. }, "timeout") => true,
        _ => false,
    }
}

fn called(cases: &[Value]) -> Vec<String> {
    cases.iter().map(|case| with_call(case["code"].as_str().unwrap())).collect()
}

/// Programs of models with CPython's outcomes: those of the oracle where it is, and ours.
#[test]
fn outcomes_agree_with_cpython() {
    let ours = serde_json::from_str(include_str!("programs.json")).unwrap();
    let path = folder("pad").join("programs.json");
    let mut files: Vec<Value> = vec![ours];
    files.extend(path.is_file().then(|| json(&path)));
    let pool = Pool::new(command(), 2, Limits { steps: 20_000_000, ..LIMITS }).unwrap();
    for file in files {
        let cases = file["cases"].as_array().unwrap();
        let outcomes = pool.run(&called(cases)).unwrap();
        let mut differ = Vec::new();
        for (case, outcome) in cases.iter().zip(&outcomes) {
            let same_verdicts = case["gold"].as_f64().is_none_or(|gold| {
                let verdict = judge(outcome, &gold.into());
                Some(verdict.paper) == case["repo_correct"].as_bool()
                    && Some(verdict.strict) == case["tol_correct"].as_bool()
            });
            let expected = case["differs"].is_null();
            if (same_verdicts && agrees(outcome, &case["cpython"])) != expected {
                differ.push(format!("{}: {outcome:?}, CPython {}", case["id"], case["cpython"]));
            }
        }
        let known = cases.iter().filter(|case| !case["differs"].is_null()).count();
        let same = cases.len() - differ.len() - known;
        println!("{same} of {} programs as CPython, {known} known to differ", cases.len());
        assert!(differ.is_empty(), "{}", differ.join("\n"));
    }
}

#[test]
fn adversarial_programs_do_what_they_must() {
    let file = json(&folder("pad").join("adversarial.json"));
    let cases = file["cases"].as_array().unwrap();
    let pool = pool();
    let outcomes = pool.run(&called(cases)).unwrap();
    let mut wrong = Vec::new();
    for (case, outcome) in cases.iter().zip(&outcomes) {
        let agrees = || agrees(outcome, &case["cpython"]);
        let crashed = matches!(outcome, Outcome::Crashed { .. });
        let limited = matches!(outcome, Outcome::Limited { .. });
        let refused = matches!(outcome, Outcome::Raised { .. } | Outcome::Unsupported { .. });
        let fine = match case["required"].as_str().unwrap() {
            "value" | "error" => agrees(),
            "blocked" => refused,
            "blocked-or-value" | "value-or-unsupported" => refused || agrees(),
            // there is no module that waits
            "limit-time" => limited || (refused && case["id"] == "sleep"),
            "limit-memory" => limited,
            "no-crash" => !crashed,
            other => panic!("{}: required {other}", case["id"]),
        };
        if !fine {
            wrong.push(format!("{}: {} is required, {outcome:?}", case["id"], case["required"]));
        }
    }
    println!("{} of {} adversarial programs as required", cases.len() - wrong.len(), cases.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn hostile_programs_end_and_leave_nothing_behind() {
    let pool = pool();
    let programs = hostile();
    let outcomes = pool.run(&programs).unwrap();
    for (program, outcome) in programs.iter().zip(&outcomes) {
        let stopped =
            matches!(outcome, Outcome::Limited { .. } | Outcome::Raised { .. } | Outcome::Unsupported { .. });
        assert!(stopped, "{program}\n{outcome:?}");
    }
    for (text, outcome) in hostile_texts().iter().zip(pool.run(&hostile_texts()).unwrap()) {
        let start: String = text.chars().take(60).collect();
        assert!(!matches!(outcome, Outcome::Crashed { .. }), "{start}\n{outcome:?}");
    }
    // where workers are, and where this test is
    for folder in ["/", "."] {
        assert!(!std::path::Path::new(folder).join("replica-pad-was-here").exists());
    }
    assert_intact(&pool, 2);
}

#[test]
fn each_limit_is_named() {
    let small = Limits { source: 200, output: 100, recursion: 50, ..LIMITS };
    let pool = Pool::new(command(), 1, small).unwrap();
    let long = format!("x = {}", "1 + ".repeat(100) + "1");
    let programs = [
        "while True:\n    pass",
        "l = []\nwhile True:\n    l.append('x' * 10000)",
        "print('x' * 200)",
        &long,
        "def f(n):\n    return f(n + 1)\nf(0)",
        "def f(n):\n    return n and f(n - 1)\nprint(f(40))",
        "print('x' * 99)",
    ];
    let outcomes = pool.run(&programs).unwrap();
    let limits: Vec<_> = outcomes
        .iter()
        .map(|outcome| match outcome {
            Outcome::Limited { limit } => Some(*limit),
            _ => None,
        })
        .collect();
    let named = [Limit::Steps, Limit::Memory, Limit::Output, Limit::Source].map(Some);
    assert_eq!(limits[..4], named, "{outcomes:?}");
    assert!(matches!(&outcomes[4], Outcome::Raised { kind, .. } if kind == "RecursionError"));
    assert_eq!(outcomes[5].stdout(), Some("0\n"));
    assert_eq!(outcomes[6].stdout().map(str::len), Some(100));
}

/// What runs inside one instruction is ended by the clock: the first by the interpreter, which looks at it, the second by
/// the pool.
#[test]
fn what_no_step_counts_is_ended_by_the_clock() {
    let limits = Limits { time: Duration::from_millis(500), ..LIMITS };
    let programs = ["sum(range(10**12))", "x = 3\nwhile True:\n    x = x * x", "print(1)"];
    let outcomes = Pool::new(command(), 1, limits).unwrap().run(&programs).unwrap();
    let time = Outcome::Limited { limit: Limit::Time };
    assert_eq!(outcomes[..2], [time.clone(), time]);
    assert_eq!(outcomes[2].stdout(), Some("1\n"));
}

/// What a step is does not depend on the machine, and a program ends at the same one every time.
#[test]
fn outcomes_are_the_same_every_time() {
    let programs: Vec<String> =
        (0..50).map(|i| format!("n = 0\nwhile n < {}:\n    n += 1\nprint(n)", 100_000 + 2_500 * i)).collect();
    let pool = pool();
    let first = pool.run(&programs).unwrap();
    assert!(first.iter().any(|o| o.stdout().is_some()) && first.iter().any(|o| o.stdout().is_none()));
    assert_eq!(pool.run(&programs).unwrap(), first);
}

#[test]
fn errors_have_message_and_line() {
    let programs =
        ["x = 1\ny = undefined", "def f():\n    x = (1 +\n    return x", "raise ValueError('a\\nb')"];
    let outcomes = pool().run(&programs).unwrap();
    assert_eq!(outcomes[0].last_line().as_deref(), Some("NameError: name 'undefined' is not defined"));
    assert!(matches!(outcomes[0], Outcome::Raised { line: Some(2), .. }), "{:?}", outcomes[0]);
    assert!(outcomes[1].last_line().unwrap().starts_with("SyntaxError: "), "{:?}", outcomes[1]);
    assert_eq!(outcomes[2].last_line().as_deref(), Some("ValueError: a\nb"));
}

/// Python gives complex numbers and errors where this interpreter gives nan and inf: no wrong value gets out.
#[test]
fn what_would_be_wrong_is_refused() {
    let outcomes = pool()
        .run(&[
            "print((-8) ** 0.5)",
            "print(2.0 ** 5000)",
            "print(pow(-1.0, 0.5))",
            "print(float('nan'))",
            "print(round(2.675, 2), round(0.5), round(2.5), round(-1.5), round(1234.5, -2), round(7))",
            "print([round(x, 1) for x in [0.25, 0.35, 1e22]], round(2.5, ndigits=0), round(3, 1))",
            "def round(x):\n    return 'mine'\nprint(round(1.5))",
        ])
        .unwrap();
    for outcome in &outcomes[..3] {
        assert!(matches!(outcome, Outcome::Unsupported { .. }), "{outcome:?}");
    }
    let printed: Vec<_> = outcomes[3..].iter().map(|o| o.stdout()).collect();
    let expected = ["nan\n", "2.67 0 2 -2 1200.0 7\n", "[0.2, 0.3, 1e+22] 2.0 3\n", "mine\n"];
    assert_eq!(printed, expected.map(Some), "{outcomes:?}");
}

#[cfg(unix)]
#[test]
fn a_worker_killed_from_outside_is_replaced() {
    let pool = pool();
    let before = pool.process_ids();
    for id in &before {
        let id = rustix::process::Pid::from_raw(*id as i32).unwrap();
        rustix::process::kill_process(id, rustix::process::Signal::KILL).unwrap();
    }
    let outcomes = pool.run(&["print(1)", "print(2)", "print(3)"]).unwrap();
    let printed: Vec<_> = outcomes.iter().map(|o| o.stdout().unwrap()).collect();
    assert_eq!(printed, ["1\n", "2\n", "3\n"]);
    assert!(pool.process_ids().iter().all(|id| !before.contains(id)));
}

#[cfg(unix)]
#[test]
fn what_is_no_worker_is_named() {
    let start = |program: &str, arguments: &[&str]| {
        let arguments = arguments.iter().map(|a| (*a).to_owned()).collect();
        Pool::new(WorkerCommand { program: PathBuf::from(program), arguments }, 1, LIMITS).err().unwrap()
    };
    let missing = start("/nowhere/worker", &[]);
    assert!(missing.to_string().starts_with("/nowhere/worker: a worker for programs does not start"));
    for other in [start("/bin/true", &[]), start("/bin/echo", &["not a length at all"])] {
        assert!(matches!(other, PoolError::Answer { .. }), "{other}");
    }
}

/// Every generated program runs, gives its answer, and both rules say so; the chain of thought ends in it, too.
#[test]
fn generated_problems_are_verified() {
    let problems = Templates::embedded().draw(200, Seed(1), "train");
    let programs: Vec<String> = problems.iter().map(|problem| with_call(&problem.program)).collect();
    for (problem, outcome) in problems.iter().zip(pool().run(&programs).unwrap()) {
        let verdict = judge(&outcome, &problem.answer);
        assert!(verdict.paper && verdict.strict, "{problem:?}\n{outcome:?}");
        assert_eq!(judge_chain(&problem.chain, &problem.answer), verdict, "{problem:?}");
        assert!(!judge(&outcome, &Answer::Number(-1.0)).paper);
    }
}

/// `cargo test --release -p replica-pad --test exec -- --ignored --nocapture a_second`.
#[test]
#[ignore = "a measurement"]
fn programs_a_second() {
    let pool = Pool::new(command(), 2, Limits::default()).unwrap();
    let programs: Vec<String> = (0..20_000)
        .map(|i| {
            let body =
                format!("step_1 = {i}*5\n    step_2 = step_1+8\n    result = step_2\n    return result");
            with_call(&format!("def solution():\n    \n    {body}"))
        })
        .collect();
    let start = Instant::now();
    let outcomes = pool.run(&programs).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    assert!(outcomes.iter().enumerate().all(|(i, o)| o.stdout() == Some(&format!("{}\n", 5 * i + 8))));
    println!("{:.0} programs a second with 2 workers", programs.len() as f64 / seconds);
}
