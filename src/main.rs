//! Runs the program: parses the command line and calls an entry point.

/// Returns memory to the operating system after a large apply; the system's allocator keeps its peak size.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    evenkeel::cli::main()
}
