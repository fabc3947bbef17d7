//! Generation against brute force, on a model that is a random table of logits by all tokens so far.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use candle_core::{Device, Tensor};
use rand::Rng;
use replica_core::Seed;
use replica_train::generate::{
    Beams, Continuation, Continue, GenerateError, Sampling, Stop, beam_search, greedy, sample,
};

const VOCAB: usize = 4;
const END: u32 = 3;

/// Logits in (-3, 3) that depend on the whole sequence.
struct Table {
    seed: u64,
    seen: Vec<Vec<u32>>,
}

impl Table {
    fn new(seed: u64) -> Self {
        Self { seed, seen: Vec::new() }
    }

    fn logits(&self, sequence: &[u32]) -> Vec<f64> {
        let mut rng = Seed(self.seed).named_stream("logits", &format!("{sequence:?}"));
        (0..VOCAB).map(|_| f64::from(rng.next_u32()) / f64::from(u32::MAX) * 6.0 - 3.0).collect()
    }

    fn log_probabilities(&self, sequence: &[u32]) -> Vec<f64> {
        let logits = self.logits(sequence);
        let total: f64 = logits.iter().map(|v| v.exp()).sum();
        logits.iter().map(|v| v - total.ln()).collect()
    }
}

impl Continue for Table {
    fn next_logits(&mut self, ids: &Tensor) -> candle_core::Result<Tensor> {
        let ids = ids.to_vec2::<u32>()?;
        self.seen.resize_with(ids.len(), Vec::new);
        self.seen.iter_mut().zip(ids).for_each(|(seen, ids)| seen.extend(ids));
        let logits: Vec<f64> = self.seen.iter().flat_map(|seen| self.logits(seen)).collect();
        Tensor::from_vec(logits, (self.seen.len(), VOCAB), &Device::Cpu)
    }

    fn select(&mut self, rows: &[u32]) -> candle_core::Result<()> {
        self.seen = rows.iter().map(|row| self.seen[*row as usize].clone()).collect();
        Ok(())
    }
}

fn prompts(rows: &[&[u32]]) -> Tensor {
    Tensor::new(rows.iter().map(|row| row.to_vec()).collect::<Vec<_>>(), &Device::Cpu).unwrap()
}

/// All continuations of at most `stop.max_new_tokens` tokens, those that end early included.
fn all(model: &Table, prompt: &[u32], stop: Stop) -> Vec<Continuation> {
    let mut open = vec![Continuation { tokens: vec![], ended: false, log_probability: 0.0, guidance: 0.0 }];
    let mut ended = Vec::new();
    for _ in 0..stop.max_new_tokens {
        let mut longer = Vec::new();
        for c in &open {
            let after = model.log_probabilities(&[prompt, &c.tokens].concat());
            for (token, p) in after.into_iter().enumerate() {
                let mut next = c.clone();
                next.log_probability += p;
                if stop.end == Some(token as u32) {
                    next.ended = true;
                    ended.push(next);
                } else {
                    next.tokens.push(token as u32);
                    longer.push(next);
                }
            }
        }
        open = longer;
    }
    ended.extend(open);
    ended
}

fn assert_same(a: &Continuation, b: &Continuation) {
    assert_eq!((&a.tokens, a.ended), (&b.tokens, b.ended));
    assert!((a.log_probability - b.log_probability).abs() < 1e-12, "{a:?} {b:?}");
}

#[test]
fn beam_search_with_a_beam_for_every_sequence_is_exhaustive() {
    for seed in 0..20 {
        for end in [None, Some(END)] {
            for length_penalty in [0.0, 1.0, 2.0] {
                let stop = Stop { max_new_tokens: 4, end };
                let beams = Beams::new(VOCAB.pow(4), length_penalty);
                let rows: [&[u32]; 2] = [&[0, 1], &[2, 2]];
                let found = beam_search(&mut Table::new(seed), &prompts(&rows), stop, beams).unwrap();
                for (prompt, found) in rows.into_iter().zip(found) {
                    let mut expected = all(&Table::new(seed), prompt, stop);
                    expected.sort_by(|a, b| b.score(beams, 2).total_cmp(&a.score(beams, 2)));
                    assert_eq!(found.len(), expected.len());
                    found.iter().zip(&expected).for_each(|(a, b)| assert_same(a, b));
                }
            }
        }
    }
}

