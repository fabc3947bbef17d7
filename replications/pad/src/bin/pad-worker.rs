//! A worker for the programs of a [`replica_pad::exec::Pool`], for where there is no `replica` to be one.

use std::process::ExitCode;

use replica_core::memory::Counting;

#[global_allocator]
static ALLOCATOR: Counting<std::alloc::System> = Counting(std::alloc::System);

fn main() -> ExitCode {
    match replica_pad::exec::serve(std::io::stdin(), std::io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}
