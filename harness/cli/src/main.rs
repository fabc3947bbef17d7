//! The `replica` command.

use std::process::ExitCode;

use replica_cli::{Streams, registry};
use replica_core::memory::Counting;

#[global_allocator]
static ALLOCATOR: Counting<mimalloc::MiMalloc> = Counting(mimalloc::MiMalloc);

/// `mi_option_purge_delay` of mimalloc.h, which the bindings leave out.
const PURGE_DELAY: i32 = 15;

fn main() -> ExitCode {
    // Memory of one step is memory of the next: given back to the system in between, clearing its pages again
    // takes a tenth of a training step.
    // SAFETY: a plain option of the allocator, set before other threads exist.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
    ExitCode::from(replica_cli::run(std::env::args_os(), &registry::replications(), &mut Streams::standard()))
}
