//! The program: parses the command line and calls a door.

/// Gives memory back after a large apply, where the system's keeps what was once needed.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    evenkeel::cli::main()
}
