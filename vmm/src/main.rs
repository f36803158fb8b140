//! The `xvmm` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    xvmm::cli::main(std::env::args_os(), xvmm::domain::run)
}
