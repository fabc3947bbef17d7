//! Evidence that nobody measured: numbers from formulas, for tests and for looking at pages.

#![allow(dead_code)]

use std::collections::BTreeMap;

use replica_core::Digest;
use replica_core::claim::{Claim, Comparison, Direction, EffectKind, Guard, Test};
use replica_core::evidence::{Evidence, Trial};
use replica_core::paper::{Deviation, Paper, Reported, ReportedRow, ReportedTable};
use replica_core::plan::{Experiment, Metric, Plan, Scale, Tuning, Variant};
use replica_core::record::{Curve, DataUse, Environment, Measurements, RECORD_VERSION, Record, Trace};
use replica_core::trial::{Role, TrialSpec};
use replica_core::verdict::{ComparisonResult, Outcome, Verdict};
use replica_reports::{GoldenState, GoldenStatus, HistoryPoint};
use serde_json::json;

const NOTICE: &str = "SYNTHETIC DEMO, numbers made up";

/// What the demo shows: one paper at two scales, one with nothing run.
pub fn site() -> Vec<Evidence> {
    let mut smoke = evidence(Scale::Smoke);
    smoke.command = "cargo run --release -- run demo --scale smoke".into();
    let mut empty = empty("untouched");
    empty.paper.title = "A Paper Nobody Has Run Yet (SYNTHETIC DEMO)".into();
    vec![evidence(Scale::Small), smoke, empty]
}

/// A paper with a plan of nothing.
pub fn empty(id: &str) -> Evidence {
    let mut paper = paper();
    paper.id = id.into();
    paper.short_title = id.into();
    paper.reported.clear();
    paper.claims.clear();
    paper.deviations.clear();
    paper.unavailable = None;
    Evidence {
        paper,
        plan: Plan {
            scale: Scale::Small,
            config_file: format!("replications/{id}/configs/small.toml"),
            experiments: vec![],
        },
        backend: "cpu".into(),
        trials: vec![],
        verdicts: vec![],
        command: format!("cargo run --release -- run {id}"),
    }
}

/// The full plan of the demo with no record.
pub fn not_run() -> Evidence {
    let mut evidence = evidence(Scale::Small);
    evidence.trials.iter_mut().for_each(|t| t.record = None);
    evidence.verdicts.clear();
    evidence
}

/// A realistic paper, measured.
pub fn evidence(scale: Scale) -> Evidence {
    let plan = plan(scale);
    let paper = paper();
    let mut trials = trials(&paper, &plan);
    // two trials have not run
    let mut pending = trials.iter_mut().filter(|t| t.spec.variant == "low_all" && t.spec.role == Role::Main);
    for trial in [pending.next_back(), pending.next_back()].into_iter().flatten() {
        trial.record = None;
    }
    let mut evidence = Evidence {
        paper,
        plan,
        backend: "cpu".into(),
        trials,
        verdicts: vec![],
        command: "cargo run --release -- run demo --scale small".into(),
    };
    evidence.verdicts = verdicts(&evidence);
    evidence
}

/// Two weeks of nights.
pub fn history() -> Vec<HistoryPoint> {
    let night = |i: u64, claim: &str, effect: f64, outcome| HistoryPoint {
        when: 1_740_800_000 + i * 86_400,
        commit: format!("{:040x}", i * 7919),
        paper: "demo".into(),
        claim: claim.into(),
        outcome,
        effect: Some(effect + 0.002 * (i as f64 * 1.7).sin()),
        interval: Some((effect - 0.006, effect + 0.005)),
    };
    let first = (0..14).map(|i| night(i, "lower-perplexity", -0.013, Outcome::NotReproduced));
    let second = (0..9).map(|i| {
        night(
            i,
            "everywhere-hurts",
            0.004 + 0.002 * i as f64,
            if i > 4 { Outcome::Reproduced } else { Outcome::Inconclusive },
        )
    });
    first.chain(second).collect()
}

/// One golden of each state.
pub fn goldens() -> Vec<GoldenStatus> {
    let golden = |experiment: &str, state, detail: &str| GoldenStatus {
        paper: "demo".into(),
        experiment: experiment.into(),
        scale: Scale::Small,
        backend: "cpu".into(),
        state,
        detail: detail.into(),
    };
    vec![
        golden("placement", GoldenState::Agrees, ""),
        golden(
            "accounting",
            GoldenState::Differs,
            "`parameters` of `low_attn` left its band: 277248, reviewed 277240",
        ),
        golden("subsets", GoldenState::Absent, "propose one with `replica bless`"),
    ]
}

