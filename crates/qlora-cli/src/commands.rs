//! The commands, one file each.

mod data;
mod export;
mod fetch;
mod generate;
mod inspect;
mod logits;
mod train;

use crate::arguments::{Arguments, Command};
use crate::failure::Failure;

/// Does what the command line asks.
pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let global = arguments.global;
    match arguments.command {
        Command::Fetch(arguments) => fetch::run(&global, &arguments),
        Command::Train(arguments) => train::run(&global, &arguments),
        Command::Generate(arguments) => generate::run(&global, &arguments),
        Command::Logits(arguments) => logits::run(&global, &arguments),
        Command::Data { command } => data::run(&global, &command),
        Command::Export(arguments) => export::run(&global, &arguments),
        Command::Inspect(arguments) => inspect::run(&global, &arguments),
    }
}
