//! `replica check`

use replica_core::RunStore;
use replica_core::expansion::Selection;
use replica_reports::GoldenState;
use serde_json::json;

use crate::Session;
use crate::arguments::PlanOptions;
use crate::compared::compare;
use crate::failure::Failure;
use crate::streams::Tone;
use crate::study::studies;
use crate::table::Table;

pub(crate) fn check(session: &mut Session, options: &PlanOptions) -> Result<(), Failure> {
    let global = &session.arguments.global;
    let store = RunStore::at(&global.runs);
    let selection = options.target.as_ref().map_or_else(Selection::default, |t| t.selection.clone());
    if selection.variant.is_some() {
        return Err(Failure::usage("goldens cover whole experiments: name PAPER or PAPER/EXPERIMENT"));
    }
    let mut statuses = Vec::new();
    for study in studies(session, options)? {
        let evidence = study.evidence(session, &store, options.setting.device.backend())?;
        statuses.extend(compare(&evidence, &selection, &global.golden)?);
    }
    let differ = statuses.iter().filter(|s| s.state == GoldenState::Differs).count();
    let agree = statuses.iter().filter(|s| s.state == GoldenState::Agrees).count();
    if global.json {
        session.streams.json(&json!({ "agree": agree, "differ": differ, "experiments": statuses }))?;
    } else {
        let mut table = Table::new(&["experiment", "golden", "what moved"]);
        for status in &statuses {
            let tone = match status.state {
                GoldenState::Agrees => Tone::Good,
                GoldenState::Differs => Tone::Bad,
                GoldenState::Absent => Tone::Quiet,
            };
            // one line a change
            let mut details = status.detail.split("; ");
            let name = format!("{}/{}", status.paper, status.experiment);
            let word = session.streams.tone(tone, status.state.label());
            table.row([name, word, details.next().unwrap_or_default().to_owned()]);
            for detail in details {
                table.row([String::new(), String::new(), detail.to_owned()]);
            }
        }
        for line in table.lines() {
            session.streams.result(&line);
        }
    }
    if differ > 0 {
        return Err(Failure::Check(format!(
            "{differ} of {} experiments differ from their goldens; if the change is meant, `replica bless` it",
            agree + differ
        )));
    }
    if agree == 0 {
        return Err(Failure::Check(format!(
            "nothing was compared: no golden in {} fits; run the papers, then `replica bless --write`",
            global.golden.display()
        )));
    }
    Ok(())
}