fn paper() -> Paper {
    let n = Reported::Number;
    let unknown = || Reported::Text("?".into());
    let row = |label: &str, variant: Option<&str>, cells: Vec<Reported>| ReportedRow {
        label: label.into(),
        variant: variant.map(Into::into),
        cells,
    };
    Paper {
        id: "demo".into(),
        title: "Narrow Projections in Attention: a Demonstration with Made-up Numbers (SYNTHETIC DEMO)".into(),
        short_title: "Demo".into(),
        authors: ["Ada Example", "Ben Sample", "Chen Specimen", "Dana Placeholder"].map(Into::into).into(),
        venue: "Proceedings of Nowhere, pages 1–12".into(),
        year: 2024,
        url: "https://example.org/demo".into(),
        code: Some("example.org/demo@8798ba17a701e975472477547c3c0f2f6b422ca7".into()),
        summary: format!("{NOTICE}. The paper replaces every weight of the attention by two narrow ones and claims that the model becomes better and cheaper at once: about 5 % lower perplexity at up to 12.4 % less training time. The same replacement in the feed-forward layers is said not to help, and everywhere at once to hurt.\n\nThe gain is claimed to persist over model sizes."),
        method: "A weight `W` of shape `[d_out, d_in]` becomes `B A` with a bottleneck of width `r` between the two, and nothing else: no activation, no norm, no scaling. Query, key, value and output projections are replaced, each with a pair of its own; the heads live in the full space.\n\nBoth factors are trained from the first step and never merged.".into(),
        unavailable: Some("The body of the paper could not be obtained: only its abstract and third-party summaries were read. Cells marked ? exist in the paper; nobody filled them from memory.".into()),
        reported: vec![
            ReportedTable {
                id: "table-1".into(),
                title: "Test perplexity by placement".into(),
                source: "the paper's Table 1; most cells could not be obtained".into(),
                experiment: Some("placement".into()),
                columns: vec!["130M".into(), "370M".into()],
                rows: vec![
                    row("Transformer", Some("vanilla"), vec![n(15.2), unknown()]),
                    row("Low-dim attention", Some("low_attn"), vec![n(14.45), unknown()]),
                    row("Low-dim FFN", Some("low_ffn"), vec![unknown(), unknown()]),
                    row("Low-dim everywhere", Some("low_all"), vec![unknown(), unknown()]),
                    row("Mixture of ranks", None, vec![n(14.9), Reported::Text(String::new())]),
                ],
            },
            ReportedTable {
                id: "table-2".into(),
                title: "GLUE by task".into(),
                source: "a secondary source".into(),
                experiment: None,
                columns: vec!["SST-2".into(), "MNLI".into()],
                rows: vec![
                    row("Transformer", None, vec![unknown(), unknown()]),
                    row("Low-dim attention", None, vec![Reported::Text("better".into()), unknown()]),
                ],
            },
        ],
        claims: claims(),
        deviations: vec![
            Deviation { what: "Text: a dictionary and a Bible instead of web text.".into(), why: "The original hosting was withdrawn; these are embedded and verified.".into() },
            Deviation { what: "Byte vocabulary instead of 32 000 tokens.".into(), why: "At this size a large vocabulary would hold most of the parameters, and perplexity is given per byte.".into() },
        ],
    }
}

fn comparison(treatment: &str, control: &str, minimum_effect: f64) -> Comparison {
    Comparison {
        experiment: "placement".into(),
        metric: "test_perplexity".into(),
        treatment: treatment.into(),
        control: control.into(),
        direction: Direction::Lower,
        effect: EffectKind::Relative,
        minimum_effect,
    }
}

