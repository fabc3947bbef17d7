//! Programs and chains of generated problems, run and judged.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use replica_core::Seed;
use replica_datasets::{Error, Sources, Split, TextDataset};
use replica_pad::corruption::corrupted;
use replica_pad::exec::{Limits, Pool, WorkerCommand, with_call};
use replica_pad::judge::{Answer, Verdict, judge, judge_chain};
use replica_pad::problems::{Problem, Templates};
use replica_pad::published::{
    PublishedError, asdiv, big_bench_hard, gsm_hard, multiarith, program_of_thoughts, svamp,
};
use replica_pad::renumbered::{Renumbered, held_out};
use replica_pad::symbolic::{Task, all_names};
use replica_pad::synthesis::{Funnel, filter};
use replica_pad::variants::augment;

const BOTH: Verdict = Verdict { paper: true, strict: true };

fn pool() -> Pool {
    let program = env!("CARGO_BIN_EXE_pad-worker").into();
    let limits = Limits { time: Duration::from_secs(60), steps: 1_000_000, ..Limits::default() };
    Pool::new(WorkerCommand { program, arguments: Vec::new() }, 2, limits).unwrap()
}

/// A data set's files, if the data folder has them.
fn data(name: &str, split: Split) -> Option<Vec<(String, String)>> {
    let no_cache = Sources::offline(std::env::temp_dir().join("replica-pad-no-cache"));
    let sources = Sources { folder: Sources::from_environment().folder, ..no_cache };
    match TextDataset::load_splits(name, &[split], &sources) {
        Err(Error::Missing { .. }) => {
            println!("skipped: REPLICA_DATA is not set or has no {name}");
            None
        }
        data => {
            let data = data.unwrap();
            let files = data.files_of(split).unwrap().into_iter();
            Some(files.map(|(name, text)| (name.to_owned(), text.to_owned())).collect())
        }
    }
}

/// Every program and every chain is right.
fn assert_right(pool: &Pool, problems: &[Problem], rule: impl Fn(Verdict) -> bool) {
    let programs: Vec<String> = problems.iter().map(|problem| with_call(&problem.program)).collect();
    for (problem, outcome) in problems.iter().zip(pool.run(&programs).unwrap()) {
        assert!(rule(judge(&outcome, &problem.answer)), "{problem:?}: {outcome:?}");
        assert!(rule(judge_chain(&problem.chain, &problem.answer)), "{problem:?}");
    }
}

#[test]
fn symbolic_targets_are_right() {
    let pool = pool();
    for task in [Task::CoinFlip, Task::LastLetters] {
        for size in [1, 2, 4, 12] {
            assert_right(&pool, &task.draw(size, 100, Seed(1), "train"), |verdict| verdict == BOTH);
        }
    }
}

#[test]
fn variants_are_run_before_they_are_used() {
    let problems = Templates::embedded().draw(100, Seed(1), "train");
    let (all, funnel) = filter(&pool(), augment(problems.clone(), 8, Seed(1), "variants")).unwrap();
    assert_eq!(funnel.offered, 800, "every template has eight surfaces");
    assert_eq!(funnel.accepted, 800);
    let mut of: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    all.iter().for_each(|problem| of.entry(&problem.question).or_default().push(&problem.program));
    for problem in &problems {
        assert!(of[problem.question.as_str()].contains(&problem.program.as_str()));
    }
    // a program that was wrong before is not made right by another surface
    let wrong = Problem { answer: Answer::Number(-1.0), ..problems[0].clone() };
    let (kept, funnel) = filter(&pool(), augment(vec![wrong], 4, Seed(1), "variants")).unwrap();
    assert_eq!((kept.len(), funnel.offered, funnel.wrong), (0, 4, 4));
}

#[test]
fn the_filter_finds_mistakes() {
    let problems = Templates::embedded().draw(600, Seed(1), "train");
    let mistakes = corrupted(&problems, 1.0, Seed(1), "mistakes");
    assert!(mistakes.iter().zip(&problems).all(|(now, before)| now.program != before.program));
    let (kept, funnel) = filter(&pool(), mistakes).unwrap();
    println!("{funnel:?}");
    // those that change nothing, such as 2 * 2 for 2 + 2
    assert!(kept.len() <= 6, "{kept:#?}");
    assert!(funnel.raised > 150 && funnel.wrong > 300, "{funnel:?}");
    // half of them wrong: all of the others stay
    let half = corrupted(&problems, 0.5, Seed(1), "mistakes");
    let right: Vec<&Problem> = half.iter().zip(&problems).filter(|(a, b)| a == b).map(|(a, _)| a).collect();
    let (kept, _) = filter(&pool(), half.clone()).unwrap();
    assert!(right.iter().all(|problem| kept.contains(problem)));
    assert!(kept.len() - right.len() <= 6);
}

#[test]
fn public_symbolic_items() {
    let pool = pool();
    for (task, answers) in [(Task::CoinFlip, 500), (Task::LastLetters, 485)] {
        let Some(files) = data(task.name(), Split::Test) else { return };
        let items = task.public(&files[0].1).unwrap();
        assert_eq!(items.len(), 500);
        let words: BTreeSet<&str> = items.iter().flat_map(|item| item.question.split([' ', '"'])).collect();
        assert!(words.len() > 1900);
        assert_eq!(all_names().find(|name| words.contains(name.as_str())), None, "one of the public names");
        let right: Vec<Problem> = items.into_iter().filter(|item| !item.program.is_empty()).collect();
        assert_eq!(right.len(), answers);
        assert_right(&pool, &right, |verdict| verdict == BOTH);
    }
}

