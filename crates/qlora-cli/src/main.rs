//! The `qlora` program.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage (an unknown option, a configuration that does not check).

mod arguments;
mod backend;
mod commands;
mod failure;
mod model;

use std::process::ExitCode;

use clap::Parser;

use crate::arguments::Arguments;
use crate::failure::{Failure, report_panics};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    report_panics();
    // A panic is a bug: the hook has said so, and there is nothing to add.
    match std::panic::catch_unwind(|| commands::run(arguments)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(failure)) => failure.report(),
        Err(_) => Failure::EXIT_FAILED.into(),
    }
}
