//! How each experiment was tested here.

use replica_core::{Evidence, Experiment};
use serde::Serialize;

use crate::caption::Captions;
use crate::number;
use crate::plot::STYLES;
use crate::prose::{Line, Prose};

/// An experiment's set-up.
#[derive(Debug, Serialize)]
pub(crate) struct Setup {
    id: String,
    title: String,
    method: Prose,
    variants: Vec<VariantLine>,
    facts: Vec<Fact>,
    results: String,
}

#[derive(Debug, Serialize)]
struct VariantLine {
    label: String,
    description: Line,
    style: usize,
    baseline: bool,
}

/// A term and what it is.
#[derive(Debug, Serialize)]
pub(crate) struct Fact {
    term: &'static str,
    text: Line,
}

impl Fact {
    /// A fact with `code` between backticks.
    pub fn of(term: &'static str, text: &str) -> Self {
        Self { term, text: Line::of(text) }
    }
}

/// The set-up of an experiment; `results` is the anchor of its results.
pub(crate) fn setup(
    evidence: &Evidence,
    experiment: &Experiment,
    captions: &mut Captions,
    results: String,
) -> Setup {
    let variant = |(i, v): (usize, &replica_core::Variant)| VariantLine {
        label: v.label.clone(),
        description: Line::of(&v.description),
        style: i % STYLES,
        baseline: i == 0,
    };
    Setup {
        id: captions.anchors.fresh("setup", &experiment.id),
        title: experiment.title.clone(),
        method: Prose::of(&experiment.method),
        variants: experiment.variants.iter().enumerate().map(variant).collect(),
        facts: facts(evidence, experiment),
        results,
    }
}

fn facts(evidence: &Evidence, experiment: &Experiment) -> Vec<Fact> {
    let mut facts = vec![
        Fact::of("Seeds", &seeds(experiment)),
        Fact::of("Tuning", &tuning(experiment)),
        Fact::of(
            "Scale",
            &format!("{}, hyper-parameters from `{}`", evidence.plan.scale, evidence.plan.config_file),
        ),
    ];
    if !experiment.data.is_empty() {
        let names: Vec<String> = experiment.data.keys().map(|name| format!("`{name}`")).collect();
        facts.insert(0, Fact::of("Data", &names.join(", ")));
    }
    if experiment.exclusive {
        facts.push(Fact::of(
            "Machine",
            "each trial had the machine for itself, because time or memory is measured",
        ));
    }
    if experiment.on_request {
        facts.push(Fact::of("Runs", "only when named on the command line: it is not in this scale's budget"));
    }
    facts
}

fn seeds(experiment: &Experiment) -> String {
    let list: Vec<String> = experiment.seeds.iter().map(u64::to_string).collect();
    match list.len() {
        0 => "none".to_owned(),
        1 => format!("one ({}), so no interval", list[0]),
        n => format!(
            "{} ({}), the same for every method, so that differences are paired",
            number::count(n as u64),
            list.join(", ")
        ),
    }
}

fn tuning(experiment: &Experiment) -> String {
    experiment.tuning.as_ref().map_or_else(
        || "none".to_owned(),
        |t| {
            let values: Vec<String> = t.values.iter().map(|v| number::parameter(*v)).collect();
            format!(
                "`{}` from {{{}}} by lowest `{}` on validation data, with {} of its own: {} for every method",
                t.parameter,
                values.join(", "),
                t.metric,
                number::counted(t.seeds.len(), "seed"),
                number::counted(t.values.len() * t.seeds.len(), "tuning trial"),
            )
        },
    )
}
