//! Tells the binary which commit it was built from. Only the binary knows, so that a commit recompiles nothing else.

use std::process::Command;

fn main() {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok().filter(|o| o.status.success())?;
        Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
    };
    // whatever changes the sources or the commit; other files cannot make the description wrong for long
    for path in ["..", "../../datasets", "../../replications", "../../reports", "../../Cargo.lock"] {
        println!("cargo:rerun-if-changed={path}");
    }
    if let Some(head) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo:rerun-if-changed={head}");
    }
    println!("cargo:rerun-if-changed=build.rs");
    let commit =
        git(&["describe", "--always", "--dirty", "--abbrev=12", "--exclude", "*"]).unwrap_or_default();
    println!("cargo:rustc-env=REPLICA_COMMIT={commit}");
}