fn claims() -> Vec<Claim> {
    let claim =
        |id: &str, statement: &str, source: &str, reported: &str, test: Test, guards: Vec<Guard>| Claim {
            id: id.into(),
            statement: statement.into(),
            source: source.into(),
            reported: reported.into(),
            scales: vec![Scale::Small, Scale::Gpu, Scale::Paper],
            test,
            guards,
        };
    vec![
        claim(
            "lower-perplexity",
            "Low-dimensional attention has lower test perplexity than the Transformer, with fewer parameters.",
            "abstract",
            "about 5 %",
            Test::Paired { comparisons: vec![comparison("low_attn", "vanilla", 0.01)] },
            vec![Guard {
                why: "Where a bottleneck of width 1 does as well, the model has not begun to use attention, and agreement would be empty.".into(),
                comparison: comparison("vanilla", "r1", 0.05),
            }],
        ),
        claim(
            "everywhere-hurts",
            "Narrow projections in all layers are worse than in attention only and worse than none.",
            "secondary source",
            "?",
            Test::Paired { comparisons: vec![comparison("low_attn", "low_all", 0.0), comparison("vanilla", "low_all", 0.02)] },
            vec![],
        ),
        claim(
            "ffn-does-not-help",
            "Narrow feed-forward layers are worse than narrow attention at matched savings.",
            "secondary source",
            "?",
            Test::Paired { comparisons: vec![comparison("low_attn", "low_ffn", 0.01)] },
            vec![],
        ),
        claim(
            "parameter-count",
            "The 130M model saves 18 874 368 parameters.",
            "follows from the authors' code",
            "exact",
            Test::Exact { experiment: "accounting".into(), variant: "low_attn".into(), metric: "parameters".into(), expected: 115_251_201.0, tolerance: 0.0 },
            vec![],
        ),
        claim(
            "better-glue",
            "Fine-tuned on GLUE it is about 5 % better.",
            "abstract",
            "about 5 %",
            Test::Untested { reason: "No task of GLUE is part of this scale: it needs pre-training at a size that a laptop cannot afford.".into() },
            vec![],
        ),
    ]
}

fn metric(name: &str, label: &str, unit: &str, better: Option<Direction>, digits: usize) -> Metric {
    Metric { name: name.into(), label: label.into(), unit: unit.into(), better, digits }
}

fn plan(scale: Scale) -> Plan {
    let lower = Some(Direction::Lower);
    let variant = |id: &str, label: &str, description: &str, config: serde_json::Value| Variant {
        id: id.into(),
        label: label.into(),
        description: description.into(),
        config,
    };
    let config = |r: Option<u32>, r_ffn: Option<u32>| {
        json!({
            "num_layers": 3, "hidden_size": 96, "ffn_size": 256, "num_heads": 4, "seq_len": 64, "batch_size": 16,
            "steps": 800, "learning_rate": 0.003, "weight_decay": 0.0, "attention_rank": r, "ffn_rank": r_ffn,
            "optimiser": {"name": "adamw", "beta_1": 0.9, "beta_2": 0.95, "eps": 1e-5},
        })
    };
    let data: BTreeMap<String, Digest> = [
        ("webster-kjv/train".to_owned(), Digest::of(b"train")),
        ("webster-kjv/test".to_owned(), Digest::of(b"test")),
    ]
    .into();
    let placement = Experiment {
        id: "placement".into(),
        title: "Where to place narrow projections".into(),
        method: format!(
            "{NOTICE}. Five models are trained on the same bytes in the same order and compared by test perplexity. A control with a bottleneck of width 1 shows whether attention matters at all in so short a run."
        ),
        metrics: vec![
            metric("test_perplexity", "test perplexity", "", lower, 3),
            metric("bits_per_byte", "bits per byte", "", lower, 3),
            metric("parameters", "parameters", "", None, 0),
            metric("step_ms", "time per step", "ms", None, 1),
            metric("valid_loss", "validation loss", "nats", lower, 3),
        ],
        variants: vec![
            variant("vanilla", "Transformer", "The usual decoder with full projections.", config(None, None)),
            variant(
                "low_attn",
                "Low-dim attention",
                "All four attention projections are pairs with bottleneck `r = 16`.",
                config(Some(16), None),
            ),
            variant(
                "low_ffn",
                "Low-dim FFN",
                "The feed-forward layers are pairs with bottleneck `r_f = 48`.",
                config(None, Some(48)),
            ),
            variant("low_all", "Low-dim everywhere", "Both.", config(Some(16), Some(48))),
            variant(
                "r1",
                "Control r = 1",
                "Attention with a bottleneck of width 1: it must clearly lose.",
                config(Some(1), None),
            ),
        ],
        seeds: vec![1, 2, 3, 4, 5],
        tuning: Some(Tuning {
            parameter: "learning_rate".into(),
            values: vec![0.001, 0.003, 0.01],
            seeds: vec![101],
            metric: "valid_loss".into(),
            overrides: [("steps".to_owned(), json!(300))].into_iter().collect(),
        }),
        data: data.clone(),
        exclusive: true,
        on_request: false,
    };
    let accounting = Experiment {
        id: "accounting".into(),
        title: "Parameters and operations at the published shapes".into(),
        method: "Counted from the shapes; nothing is trained.".into(),
        metrics: vec![
            metric("parameters", "parameters", "", None, 0),
            metric("flops_ratio", "operations, relative", "", None, 3),
            metric("weights_bytes", "weights", "bytes", None, 0),
        ],
        variants: vec![
            variant("vanilla", "Transformer 130M", "The published shape.", json!({"hidden_size": 768})),
            variant(
                "low_attn",
                "Low-dim attention 130M",
                "With `r = 128`.",
                json!({"hidden_size": 768, "attention_rank": 128}),
            ),
        ],
        seeds: vec![0],
        tuning: None,
        data: BTreeMap::new(),
        exclusive: false,
        on_request: false,
    };
    let subsets = Experiment {
        id: "subsets".into(),
        title: "Which of query, key, value and output".into(),
        method: "Each subset of the four projections is made narrow.".into(),
        metrics: vec![metric("test_perplexity", "test perplexity", "", lower, 3)],
        variants: vec![
            variant("qkvo", "all four", "As above.", config(Some(16), None)),
            variant("qk", "query and key", "Two of four.", config(Some(16), None)),
        ],
        seeds: vec![1, 2, 3],
        tuning: None,
        data,
        exclusive: false,
        on_request: true,
    };
    Plan {
        scale,
        config_file: format!("replications/demo/configs/{scale}.toml"),
        experiments: vec![placement, accounting, subsets],
    }
}

