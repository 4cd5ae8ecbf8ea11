//! The program: parses the command line and calls a door.

fn main() -> std::process::ExitCode {
    evenkeel::cli::main()
}
