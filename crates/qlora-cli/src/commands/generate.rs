//! `qlora generate`: answers, token by token.

mod chat;
mod speaker;

use qlora_core::kernels::KernelBackend;
use qlora_core::models::Sampling;
use qlora_core::text::Message;

use self::speaker::Speaker;
use crate::arguments::{GenerateArguments, GlobalOptions, SamplingArguments};
use crate::backend::{OnBackend, on_backend};
use crate::failure::Failure;
use crate::model::{LoadedModel, load_model};

struct Generate<'a> {
    global: &'a GlobalOptions,
    arguments: &'a GenerateArguments,
}

pub(crate) fn run(global: &GlobalOptions, arguments: &GenerateArguments) -> Result<(), Failure> {
    on_backend(global, Generate { global, arguments })
}

impl OnBackend for Generate<'_> {
    fn run<B: KernelBackend>(self, device: &B::Device) -> Result<(), Failure> {
        let Self { global, arguments } = self;
        let sampling = sampling(&arguments.sampling);
        sampling.validate().map_err(|error| Failure::Usage(Box::new(error)))?;
        if !arguments.chat {
            arguments.model.at_most_one_adapter()?;
        }
        let template = arguments.template.as_deref();
        let LoadedModel { checkpoint, decoder, others } =
            load_model::<B>(global, &arguments.model, template, device)?;
        let tokenizer = checkpoint.tokenizer()?;
        let opening: Vec<Message> = arguments.system.iter().map(Message::system).collect();
        let mut speaker = Speaker::new(&decoder, others, tokenizer, global, &arguments.sampling, sampling)?;
        match &arguments.prompt {
            Some(prompt) if arguments.raw => {
                let ids = speaker.raw_ids(prompt)?;
                speaker.answer(&ids)?;
            }
            Some(prompt) => {
                let template = speaker.tokenizer().chat_template()?;
                let messages = [opening, vec![Message::user(prompt)]].concat();
                let ids = speaker.chat_ids(&template, &messages)?;
                speaker.answer(&ids)?;
            }
            None => chat::talk(&mut speaker, opening, arguments.model.adapter.len())?,
        }
        Ok(())
    }
}

fn sampling(arguments: &SamplingArguments) -> Sampling {
    Sampling {
        temperature: if arguments.greedy { 0.0 } else { arguments.temperature },
        top_k: arguments.top_k,
        top_p: arguments.top_p,
        min_p: arguments.min_p,
        typical_p: arguments.typical_p,
        top_h: arguments.top_h,
        epsilon_cutoff: arguments.epsilon_cutoff,
        eta_cutoff: arguments.eta_cutoff,
        min_tokens_to_keep: arguments.min_tokens_to_keep,
        repetition_penalty: arguments.repetition_penalty,
    }
}
