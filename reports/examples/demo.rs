//! Renders made-up evidence, to look at the pages: `cargo run -p replica-reports --example demo -- FOLDER`.

use std::path::PathBuf;

#[path = "../tests/synthetic/mod.rs"]
mod synthetic;

fn main() -> Result<(), replica_reports::ReportError> {
    let out = std::env::args_os().nth(1).map_or_else(|| PathBuf::from("reports/site"), PathBuf::from);
    let evidence = synthetic::site();
    let index = replica_reports::render_site(&evidence, &synthetic::history(), &synthetic::goldens(), &out)?;
    println!("{}", index.display());
    Ok(())
}
