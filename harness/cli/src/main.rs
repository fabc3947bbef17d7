//! The `replica` command.

use std::process::ExitCode;

use replica_cli::{Streams, registry};
use replica_core::memory::Counting;

#[global_allocator]
static ALLOCATOR: Counting<mimalloc::MiMalloc> = Counting(mimalloc::MiMalloc);

fn main() -> ExitCode {
    ExitCode::from(replica_cli::run(std::env::args_os(), &registry::replications(), &mut Streams::standard()))
}
