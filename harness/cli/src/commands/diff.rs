//! `replica diff`

use replica_core::RunStore;
use replica_core::diff::Difference;
use replica_core::store::StoreError;

use crate::Session;
use crate::arguments::DiffOptions;
use crate::failure::Failure;

pub(crate) fn diff(session: &mut Session, options: &DiffOptions) -> Result<(), Failure> {
    let store = RunStore::at(&session.arguments.global.runs);
    let find = |reference: &str| match store.find(reference) {
        Err(error @ StoreError::NotFound { .. }) => Err(Failure::Usage(error.into())),
        other => Ok(other?),
    };
    let (left, right) = (find(&options.left)?, find(&options.right)?);
    let difference = Difference::between(&left, &right);
    if session.arguments.global.json {
        return session.streams.json(&difference);
    }
    for (side, record) in [("-", &left), ("+", &right)] {
        let (id, path, seed) = (record.id.short(), record.spec.path(), record.spec.seed);
        session.streams.result(&format!("{side} {id} {path} seed {seed}"));
    }
    session.streams.result(difference.to_string().trim_end());
    Ok(())
}
