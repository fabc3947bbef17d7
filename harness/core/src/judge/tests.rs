use std::collections::BTreeMap;

use super::*;
use crate::plan::{Metric, Scale, Variant};

fn paper(claims: &str) -> Paper {
    let head = r#"
        id = "toy"
        title = "T"
        short_title = "T"
        authors = []
        venue = "V"
        year = 2024
        url = "u"
        summary = "s"
        method = "m"
    "#;
    Paper::parse(&format!("{head}{claims}"), "paper.toml").unwrap()
}

fn claim(id: &str, minimum: f64, treatments: &[&str], guard: bool) -> String {
    let comparison = |treatment: &str, minimum: f64| {
        format!(
            r#"{{ experiment = "e", metric = "test_loss", treatment = "{treatment}", control = "base", direction = "lower", effect = "relative", minimum_effect = {minimum} }}"#
        )
    };
    let comparisons: Vec<String> = treatments.iter().map(|t| comparison(t, minimum)).collect();
    let guards = if guard {
        format!(r#"guards = [{{ why = "the control learns", comparison = {} }}]"#, comparison("guard", 0.0))
    } else {
        String::new()
    };
    format!(
        r#"
        [[claims]]
        id = "{id}"
        statement = "s"
        source = "p"
        reported = "?"
        scales = ["small"]
        {guards}
        test = {{ kind = "paired", comparisons = [{}] }}
        "#,
        comparisons.join(", ")
    )
}

fn plan() -> Plan {
    let variant = |id: &str, label: &str| Variant {
        id: id.into(),
        label: label.into(),
        description: String::new(),
        config: serde_json::json!({}),
    };
    Plan {
        scale: Scale::Small,
        config_file: "small.toml".into(),
        experiments: vec![Experiment {
            id: "e".into(),
            title: String::new(),
            method: String::new(),
            metrics: vec![
                Metric {
                    name: "test_loss".into(),
                    label: "test loss".into(),
                    unit: "nats".into(),
                    better: Some(Direction::Lower),
                    digits: 3,
                },
                Metric {
                    name: "parameters".into(),
                    label: "number of parameters".into(),
                    unit: String::new(),
                    better: None,
                    digits: 0,
                },
            ],
            variants: vec![variant("base", "Transformer"), variant("new", "LPA")],
            seeds: vec![1, 2, 3],
            tuning: None,
            data: BTreeMap::new(),
            exclusive: false,
            on_request: false,
        }],
    }
}

type Table = Vec<(&'static str, Vec<f64>)>;

/// Verdict of the first claim when each variant has these values for seeds 1, 2, 3, ...
fn verdict_of(claims: &str, table: Table) -> Verdict {
    verdicts_of(claims, table).remove(0)
}

fn verdicts_of(claims: &str, table: Table) -> Vec<Verdict> {
    judge(&paper(claims), &plan(), |experiment, variant, _| {
        assert_eq!(experiment, "e");
        let values = table.iter().find(|(v, _)| *v == variant).map(|(_, values)| values.clone());
        (1..).zip(values.unwrap_or_default()).collect()
    })
}

fn base() -> (&'static str, Vec<f64>) {
    ("base", vec![2.00, 2.10, 2.05, 2.02])
}

#[test]
fn a_clear_effect_is_reproduced() {
    let verdict =
        verdict_of(&claim("c", 0.01, &["new"], false), vec![base(), ("new", vec![1.90, 2.00, 1.94, 1.92])]);
    assert_eq!(verdict.outcome, Outcome::Reproduced, "{}", verdict.reason);
    let result = &verdict.comparisons[0];
    assert_eq!(result.pairs.len(), 4);
    assert!(result.interval.0 > 0.01 && result.p == result.p_holm && result.p < 0.05);
    insta::assert_snapshot!(verdict.reason, @"the test loss of LPA is 5.0 % lower than that of Transformer (95 % CI 4.8 % to 5.3 %, 4 seeds, Holm p < 0.001): more than the 1.0 % that the claim needs");
}

#[test]
fn a_reversed_effect_is_not_reproduced() {
    let verdict =
        verdict_of(&claim("c", 0.0, &["new"], false), vec![base(), ("new", vec![2.04, 2.14, 2.10, 2.07])]);
    assert_eq!(verdict.outcome, Outcome::NotReproduced);
    insta::assert_snapshot!(verdict.reason, @"the test loss of LPA is 2.2 % higher than that of Transformer (95 % CI 2.0 % to 2.5 %, 4 seeds, Holm p < 0.001): the claim's direction is reversed");
}

#[test]
fn an_effect_below_the_minimum_is_not_reproduced() {
    let verdict =
        verdict_of(&claim("c", 0.04, &["new"], false), vec![base(), ("new", vec![1.98, 2.08, 2.02, 2.00])]);
    assert_eq!(verdict.outcome, Outcome::NotReproduced, "{}", verdict.reason);
    assert!(verdict.reason.ends_with("less than the 4.0 % that the claim needs"), "{}", verdict.reason);
}

#[test]
fn a_noisy_effect_is_inconclusive() {
    let verdict =
        verdict_of(&claim("c", 0.0, &["new"], false), vec![base(), ("new", vec![1.8, 2.3, 1.9, 2.15])]);
    assert_eq!(verdict.outcome, Outcome::Inconclusive);
    assert!(verdict.reason.contains("interval includes no difference"), "{}", verdict.reason);
}

#[test]
fn the_t_test_keeps_three_lucky_seeds_from_deciding() {
    // all three effects have the same sign, so the bootstrap interval excludes 0; the t-test does not
    let verdict = verdict_of(&claim("c", 0.0, &["new"], false), vec![base(), ("new", vec![1.99, 1.9, 2.0])]);
    let result = &verdict.comparisons[0];
    assert!(result.interval.0 > 0.0 && result.p > 0.05);
    assert_eq!(verdict.outcome, Outcome::Inconclusive);
    assert!(verdict.reason.contains("Holm p is not below 0.05"), "{}", verdict.reason);
}

#[test]
fn two_pairs_never_decide() {
    let verdict = verdict_of(&claim("c", 0.0, &["new"], false), vec![base(), ("new", vec![1.0, 1.1])]);
    assert_eq!(verdict.outcome, Outcome::Inconclusive);
    assert_eq!(verdict.comparisons[0].pairs.len(), 2);
    assert!(verdict.reason.contains("at least 3 seeds"), "{}", verdict.reason);
    let verdict = verdict_of(&claim("c", 0.0, &["new"], false), vec![base(), ("new", vec![1.0])]);
    assert_eq!(verdict.outcome, Outcome::Inconclusive);
    assert!(verdict.comparisons[0].p == 1.0);
}

#[test]
fn only_seeds_that_both_have_are_paired() {
    let claims = paper(&claim("c", 0.0, &["new"], false));
    let verdict = judge(&claims, &plan(), |_, variant, _| match variant {
        "base" => vec![(1, 2.0), (2, 2.1), (3, 2.2), (9, 100.0)],
        _ => vec![(4, 0.1), (3, 1.1), (2, 1.0), (1, 0.9)],
    })
    .remove(0);
    let pairs: Vec<u64> = verdict.comparisons[0].pairs.iter().map(|p| p.0).collect();
    assert_eq!(pairs, [1, 2, 3]);
    assert_eq!(verdict.comparisons[0].control_mean, 2.1);
    let verdict =
        judge(&claims, &plan(), |_, variant, _| vec![(u64::from(variant == "base"), 1.0)]).remove(0);
    assert_eq!(verdict.outcome, Outcome::NotTested);
    assert!(verdict.reason.contains("share no seed"));
}

#[test]
fn every_comparison_must_hold() {
    let both = claim("c", 0.0, &["new", "other"], false);
    let good = || ("new", vec![1.90, 2.00, 1.94, 1.92]);
    let with = |values: Vec<f64>| verdict_of(&both, vec![base(), good(), ("other", values)]);
    assert_eq!(with(vec![1.80, 1.90, 1.84, 1.82]).outcome, Outcome::Reproduced);
    let reversed = with(vec![2.04, 2.14, 2.10, 2.07]);
    assert_eq!(reversed.outcome, Outcome::NotReproduced);
    assert!(reversed.reason.contains("other") && !reversed.reason.contains("LPA"), "{}", reversed.reason);
    assert_eq!(reversed.comparisons.len(), 2);
    assert_eq!(with(vec![1.8, 2.3, 1.9, 2.15]).outcome, Outcome::Inconclusive);
    let partial = with(vec![]);
    assert_eq!(partial.outcome, Outcome::Inconclusive);
    assert_eq!(partial.reason, "`e/other` has not been run");
}

#[test]
fn holm_counts_every_distinct_comparison_of_the_paper_once() {
    let new = || ("new", vec![1.97, 2.05, 2.03, 2.00]);
    let one = verdict_of(&claim("a", 0.0, &["new"], false), vec![base(), new()]);
    let raw = one.comparisons[0].p;
    assert_eq!(one.comparisons[0].p_holm, raw);
    // the same comparison in a second claim is the same hypothesis
    let repeated = claim("a", 0.0, &["new"], false) + &claim("b", 0.0, &["new"], false);
    assert_eq!(verdicts_of(&repeated, vec![base(), new()])[1].comparisons[0].p_holm, raw);
    // others count even when they have not been run
    let family = claim("a", 0.0, &["new"], false) + &claim("b", 0.0, &["x", "y"], false);
    let corrected = verdicts_of(&family, vec![base(), new()]);
    assert!((corrected[0].comparisons[0].p_holm - 3.0 * raw).abs() < 1e-12);
    assert_eq!(corrected[1].outcome, Outcome::NotTested);
    // ... and can turn a verdict
    assert!(raw < 0.05 && 3.0 * raw >= 0.05, "{raw}");
    assert_eq!((one.outcome, corrected[0].outcome), (Outcome::Reproduced, Outcome::Inconclusive));
    // those of claims that the scale does not test do not count
    let elsewhere = claim("b", 0.0, &["x", "y"], false).replace("small", "paper");
    let alone = verdicts_of(&(claim("a", 0.0, &["new"], false) + &elsewhere), vec![base(), new()]);
    assert_eq!(alone[0].comparisons[0].p_holm, raw);
}

#[test]
fn a_guard_that_does_not_hold_makes_the_claim_inconclusive() {
    let guarded = claim("c", 0.0, &["new"], true);
    let new = || ("new", vec![1.90, 2.00, 1.94, 1.92]);
    let holds = verdict_of(&guarded, vec![base(), new(), ("guard", vec![1.5, 1.6, 1.5, 1.55])]);
    assert_eq!(holds.outcome, Outcome::Reproduced);
    assert_eq!(holds.guards[0].outcome, Outcome::Reproduced);
    let fails = verdict_of(&guarded, vec![base(), new(), ("guard", vec![2.0, 2.1, 2.06, 2.01])]);
    assert_eq!(fails.outcome, Outcome::Inconclusive);
    assert!(
        fails.reason.starts_with("a precondition does not hold (the control learns): "),
        "{}",
        fails.reason
    );
    assert_eq!(fails.comparisons[0].outcome, Outcome::Reproduced);
    let missing = verdict_of(&guarded, vec![base(), new()]);
    assert_eq!(missing.outcome, Outcome::Inconclusive);
    assert!(missing.reason.contains("`e/guard` has not been run"));
    // a claim that nothing measured stays untested whatever its guard says
    assert_eq!(verdict_of(&guarded, vec![base()]).outcome, Outcome::NotTested);
    // guards are not part of the family
    assert_eq!(holds.comparisons[0].p, holds.comparisons[0].p_holm);
}

/// What was not run because nobody named it says how to, once for all comparisons.
#[test]
fn a_claim_on_what_runs_on_request_says_how() {
    let mut plan = plan();
    plan.experiments[0].on_request = true;
    let verdicts = judge(&paper(&claim("c", 0.0, &["new", "base"], false)), &plan, |_, _, _| Vec::new());
    assert_eq!(verdicts[0].outcome, Outcome::NotTested);
    let scale = plan.scale;
    assert_eq!(
        verdicts[0].reason,
        format!("it runs only when it is named: `replica run toy/e --scale {scale}`")
    );
}

#[test]
fn values_that_are_not_numbers_decide_nothing() {
    let c = claim("c", 0.0, &["new"], false);
    for bad in [f64::NAN, f64::INFINITY] {
        let verdict = verdict_of(&c, vec![base(), ("new", vec![1.9, bad, 1.9, 1.9])]);
        assert_eq!(verdict.outcome, Outcome::Inconclusive);
        assert!(verdict.reason.contains("for seed 2"), "{}", verdict.reason);
        assert!(verdict.comparisons.is_empty());
    }
    let zero = verdict_of(&c, vec![("base", vec![0.0, 1.0, 1.0]), ("new", vec![1.0; 3])]);
    assert_eq!(zero.outcome, Outcome::Inconclusive);
    assert!(zero.reason.contains("is 0"), "{}", zero.reason);
}

#[test]
fn identical_differences_of_what_was_counted_decide_from_six_seeds_on() {
    let relative = claim("c", 0.0, &["new"], false);
    let counted = relative.replace("\"relative\"", "\"absolute\"");
    let same = |claims: &str, v: f64, n: usize| {
        verdict_of(claims, vec![("base", vec![2.0; n]), ("new", vec![v; n])])
    };
    assert_eq!(same(&counted, 1.0, 6).outcome, Outcome::Reproduced);
    assert_eq!(same(&counted, 3.0, 6).outcome, Outcome::NotReproduced);
    let three = same(&counted, 1.0, 3);
    assert_eq!((three.outcome, three.comparisons[0].p), (Outcome::Inconclusive, 0.25));
    assert!(three.reason.contains("Holm p 0.250): Holm p is not below 0.05"), "{}", three.reason);
    // as much memory with every seed
    assert_eq!(same(&relative, 1.0, 3).outcome, Outcome::Reproduced);
    assert_eq!(same(&relative, 3.0, 3).outcome, Outcome::NotReproduced);
    let equal = same(&counted, 2.0, 6);
    assert_eq!(equal.outcome, Outcome::Inconclusive);
    assert!(equal.reason.contains("is the same as that of Transformer"), "{}", equal.reason);
}

#[test]
fn a_difference_of_percentages_is_in_points() {
    let mut plan = plan();
    plan.experiments[0].metrics[0] = Metric::new("test_loss", "accuracy", "%", Some(Direction::Higher), 1);
    let values = |variant: &str| if variant == "new" { vec![47.0, 48.5, 47.6] } else { vec![3.0, 3.1, 3.4] };
    let reason = |claims: &str| {
        judge(&paper(claims), &plan, |_, variant, _| (1..).zip(values(variant)).collect()).remove(0).reason
    };
    let relative = claim("c", 0.0, &["new"], false).replace("\"lower\"", "\"higher\"");
    let absolute =
        relative.replace("\"relative\"", "\"absolute\"").replace("minimum_effect = 0", "minimum_effect = 10");
    insta::assert_snapshot!(reason(&absolute), @"the accuracy of LPA is 44.5 points higher than that of Transformer (95 % CI 44.0 points to 45.4 points, 3 seeds, Holm p < 0.001): more than the 10.0 points that the claim needs");
    assert!(reason(&relative).contains(" % higher than"), "{}", reason(&relative));
}

#[test]
fn untested_claims_say_why() {
    let untested = claim("c", 0.0, &["new"], false)
        .lines()
        .filter(|l| !l.contains("test ="))
        .collect::<Vec<_>>()
        .join("\n")
        + "\ntest = { kind = \"untested\", reason = \"needs GLUE\" }";
    let verdict = verdict_of(&untested, vec![]);
    assert_eq!((verdict.outcome, verdict.reason.as_str()), (Outcome::NotTested, "needs GLUE"));
    let elsewhere = claim("c", 0.0, &["new"], false).replace("\"small\"", "\"gpu\", \"paper\"");
    let verdict = verdict_of(&elsewhere, vec![base(), ("new", vec![1.0; 4])]);
    assert_eq!(verdict.outcome, Outcome::NotTested);
    assert_eq!(verdict.reason, "scale small does not test this claim; it is judged at gpu, paper");
    let nowhere = claim("c", 0.0, &["new"], false).replace("\"small\"", "");
    assert_eq!(verdict_of(&nowhere, vec![]).reason, "no scale tests this claim");
}

fn exact(tolerance: f64) -> String {
    format!(
        r#"
        [[claims]]
        id = "count"
        statement = "s"
        source = "p"
        reported = "?"
        scales = ["small"]
        test = {{ kind = "exact", experiment = "e", variant = "new", metric = "parameters", expected = 1000.0, tolerance = {tolerance:?} }}
        "#
    )
}

#[test]
fn exact_numbers_agree_or_do_not() {
    let with = |values: Vec<f64>, tolerance| verdict_of(&exact(tolerance), vec![("new", values)]);
    let agrees = with(vec![1000.0, 1000.0], 0.0);
    assert_eq!(agrees.outcome, Outcome::Reproduced);
    assert_eq!(agrees.reason, "the number of parameters of LPA is 1000, as expected, exactly");
    assert_eq!(with(vec![1004.0], 5.0).outcome, Outcome::Reproduced);
    let off = with(vec![1000.0, 1001.0], 0.0);
    assert_eq!(off.outcome, Outcome::NotReproduced);
    assert!(off.reason.contains("is 1001; 1000 was expected exactly: the difference is 1"), "{}", off.reason);
    assert_eq!(with(vec![f64::NAN], 0.0).outcome, Outcome::Inconclusive);
    assert_eq!(with(vec![], 0.0).outcome, Outcome::NotTested);
}

#[test]
fn two_significant_digits() {
    for (x, text) in
        [(0.12345, "12 %"), (0.0213, "2.1 %"), (0.00034, "0.034 %"), (1.5, "150 %"), (0.0, "0 %")]
    {
        assert_eq!(percent(x), text);
    }
}
