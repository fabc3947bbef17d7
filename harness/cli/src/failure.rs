//! Why a command fails, which is its exit code.

use anyhow::Error;

pub(crate) const CHECK: u8 = 1;
pub(crate) const USAGE: u8 = 2;
pub(crate) const ENVIRONMENT: u8 = 3;
pub(crate) const INTERRUPTED: u8 = 130;

/// A failed command.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A check or a trial failed; the details have been shown.
    Check(String),
    /// The command line, or a configuration file, makes no sense.
    Usage(Error),
    /// Data, a file or a device is missing, damaged or not accessible.
    Environment(Error),
    /// A person stopped it.
    Interrupted(String),
}

impl Failure {
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::Usage(Error::msg(message.into()))
    }

    pub(crate) fn environment(message: impl Into<String>) -> Self {
        Self::Environment(Error::msg(message.into()))
    }

    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Check(_) => CHECK,
            Self::Usage(_) => USAGE,
            Self::Environment(_) => ENVIRONMENT,
            Self::Interrupted(_) => INTERRUPTED,
        }
    }

    pub(crate) fn message(&self) -> Option<String> {
        match self {
            Self::Check(message) | Self::Interrupted(message) => Some(message.clone()),
            // the errors of our crates tell their causes themselves
            Self::Usage(error) | Self::Environment(error) => Some(error.to_string()),
        }
    }
}

impl From<replica_core::store::StoreError> for Failure {
    fn from(error: replica_core::store::StoreError) -> Self {
        Self::Environment(error.into())
    }
}

impl From<replica_core::golden::GoldenError> for Failure {
    fn from(error: replica_core::golden::GoldenError) -> Self {
        Self::Environment(error.into())
    }
}

impl From<replica_core::replication::PlanError> for Failure {
    fn from(error: replica_core::replication::PlanError) -> Self {
        match error {
            replica_core::replication::PlanError::Data(_) => Self::Environment(error.into()),
            _ => Self::Usage(error.into()),
        }
    }
}

impl From<replica_core::runner::RunError> for Failure {
    fn from(error: replica_core::runner::RunError) -> Self {
        match error {
            replica_core::runner::RunError::Plan(error) => error.into(),
            other => Self::Environment(other.into()),
        }
    }
}

impl From<replica_datasets::Error> for Failure {
    fn from(error: replica_datasets::Error) -> Self {
        match error {
            replica_datasets::Error::UnknownEntry { .. } => Self::Usage(error.into()),
            _ => Self::Environment(error.into()),
        }
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::Environment(error.into())
    }
}
