//! The `replica` command.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    println!("replica {}", env!("CARGO_PKG_VERSION"));
}
