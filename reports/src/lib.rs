//! The HTML report: evidence in, a folder of self-contained pages out.
//!
//! ```
//! # fn main() -> Result<(), replica_reports::ReportError> {
//! let evidence: Vec<replica_core::Evidence> = Vec::new(); // from the run store
//! # let folder = std::env::temp_dir().join(format!("replica-reports-doc-{}", std::process::id()));
//! let index = replica_reports::render_site(&evidence, &[], &[], &folder)?;
//! assert!(index.ends_with("index.html"));
//! # let _ = std::fs::remove_dir_all(&folder);
//! # Ok(())
//! # }
//! ```
//!
//! Three rooms that do not mix: statistics for display (`interval`), plots (`plot`, geometry only), and pages
//! (`page`, serialisable contexts). The templates under `templates/` lay the contexts out; they escape every value,
//! and no page loads anything from anywhere.

#![warn(missing_docs)]

mod anchor;
mod caption;
mod date;
mod error;
mod golden;
mod history;
mod interval;
mod number;
mod page;
mod plot;
mod prose;
mod site;
mod template;

pub use error::ReportError;
pub use golden::{GoldenState, GoldenStatus};
pub use history::HistoryPoint;
pub use site::render_site;
