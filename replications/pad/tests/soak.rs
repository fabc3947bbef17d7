//! Thousands of random and hostile programs: no slot is lost, no process left, no memory kept. One test in a process of
//! its own, which counts its children.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod hostile;

use std::time::Instant;

use hostile::{LIMITS, assert_intact, command, hostile, hostile_texts};
use rand::Rng;
use replica_core::Seed;
use replica_pad::exec::{Limits, Outcome, Pool, with_call};

/// Children of this process, dead or alive.
#[cfg(target_os = "linux")]
fn children() -> Vec<u32> {
    let mut all = Vec::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let children = std::fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default();
        all.extend(children.split_whitespace().map(|id| id.parse::<u32>().unwrap()));
    }
    all.sort_unstable();
    all
}

/// A program made of words that belong into programs, in no order that does.
fn word_salad(rng: &mut impl Rng) -> String {
    const WORDS: [&str; 36] = [
        "def",
        "solution",
        "(",
        ")",
        ":",
        "\n",
        "\n    ",
        "\n        ",
        "x",
        "y",
        "=",
        "+",
        "**",
        "/",
        "//",
        "%",
        "1",
        "0",
        "99",
        "1e9",
        "'s'",
        "[",
        "]",
        "{",
        "}",
        "for",
        "in",
        "range",
        "while",
        "True",
        "if",
        "else",
        "return",
        "lambda",
        "print",
        ",",
    ];
    let length = 5 + rng.next_u32() as usize % 60;
    let words: Vec<&str> = (0..length).map(|_| WORDS[rng.next_u32() as usize % WORDS.len()]).collect();
    format!("def solution():\n    {}", words.join(" "))
}

/// `count` programs, most of them hostile, the others random.
fn soak(count: usize) {
    let mut rng = Seed(7).stream("soak");
    let hostile: Vec<String> = hostile().into_iter().chain(hostile_texts()).collect();
    let good = with_call("def solution():\n    return sum([i * i for i in range(50)])");
    let programs: Vec<String> = (0..count)
        .map(|_| match rng.next_u32() % 10 {
            0..=4 => with_call(&word_salad(&mut rng)),
            5..=8 => hostile[rng.next_u32() as usize % hostile.len()].clone(),
            _ => good.clone(),
        })
        .collect();
    let pool = Pool::new(command(), 2, Limits { steps: 100_000, ..LIMITS }).unwrap();
    let memory = resident();
    let start = Instant::now();
    let mut ended = std::collections::BTreeMap::<&str, usize>::new();
    for programs in programs.chunks(500) {
        for (program, outcome) in programs.iter().zip(pool.run(programs).unwrap()) {
            let name = match &outcome {
                Outcome::Finished { .. } => "finished",
                Outcome::Raised { .. } => "raised",
                Outcome::Unsupported { .. } => "unsupported",
                Outcome::Limited { .. } => "limited",
                Outcome::Crashed { how } => panic!("{how}: {program}"),
            };
            *ended.entry(name).or_default() += 1;
            assert_eq!(*program == good, outcome.stdout() == Some("40425\n"), "{program}\n{outcome:?}");
        }
    }
    println!("{count} programs in {:.1} s: {ended:?}", start.elapsed().as_secs_f64());
    assert_intact(&pool, 2);
    let grown = resident().saturating_sub(memory);
    println!("the parent grew by {} KiB", grown >> 10);
    assert!(grown < 32 << 20, "the parent grew by {} KiB", grown >> 10);
    #[cfg(target_os = "linux")]
    {
        let mut alive = pool.process_ids();
        alive.sort_unstable();
        assert_eq!(children(), alive, "a worker that died was not buried");
        drop(pool);
        assert!(children().is_empty(), "workers outlive their pool: {:?}", children());
    }
}

/// Resident bytes of this process.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|p| p.parse().ok()).unwrap_or(0);
    pages * 4096
}

#[test]
fn no_slot_is_lost_to_random_and_hostile_programs() {
    soak(150);
}

/// The long form of the test above.
#[test]
#[ignore = "takes minutes"]
fn no_slot_is_lost_to_ten_thousand_programs() {
    soak(10_000);
}
