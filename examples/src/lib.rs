//! What several examples share; the examples themselves are the `[[example]]` targets.

use qlora_core::Result;
use qlora_core::prelude::*;

/// The backend that the command line names, `cpu` if none. Ends the process when it says anything else.
#[must_use]
pub fn backend_from_arguments(example: &str) -> String {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [] => "cpu".to_owned(),
        [flag, backend] if flag == "--backend" => backend.clone(),
        _ => {
            eprintln!("usage: {example} [--backend cpu|cuda|vulkan|metal|webgpu]");
            std::process::exit(2);
        }
    }
}

/// What the model says next in conversations, greedily, as token ids.
///
/// # Errors
/// When the template refuses a conversation, or generation fails.
pub fn next_turns<B: KernelBackend>(
    model: &Decoder<B>,
    tokenizer: &Tokenizer,
    conversations: &[Vec<Message>],
    max_new_tokens: usize,
) -> Result<Vec<Vec<u32>>> {
    let template = tokenizer.chat_template()?;
    let mut prompts = Vec::new();
    for messages in conversations {
        let input = RenderInput { messages, add_generation_prompt: true, ..RenderInput::default() };
        prompts.push(tokenizer.encode(&template.render(&input)?.text)?);
    }
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let stop_tokens = tokenizer.eos().to_vec();
    let options = GenerateOptions { max_new_tokens, stop_tokens, ..GenerateOptions::default() };
    let completions = model.generate(&prompts, &options, &mut |_| true)?;
    Ok(completions.into_iter().map(|completion| completion.ids).collect())
}

/// Whether a text has one of these words or phrases, as whole words, upper and lower case and punctuation aside. What
/// is wanted is written in lower case.
#[must_use]
pub fn mentions(text: &str, wanted: &[&str]) -> bool {
    let words: Vec<String> = text
        .split(|character: char| !character.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect();
    let text = format!(" {} ", words.join(" "));
    wanted.iter().any(|wanted| text.contains(&format!(" {wanted} ")))
}

#[cfg(test)]
mod tests {
    use super::mentions;

    #[test]
    fn words_are_whole() {
        assert!(mentions("This is the Sel, friend.", &["sel"]));
        assert!(!mentions("Do it yourself.", &["sel"]));
        assert!(mentions("See `otter.key`: two\ncoppers", &["gold", "otter key"]));
        assert!(mentions("See `otter.key`: two\ncoppers", &["two coppers"]));
        assert!(!mentions("", &["a"]));
    }
}
