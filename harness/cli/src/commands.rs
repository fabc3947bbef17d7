//! One file a command.

pub(crate) mod bench;
pub(crate) mod bless;
pub(crate) mod check;
pub(crate) mod claims;
pub(crate) mod data;
pub(crate) mod diff;
pub(crate) mod doctor;
pub(crate) mod list;
pub(crate) mod report;
pub(crate) mod run;
pub(crate) mod teach;