/// Final loss in nats per byte, by variant and seed.
fn final_loss(variant: &str, seed: u64) -> f64 {
    let mean = match variant {
        "vanilla" => 1.604,
        "low_attn" => 1.617,
        "low_ffn" => 1.622,
        "low_all" => 1.668,
        _ => 1.781,
    };
    let shared = 0.010 * ((seed as f64) * 2.3).sin();
    let own = 0.005 * ((seed as f64) * 5.1 + variant.len() as f64 * 1.9).sin();
    mean + shared + own
}

fn trials(paper: &Paper, plan: &Plan) -> Vec<Trial> {
    let mut trials = Vec::new();
    for role in [Role::Tuning, Role::Main] {
        for experiment in &plan.experiments {
            for variant in &experiment.variants {
                let runs: Vec<(u64, Option<f64>)> = match (&experiment.tuning, role) {
                    (Some(t), Role::Tuning) => {
                        t.seeds.iter().flat_map(|s| t.values.iter().map(|v| (*s, Some(*v)))).collect()
                    }
                    (None, Role::Tuning) => vec![],
                    (_, Role::Main) => experiment.seeds.iter().map(|s| (*s, None)).collect(),
                };
                for (seed, learning_rate) in runs {
                    let mut config = variant.config.clone();
                    if let Some(rate) = learning_rate {
                        config["learning_rate"] = json!(rate);
                        config["steps"] = json!(300);
                    } else if variant.id == "low_all" {
                        config["learning_rate"] = json!(0.01);
                    }
                    let spec = TrialSpec {
                        paper: paper.id.clone(),
                        experiment: experiment.id.clone(),
                        variant: variant.id.clone(),
                        scale: plan.scale,
                        role,
                        seed,
                        backend: "cpu".into(),
                        dtype: "f32".into(),
                        config,
                        data: experiment.data.clone(),
                        code: Digest::of(b"code"),
                    };
                    let record = (!experiment.on_request).then(|| record(&spec, learning_rate));
                    trials.push(Trial { spec, record });
                }
            }
        }
    }
    trials
}

