//! The papers this binary knows. A new replication is one line here.

use std::sync::Arc;

use replica_core::Replication;
use replica_datasets::Sources;
use replica_lpa::Lpa;
use replica_pad::Pad;
use replica_pad::exec::WorkerCommand;
use replica_smr::Smr;

/// All replications, in the order of the report.
pub fn replications() -> Vec<Box<dyn Replication>> {
    let sources = Arc::new(Sources::from_environment());
    vec![
        Box::new(Lpa::new(sources.clone())),
        Box::new(Smr::new(sources.clone())),
        Box::new(Pad::new(sources, WorkerCommand::replica())),
    ]
}
