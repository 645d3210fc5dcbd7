//! `qlora data`: what training would see of data, and what is wrong with it.

mod check;
mod colour;
mod convert;
mod render;
mod show;
mod sources;

use std::path::Path;

use qlora_core::data::Encoder;
use qlora_core::train::config::DataConfig;

use crate::arguments::{DataCommand, EncoderArguments, GlobalOptions};
use crate::backend::set_threads;
use crate::failure::Failure;
use crate::model::{self, open_checkpoint, with_template};

pub(crate) fn run(global: &GlobalOptions, command: &DataCommand) -> Result<(), Failure> {
    set_threads(global)?;
    match command {
        DataCommand::Check(arguments) => check::run(global, arguments),
        DataCommand::Show(arguments) => show::run(global, arguments),
        DataCommand::Render(arguments) => render::run(arguments),
        DataCommand::Convert(arguments) => convert::run(global, arguments),
    }
}

/// How a model reads rows, with the template and the turns that were chosen, and the longest that it can. An adapter is
/// one that training goes on from.
fn encoder(
    model: &str,
    arguments: &EncoderArguments,
    adapter: Option<&Path>,
) -> Result<(Encoder, usize), Failure> {
    let checkpoint = with_template(open_checkpoint(model)?, arguments.template.as_deref(), adapter)?;
    let mut encoder = model::encoder(&checkpoint)?;
    if let Some(train_on) = arguments.train_on {
        encoder = encoder.with_train_on(train_on.into());
    }
    Ok((encoder, checkpoint.config().context_length()))
}

/// The options of a command, and what a configuration says where they do not.
fn encoder_of_run(given: &EncoderArguments, data: &DataConfig) -> EncoderArguments {
    EncoderArguments {
        template: given.template.clone().or_else(|| data.template.clone()),
        train_on: given.train_on.or(Some(data.train_on.into())),
    }
}
