//! `qlora data`: what training would see of data, and what is wrong with it.

mod check;
mod colour;
mod convert;
mod render;
mod show;
mod sources;

use std::io::ErrorKind;
use std::sync::Arc;

use qlora_core::data::Encoder;
use qlora_core::models::ModelError;
use qlora_core::text::Error as TextError;
use qlora_core::train::config::DataConfig;

use crate::arguments::{DataCommand, EncoderArguments, GlobalOptions};
use crate::backend::set_threads;
use crate::failure::Failure;
use crate::model::open_checkpoint;

pub(crate) fn run(global: &GlobalOptions, command: &DataCommand) -> Result<(), Failure> {
    set_threads(global)?;
    match command {
        DataCommand::Check(arguments) => check::run(global, arguments),
        DataCommand::Show(arguments) => show::run(global, arguments),
        DataCommand::Render(arguments) => render::run(arguments),
        DataCommand::Convert(arguments) => convert::run(global, arguments),
    }
}

/// How a model reads rows, and the longest that it can.
fn encoder(model: &str, arguments: &EncoderArguments) -> Result<(Encoder, usize), Failure> {
    let checkpoint = open_checkpoint(model)?;
    let mut encoder = match checkpoint.tokenizer() {
        Ok(tokenizer) => {
            let tokenizer = Arc::new(tokenizer);
            let encoder = Encoder::new(tokenizer.clone());
            match &arguments.template {
                None => encoder,
                Some(template) => {
                    let chosen = tokenizer.choose_template(template)?;
                    if let Some(warning) = chosen.warning() {
                        eprintln!("warning: {warning}");
                    }
                    encoder.with_template(chosen.template)
                }
            }
        }
        // Rows of token ids need none; other rows say so themselves.
        Err(ModelError::Text(TextError::Read { source, .. })) if source.kind() == ErrorKind::NotFound => {
            Encoder::token_ids_only()
        }
        Err(error) => return Err(error.into()),
    };
    if let Some(train_on) = arguments.train_on {
        encoder = encoder.with_train_on(train_on.into());
    }
    let config = checkpoint.config();
    Ok((encoder.with_vocab_size(config.vocab_size), config.context_length()))
}

/// The options of a command, and what a configuration says where they do not.
fn encoder_of_run(given: &EncoderArguments, data: &DataConfig) -> EncoderArguments {
    EncoderArguments {
        template: given.template.clone().or_else(|| data.template.clone()),
        train_on: given.train_on.or(Some(data.train_on.into())),
    }
}