/// The definition in the documentation, step by step over one prompt with whole sequences instead of a cache.
#[test]
fn narrow_beams_follow_the_definition() {
    let (width, length_penalty) = (2, 1.0);
    let stop = Stop { max_new_tokens: 6, end: Some(END) };
    let mut stopped_early = 0;
    for seed in 0..200 {
        let model = Table::new(seed);
        let mut open: Vec<(Vec<u32>, f64)> = vec![(vec![], 0.0)];
        let mut finished: Vec<(f64, Vec<u32>)> = Vec::new();
        let rank = |finished: &mut Vec<(f64, Vec<u32>)>| {
            finished.sort_by(|a, b| b.0.total_cmp(&a.0));
            finished.truncate(width);
        };
        for length in 1..=stop.max_new_tokens {
            let mut pairs: Vec<(f64, Vec<u32>)> = Vec::new();
            for (tokens, sum) in &open {
                let after = model.log_probabilities(&[[0, 1].as_slice(), tokens].concat());
                let longer = |token: usize| [tokens.as_slice(), &[token as u32]].concat();
                pairs.extend(after.iter().enumerate().map(|(token, p)| (sum + p, longer(token))));
            }
            pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
            let score = |sum: f64| sum / (length as f64).powf(length_penalty);
            open.clear();
            for (i, (sum, tokens)) in pairs.iter().take(2 * width).enumerate() {
                if tokens.last() != Some(&END) {
                    open.push((tokens.clone(), *sum));
                } else if i < width {
                    finished.push((score(*sum), tokens[..length - 1].to_vec()));
                }
            }
            open.truncate(width);
            rank(&mut finished);
            if finished.len() == width && finished[width - 1].0 >= score(pairs[0].0) {
                stopped_early += usize::from(length < stop.max_new_tokens);
                open.clear();
                break;
            }
        }
        let last = |sum: f64| sum / (stop.max_new_tokens as f64).powf(length_penalty);
        finished.extend(open.into_iter().map(|(tokens, sum)| (last(sum), tokens)));
        rank(&mut finished);
        let beams = Beams::new(width, length_penalty);
        let found = beam_search(&mut Table::new(seed), &prompts(&[&[0, 1]]), stop, beams).unwrap();
        let found: Vec<_> = found[0].iter().map(|c| c.tokens.clone()).collect();
        let expected: Vec<_> = finished.into_iter().map(|(_, tokens)| tokens).collect();
        assert_eq!(found, expected, "seed {seed}");
    }
    assert!(stopped_early > 20, "only {stopped_early} searches stopped early");
}

/// One beam without an end token, and one token to sample from, leave nothing to choose.
#[test]
fn one_beam_and_top_k_of_one_are_greedy() {
    let rows = prompts(&[&[0, 1], &[1, 1], &[2, 0]]);
    for seed in 0..20 {
        let stop = Stop { max_new_tokens: 6, end: None };
        let expected = greedy(&mut Table::new(seed), &rows, stop).unwrap();
        let beams = Beams::new(1, 1.0);
        let found = beam_search(&mut Table::new(seed), &rows, stop, beams).unwrap();
        found.iter().zip(&expected).for_each(|(a, b)| assert_same(&a[0], b));
        let stop = Stop { end: Some(END), ..stop };
        let expected = greedy(&mut Table::new(seed), &rows, stop).unwrap();
        for (top_k, top_p) in [(Some(1), None), (None, Some(1e-9))] {
            let sampling = Sampling { temperature: 1.5, top_k, top_p };
            let found = sample(&mut Table::new(seed), &rows, stop, sampling, Seed(seed)).unwrap();
            assert_eq!(found, expected);
        }
    }
}

/// Rows that end leave the batch; the others go on as if alone.
#[test]
fn rows_end_for_themselves() {
    let rows: [&[u32]; 4] = [&[0, 1], &[1, 1], &[2, 0], &[0, 0]];
    let stop = Stop { max_new_tokens: 8, end: Some(END) };
    let mut lengths = std::collections::BTreeSet::new();
    for seed in 0..10 {
        let together = greedy(&mut Table::new(seed), &prompts(&rows), stop).unwrap();
        for (row, found) in rows.iter().zip(together) {
            assert!(!found.tokens.contains(&END));
            assert!(found.ended || found.generated() == 8);
            lengths.insert(found.generated());
            assert_eq!(found, greedy(&mut Table::new(seed), &prompts(&[*row]), stop).unwrap()[0]);
        }
    }
    assert!(lengths.len() > 2, "{lengths:?}");
}

/// Pearson's statistic of the first token's frequencies against `expected`, and the degrees of freedom.
fn chi_square(sampling: Sampling, expected: &[f64]) -> (f64, usize) {
    const DRAWS: usize = 20_000;
    let rows: Vec<&[u32]> = vec![&[0, 1]; DRAWS];
    let stop = Stop { max_new_tokens: 1, end: None };
    let found = sample(&mut Table::new(5), &prompts(&rows), stop, sampling, Seed(1)).unwrap();
    let mut counts = [0.0; VOCAB];
    found.iter().for_each(|c| counts[c.tokens[0] as usize] += 1.0);
    let possible: Vec<usize> = (0..VOCAB).filter(|i| expected[*i] > 0.0).collect();
    assert_eq!(possible.iter().map(|i| counts[*i]).sum::<f64>(), DRAWS as f64);
    let term = |i: &usize| (counts[*i] - expected[*i] * DRAWS as f64).powi(2) / (expected[*i] * DRAWS as f64);
    (possible.iter().map(term).sum(), possible.len() - 1)
}

