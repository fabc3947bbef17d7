//! `replica bless`

use replica_core::RunStore;
use replica_core::expansion::Selection;
use replica_core::golden::{Golden, GoldenError};
use serde_json::json;
use similar::TextDiff;

use crate::Session;
use crate::arguments::BlessOptions;
use crate::failure::Failure;
use crate::study::studies;

pub(crate) fn bless(session: &mut Session, options: &BlessOptions) -> Result<(), Failure> {
    let global = &session.arguments.global;
    let store = RunStore::at(&global.runs);
    let selection = options.plan.target.as_ref().map_or_else(Selection::default, |t| t.selection.clone());
    if selection.variant.is_some() {
        return Err(Failure::usage("goldens cover whole experiments: name PAPER or PAPER/EXPERIMENT"));
    }
    let (mut proposed, mut refused) = (Vec::new(), Vec::new());
    for study in studies(session, &options.plan)? {
        let backend = options.plan.setting.device.backend();
        let evidence = study.evidence(session, &store, backend)?;
        for experiment in &study.plan.experiments {
            // a busy machine moves times by half: nothing to review
            if experiment.exclusive {
                continue;
            }
            let asked = experiment.variants.iter().any(|v| selection.includes(experiment, v));
            if !asked {
                continue;
            }
            let (paper, scale) = (&evidence.paper.id, evidence.plan.scale);
            let path = Golden::path(&global.golden, paper, &experiment.id, scale, backend);
            let old = Golden::read(&path)?;
            match Golden::propose(&evidence, experiment, old.as_ref()) {
                Ok(golden) if Some(&golden) == old.as_ref() => {}
                Ok(golden) => proposed.push((path, old, golden)),
                Err(error @ GoldenError::Unfit { .. }) => refused.push(error.to_string()),
                Err(other) => return Err(other.into()),
            }
        }
    }
    let mut diffs = Vec::new();
    for (path, old, golden) in &proposed {
        let (before, after) = (old.as_ref().map(Golden::to_text).unwrap_or_default(), golden.to_text());
        let name = path.display().to_string();
        let diff = TextDiff::from_lines(&before, &after).unified_diff().header(&name, &name).to_string();
        if options.write {
            golden.write(path)?;
        }
        diffs.push(json!({ "path": path, "diff": diff }));
        if !global.json {
            session.streams.result(diff.trim_end());
        }
    }
    if global.json {
        session.streams.json(&json!({ "written": options.write, "proposed": diffs, "refused": refused }))?;
    } else {
        for message in &refused {
            session.streams.problem(message);
        }
        session.streams.result(&match (proposed.len(), options.write) {
            (0, _) => "no golden would change".to_owned(),
            (n, true) => format!("{n} goldens written; review them with `git diff`"),
            (n, false) => format!("{n} goldens would change; --write writes them"),
        });
    }
    match refused.len() {
        0 => Ok(()),
        n => Err(Failure::Check(format!("{n} experiments were not blessed"))),
    }
}