#[test]
fn renumbered_templates() {
    let Some(files) = data("mawps-asdiv", Split::Train) else { return };
    let templates = Renumbered::parse(&files[0].1).unwrap();
    assert_eq!((templates.len(), templates.dropped()), (3132, 6));
    let pool = pool();
    let published = templates.published();
    let strict = |verdict: Verdict| verdict.strict;
    assert_right(&pool, &published, strict);
    for range in [2..=99, 10..=999_999] {
        let problems = templates.draw(range.clone(), templates.len(), Seed(1), "test");
        assert_eq!(problems.len(), templates.len());
        assert_right(&pool, &problems, strict);
        let own =
            problems.iter().zip(templates.origins()).filter(|(problem, origin)| problem.origin == *origin);
        println!("{range:?}: {} of {} templates can be drawn", own.count(), templates.len());
    }
    let held = templates.only(|origin| held_out(origin, 0.1, Seed(1)));
    println!("{} of {} templates are held out at a share of 0.1", held.len(), templates.len());
    let train = templates.only(|origin| !held_out(origin, 0.1, Seed(1)));
    println!("{} of {} others are unlike them", train.unlike(&held.published(), 0.8).len(), train.len());
    type Load = fn(&str) -> Result<Vec<Problem>, PublishedError>;
    let tests: [(&str, Load, [usize; 3]); 3] = [
        ("multiarith", multiarith, [2444, 2447, 2464]),
        ("svamp", svamp, [3016, 3079, 3118]),
        ("asdiv", asdiv, [1125, 1557, 1916]),
    ];
    for (name, load, expected) in tests {
        let Some(files) = data(name, Split::Test) else { return };
        let tested = load(&files[0].1).unwrap();
        let left = [0.8, 0.9, 1.0].map(|similarity| templates.unlike(&tested, similarity).len());
        assert_eq!(left, expected, "templates that are unlike {name} at 0.8, 0.9 and 1.0");
    }
}

#[test]
fn published_problems_and_their_equations() {
    let pool = pool();
    type Load = fn(&str) -> Result<Vec<Problem>, PublishedError>;
    let sets: [(&str, Load, usize, usize); 3] =
        [("svamp", svamp, 1000, 999), ("multiarith", multiarith, 600, 600), ("asdiv", asdiv, 2097, 1497)];
    for (name, load, count, with_program) in sets {
        let Some(files) = data(name, Split::Test) else { return };
        let problems = load(&files[0].1).unwrap();
        let solved: Vec<Problem> = problems.iter().filter(|p| !p.program.is_empty()).cloned().collect();
        println!("{name}: {} problems, {} with a program", problems.len(), solved.len());
        assert_eq!((problems.len(), solved.len()), (count, with_program));
        assert_right(&pool, &solved, |verdict| verdict == BOTH);
    }
}

/// What the filter leaves of programs that large models wrote: facts of the files, and of the interpreter.
#[test]
fn published_programs() {
    let pool = pool();
    let mut candidates: Vec<(String, Vec<Problem>)> = Vec::new();
    if let Some(files) = data("pot-outputs", Split::Test) {
        for (name, text) in files {
            let problems = program_of_thoughts(&name, &text).unwrap();
            candidates.push((name, problems));
        }
    }
    if let Some(files) = data("gsm-hard", Split::Test) {
        candidates.push(("gsm-hard".to_owned(), gsm_hard(&files[0].1).unwrap()));
    }
    let expected = [
        ("pot-outputs.gsm8k_fewshot.jsonl", [1318, 20, 4, 353, 941]),
        ("pot-outputs.gsm8k_zeroshot.jsonl", [1317, 99, 1, 470, 747]),
        ("pot-outputs.svamp_fewshot.jsonl", [999, 1, 0, 150, 848]),
        ("pot-outputs.svamp_zeroshot.jsonl", [999, 88, 0, 214, 697]),
        ("pot-outputs.multiarith_zeroshot.jsonl", [599, 11, 1, 36, 551]),
        ("gsm-hard", [1319, 0, 1, 0, 1318]),
    ];
    for (name, problems) in candidates {
        let (_, funnel) = filter(&pool, problems).unwrap();
        println!("{name}: {funnel:?}");
        let Funnel { offered, no_program, raised, limited, wrong, accepted } = funnel;
        let (_, counts) = expected.iter().find(|(known, _)| *known == name).unwrap();
        assert_eq!((no_program, [offered, raised, limited, wrong, accepted]), (0, *counts), "{name}");
    }
}

#[test]
fn tasks_of_big_bench_hard() {
    let Some(files) = data("bbh", Split::Test) else { return };
    let mut items = 0;
    for (name, text) in &files {
        let task = name.trim_start_matches("bbh.").trim_end_matches(".json");
        let problems = big_bench_hard(task, text).unwrap();
        assert!(
            problems
                .iter()
                .all(|p| p.origin == task && matches!(&p.answer, Answer::Text(t) if !t.is_empty()))
        );
        items += problems.len();
    }
    assert_eq!((files.len(), items), (27, 6511));
}