#[test]
fn tokens_are_drawn_as_often_as_they_are_likely() {
    let p: Vec<f64> = Table::new(5).log_probabilities(&[0, 1]);
    let mut order: Vec<usize> = (0..VOCAB).collect();
    order.sort_by(|a, b| p[*b].total_cmp(&p[*a]));
    let distribution = |temperature: f64, kept: usize| {
        let mut weights: Vec<f64> = p.iter().map(|v| (v / temperature).exp()).collect();
        order[kept..].iter().for_each(|token| weights[*token] = 0.0);
        let total: f64 = weights.iter().sum();
        weights.iter().map(|w| w / total).collect::<Vec<f64>>()
    };
    let sampling = |temperature, top_k, top_p| Sampling { temperature, top_k, top_p };
    // just above the two most likely tokens' probability: the third has to come in
    let above_two: f64 = order[..2].iter().map(|token| p[*token].exp()).sum::<f64>() + 1e-6;
    let cases = [
        (sampling(1.0, None, None), distribution(1.0, VOCAB)),
        (sampling(2.0, None, None), distribution(2.0, VOCAB)),
        (sampling(0.7, Some(2), None), distribution(0.7, 2)),
        (sampling(1.0, None, Some(above_two)), distribution(1.0, 3)),
        (sampling(1.0, None, Some(above_two - 2e-6)), distribution(1.0, 2)),
        // the two kept by top-k are normalised before top-p
        (sampling(1.0, Some(2), Some(0.999_999)), distribution(1.0, 2)),
    ];
    for (sampling, expected) in cases {
        let (statistic, freedom) = chi_square(sampling, &expected);
        // exceeded with probability 0.001 by chi-square with 1, 2, 3 degrees of freedom
        let bound = [10.83, 13.82, 16.27][freedom - 1];
        assert!(statistic < bound, "{sampling:?}: {statistic} for {freedom} degrees of freedom");
    }
}

#[test]
fn samples_are_a_function_of_the_seed() {
    let rows = prompts(&[&[0, 1], &[0, 1]]);
    let stop = Stop { max_new_tokens: 12, end: None };
    let sampling = Sampling { temperature: 1.0, top_k: None, top_p: None };
    let draw = |seed| sample(&mut Table::new(1), &rows, stop, sampling, Seed(seed)).unwrap();
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
    assert_ne!(draw(1)[0], draw(1)[1], "rows draw from streams of their own");
}

#[test]
fn errors_name_the_option_and_what_is_allowed() {
    let rows = prompts(&[&[0, 1]]);
    let stop = Stop { max_new_tokens: 3, end: None };
    let sampling = Sampling { temperature: 1.0, top_k: None, top_p: None };
    let draw =
        |stop, sampling| sample(&mut Table::new(1), &rows, stop, sampling, Seed(1)).unwrap_err().to_string();
    assert!(draw(Stop { max_new_tokens: 0, ..stop }, sampling).starts_with("max_new_tokens = 0: at least 1"));
    assert!(draw(stop, Sampling { temperature: 0.0, ..sampling }).contains("0 is greedy search"));
    assert!(draw(stop, Sampling { temperature: f64::NAN, ..sampling }).starts_with("temperature = NaN"));
    assert!(draw(stop, Sampling { top_k: Some(0), ..sampling }).starts_with("top_k = 0: at least 1"));
    assert!(
        draw(stop, Sampling { top_p: Some(1.5), ..sampling }).starts_with("top_p = 1.5: a number in (0, 1]")
    );
    let search = |beams| beam_search(&mut Table::new(1), &rows, stop, beams).unwrap_err().to_string();
    assert!(search(Beams::new(0, 1.0)).starts_with("beams = 0: at least 1"));
    assert!(search(Beams::new(1, f64::NAN)).starts_with("length_penalty = NaN"));
    let empty = Tensor::zeros((1, 0), candle_core::DType::U32, &Device::Cpu).unwrap();
    let error = greedy(&mut Table::new(1), &empty, stop).unwrap_err();
    assert!(matches!(error, GenerateError::Prompts { .. }), "{error}");
}

/// Logits without a distribution are an error, not a token.
#[test]
fn nan_logits_are_refused() {
    struct Broken;
    impl Continue for Broken {
        fn next_logits(&mut self, _: &Tensor) -> candle_core::Result<Tensor> {
            Tensor::new(&[[0f32, f32::NAN]], &Device::Cpu)
        }

        fn select(&mut self, _: &[u32]) -> candle_core::Result<()> {
            Ok(())
        }
    }
    let stop = Stop { max_new_tokens: 3, end: None };
    let error = greedy(&mut Broken, &prompts(&[&[0]]), stop).unwrap_err().to_string();
    assert!(error.contains("after 0 generated tokens contain NaN"), "{error}");
}