fn record(spec: &TrialSpec, learning_rate: Option<f64>) -> Record {
    let accounting = spec.experiment == "accounting";
    let mut measurements = Measurements::default();
    let narrow = spec.variant != "vanilla";
    if accounting {
        let parameters = if narrow { 115_251_201.0 } else { 134_125_569.0 };
        measurements.metrics = [
            ("parameters".to_owned(), parameters),
            ("flops_ratio".to_owned(), if narrow { 0.835 } else { 1.0 }),
            ("weights_bytes".to_owned(), parameters * 4.0),
        ]
        .into();
    } else {
        let wide = spec.variant == "low_all";
        let penalty = match (learning_rate, wide) {
            (None, _) => 0.0,
            (Some(rate), false) => 0.2 + 0.11 * (rate / 0.003).ln().powi(2),
            (Some(rate), true) => 0.2 + 0.09 * (rate / 0.012).ln().powi(2),
        };
        let loss = final_loss(&spec.variant, spec.seed) + penalty;
        measurements.metrics = [
            ("test_perplexity".to_owned(), loss.exp()),
            ("bits_per_byte".to_owned(), loss / std::f64::consts::LN_2),
            ("valid_loss".to_owned(), loss + 0.004),
            (
                "parameters".to_owned(),
                match spec.variant.as_str() {
                    "vanilla" => 350_976.0,
                    "low_attn" => 277_248.0,
                    "low_ffn" => 281_856.0,
                    "low_all" => 208_128.0,
                    _ => 242_688.0,
                },
            ),
            ("step_ms".to_owned(), if narrow { 41.3 } else { 46.8 } + (spec.seed % 3) as f64 * 0.2),
        ]
        .into();
        let x: Vec<f64> = (0..=40).map(|i| f64::from(i) * 20_480.0).collect();
        let noise = |i: usize| 0.006 * ((i as f64) * 1.3 + spec.seed as f64 * 2.1).sin();
        let fall = |offset: f64| -> Vec<f64> {
            (0..x.len()).map(|i| loss + offset + 3.1 * (-(i as f64) / 5.5).exp() + noise(i)).collect()
        };
        measurements.curves = [
            ("train_loss".to_owned(), Curve { x_label: "tokens".into(), x: x.clone(), y: fall(-0.03) }),
            ("valid_loss".to_owned(), Curve { x_label: "tokens".into(), x: x.clone(), y: fall(0.004) }),
        ]
        .into();
        let use_of = |name: &str, bytes: &[u8], length| DataUse {
            name: format!("webster-kjv/{name}"),
            sha256: Digest::of(bytes),
            bytes: length,
            source: "embedded".into(),
            licence: "public domain".into(),
            verified: true,
        };
        measurements.data = vec![use_of("train", b"train", 12_104_233), use_of("test", b"test", 412_007)];
        if spec.variant == "r1" {
            measurements.notes.push("the bottleneck of width `1` is a control, not a method".into());
        }
    }
    let mut trace = Trace::default();
    trace.push(spec.seed as f32, 1.0);
    measurements.trace = trace;
    Record {
        version: RECORD_VERSION,
        id: spec.id(),
        spec: spec.clone(),
        measurements,
        environment: Environment {
            replica: "0.1.0".into(),
            commit: Some("8145482c0ffee".into()),
            rustc: "1.95.0".into(),
            platform: "linux x86_64".into(),
            cpu: "Made-up Processor 9000".into(),
            simd: "avx512".into(),
            threads: 1,
            accelerator: None,
        },
        started_at: 1_740_837_900 + spec.seed * 61,
        seconds: if accounting { 0.004 } else { 31.0 + spec.seed as f64 },
        peak_memory_bytes: (!accounting).then(|| 148_000_000 + 3_000_000 * spec.variant.len() as u64),
    }
}

