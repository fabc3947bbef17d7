//! Ctrl-C: the first stops at the next safe point, the second at once.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::failure::{Failure, INTERRUPTED};

static STOP: AtomicBool = AtomicBool::new(false);

/// The flag that Ctrl-C (or a termination signal) sets.
pub(crate) fn flag() -> Result<&'static AtomicBool, Failure> {
    let handler = || {
        if STOP.swap(true, Ordering::SeqCst) {
            std::process::exit(i32::from(INTERRUPTED));
        }
        eprintln!("stopping at the next safe point; once more stops at once");
    };
    match ctrlc::set_handler(handler) {
        // the handler stays for the whole process
        Ok(()) | Err(ctrlc::Error::MultipleHandlers) => Ok(&STOP),
        Err(error) => Err(Failure::environment(format!("cannot listen to Ctrl-C: {error}"))),
    }
}