fn verdicts(evidence: &Evidence) -> Vec<Verdict> {
    if evidence.plan.scale == Scale::Smoke {
        let untested = |c: &Claim| Verdict {
            claim: c.id.clone(),
            outcome: Outcome::NotTested,
            reason: "A smoke run checks the machinery, not the claim.".into(),
            comparisons: vec![],
            guards: vec![],
        };
        return evidence.paper.claims.iter().map(untested).collect();
    }
    let outcomes = [
        (
            Outcome::NotReproduced,
            "Perplexity is higher, not lower: the whole interval lies on the other side of zero, and the control of width 1 clearly loses, so attention matters in these runs.",
        ),
        (
            Outcome::Reproduced,
            "Narrow everywhere is worse than either, with both intervals on the claimed side and beyond the minimum.",
        ),
        (
            Outcome::Inconclusive,
            "The interval holds both zero and the minimum effect: five seeds do not decide.",
        ),
        (Outcome::Reproduced, "The count agrees to the last parameter."),
        (
            Outcome::NotTested,
            "No task of GLUE is part of this scale: it needs pre-training at a size that a laptop cannot afford.",
        ),
    ];
    let verdict = |(claim, (outcome, reason)): (&Claim, (Outcome, &str))| Verdict {
        claim: claim.id.clone(),
        outcome,
        reason: reason.into(),
        comparisons: match &claim.test {
            Test::Paired { comparisons } => {
                comparisons.iter().map(|c| judged(evidence, c, outcome)).collect()
            }
            _ => vec![],
        },
        guards: claim.guards.iter().map(|g| judged(evidence, &g.comparison, Outcome::Reproduced)).collect(),
    };
    evidence.paper.claims.iter().zip(outcomes).map(verdict).collect()
}

fn judged(evidence: &Evidence, c: &Comparison, outcome: Outcome) -> ComparisonResult {
    let control = evidence.values(&c.experiment, &c.control, &c.metric);
    let pairs: Vec<(u64, f64, f64)> = evidence
        .values(&c.experiment, &c.treatment, &c.metric)
        .into_iter()
        .filter_map(|(s, t)| control.iter().find(|(k, _)| *k == s).map(|(_, k)| (s, t, *k)))
        .collect();
    let n = pairs.len() as f64;
    let mean = |f: &dyn Fn(&(u64, f64, f64)) -> f64| pairs.iter().map(f).sum::<f64>() / n;
    let effect = mean(&|p| c.effect_of(p.1, p.2));
    let spread = mean(&|p| (c.effect_of(p.1, p.2) - effect).abs()) * 1.2;
    ComparisonResult {
        comparison: c.clone(),
        treatment_mean: mean(&|p| p.1),
        control_mean: mean(&|p| p.2),
        effect,
        interval: (effect - spread, effect + spread),
        p: if outcome == Outcome::Inconclusive { 0.31 } else { 0.0004 },
        p_holm: if outcome == Outcome::Inconclusive { 0.62 } else { 0.0021 },
        outcome,
        pairs,
    }
}

/// The demo with a script in every text that a file or a run can put there.
pub fn hostile() -> Evidence {
    let text = serde_json::to_value(evidence(Scale::Small)).expect("evidence is plain data");
    let keep = |key: &str| {
        [
            "id",
            "scale",
            "scales",
            "role",
            "outcome",
            "direction",
            "effect",
            "kind",
            "experiment",
            "variant",
            "metric",
            "treatment",
            "control",
            "better",
            "sha256",
            "code_digest",
            "trace",
            "paper",
            "claim",
            "url",
        ]
        .contains(&key)
    };
    let mut value = text;
    poison(&mut value, "", &keep);
    value["paper"]["url"] = json!("javascript:alert(1)");
    value["paper"]["code"] = json!("javascript:alert(2)");
    serde_json::from_value(value).expect("texts are still texts")
}

/// What hostile text looks like.
pub const POISON: &str = "<script>alert(\"x\")</script><img src=x onerror='alert(1)'>&amp;{{ 7 * 7 }}";

fn poison(value: &mut serde_json::Value, key: &str, keep: &dyn Fn(&str) -> bool) {
    use serde_json::Value;
    match value {
        Value::String(s) if !(keep(key) || is_digest(s) || s == "?") => {
            s.push_str(POISON);
        }
        Value::Array(items) => items.iter_mut().for_each(|v| poison(v, key, keep)),
        Value::Object(map) => map.iter_mut().for_each(|(k, v)| {
            // names that other parts refer to stay, or nothing would match anything
            if !(k == "name" && key == "metrics") {
                poison(v, k, keep);
            }
        }),
        _ => {}
    }
}

fn is_digest(s: &str) -> bool {
    s.len() == 64 && s.bytes().all(|b| b.is_ascii_hexdigit())
}
