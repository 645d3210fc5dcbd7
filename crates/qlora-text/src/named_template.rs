use crate::{ChatTemplate, Error, Tokenizer};
use std::path::Path;

/// A chat format that is known by name, for models that bring no template of their own.
///
/// Content stands in the text as it is, white space included. A template that has no place for tools or for a role
/// refuses the conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct NamedTemplate {
    /// Its name.
    pub name: &'static str,
    /// The Jinja source.
    pub source: &'static str,
    /// The tokens that it takes to be in the vocabulary, `eos_token` for whatever ends a text.
    pub tokens: &'static [&'static str],
}

macro_rules! named {
    ($name:literal, $($token:literal),+) => {
        NamedTemplate {
            name: $name,
            source: include_str!(concat!("../templates/", $name, ".jinja")),
            tokens: &[$($token),+],
        }
    };
}

/// The formats that are known by name.
pub const NAMED_TEMPLATES: [NamedTemplate; 10] = [
    named!("alpaca", "eos_token"),
    named!("chatml", "<|im_start|>", "<|im_end|>"),
    named!("gemma", "<start_of_turn>", "<end_of_turn>"),
    named!("llama-2", "eos_token"),
    named!("llama-3", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    named!("mistral", "eos_token"),
    named!("phi-3", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    named!("phi-4", "<|im_start|>", "<|im_sep|>", "<|im_end|>"),
    named!("vicuna", "eos_token"),
    named!("zephyr", "eos_token"),
];

impl NamedTemplate {
    /// The format of a name.
    #[must_use]
    pub fn find(name: &str) -> Option<&'static Self> {
        NAMED_TEMPLATES.iter().find(|template| template.name == name)
    }
}

/// A chat template that was chosen for a model.
#[derive(Debug, Clone)]
pub struct ChosenTemplate {
    /// The template, with the tokenizer's special tokens as variables.
    pub template: ChatTemplate,
    /// Tokens that the template writes and the vocabulary lacks: they would be spelt in pieces as ordinary text, and
    /// the model would learn them like words. Nothing adds them by itself.
    pub missing_tokens: Vec<String>,
}

impl ChosenTemplate {
    /// What to say about the missing tokens; `None` when there are none.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        (!self.missing_tokens.is_empty()).then(|| {
            format!(
                "the chat template writes {} which the vocabulary does not have as tokens: they are spelt in pieces, and \
                 generation does not stop at them; choose a template of the model's own tokens, or one that needs none \
                 (\"alpaca\", \"vicuna\", \"zephyr\"), or give the model the tokens first (qlora export \
                 --add-special-token)",
                self.missing_tokens.join(", ")
            )
        })
    }
}

impl Tokenizer {
    /// The chat template of a name ([`NAMED_TEMPLATES`]) or of a Jinja file.
    ///
    /// # Errors
    /// [`Error::UnknownTemplate`] for what is neither, [`Error::Read`], [`Error::TemplateSyntax`].
    pub fn choose_template(&self, name_or_path: &str) -> Result<ChosenTemplate, Error> {
        if let Some(named) = NamedTemplate::find(name_or_path) {
            let missing = named.tokens.iter().filter(|&&token| match token {
                "eos_token" => self.eos().is_empty(),
                token => self.id(token).is_none(),
            });
            let missing_tokens = missing.map(|&token| token.to_owned()).collect();
            return Ok(ChosenTemplate {
                template: self.chat_template_from(named.source, None)?,
                missing_tokens,
            });
        }
        let path = Path::new(name_or_path);
        if !path.is_file() && path.extension().is_none() && path.components().count() == 1 {
            let known = NAMED_TEMPLATES.map(|template| template.name).join(", ");
            return Err(Error::UnknownTemplate { name: name_or_path.to_owned(), known });
        }
        let source =
            std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let template = self.chat_template_from(&source, None)?;
        let mut missing_tokens: Vec<String> =
            control_tokens(&source).filter(|token| self.id(token).is_none()).map(str::to_owned).collect();
        missing_tokens.sort();
        missing_tokens.dedup();
        Ok(ChosenTemplate { template, missing_tokens })
    }
}

/// What in a template looks like a control token: `<|name|>`.
fn control_tokens(source: &str) -> impl Iterator<Item = &str> {
    source.match_indices("<|").filter_map(|(start, _)| {
        let name = &source[start + 2..];
        let length = name.find("|>")?;
        let is_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-');
        let named = length > 0 && name[..length].chars().all(is_name);
        named.then(|| &source[start..start + length + 4])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Message, RenderInput};

    fn render(name: &str, messages: &[Message], add_generation_prompt: bool) -> Result<String, Error> {
        let template = ChatTemplate::new(NamedTemplate::find(name).unwrap().source)
            .unwrap()
            .with_variable("bos_token", "<s>")
            .with_variable("eos_token", "</s>");
        let input = RenderInput { messages, add_generation_prompt, ..RenderInput::default() };
        Ok(template.render(&input)?.text)
    }

    /// The formats as their models' cards describe them.
    #[test]
    fn formats_are_those_of_the_model_cards() {
        let talk = [
            Message::system("Be brief."),
            Message::user(" Hi "),
            Message::assistant("Hello"),
            Message::user("Bye"),
        ];
        for (name, expected) in [
            (
                "chatml",
                "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n\
                 <|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
            ),
            (
                "llama-3",
                "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>\
                 <|start_header_id|>user<|end_header_id|>\n\n Hi <|eot_id|>\
                 <|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>\
                 <|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>\
                 <|start_header_id|>assistant<|end_header_id|>\n\n",
            ),
            (
                "llama-2",
                "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n Hi  [/INST] Hello </s><s>[INST] Bye [/INST]",
            ),
            ("mistral", "<s>[INST] Be brief.\n\n Hi  [/INST] Hello</s>[INST] Bye [/INST]"),
            (
                "gemma",
                "<s><start_of_turn>user\nBe brief.\n\n Hi <end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n\
                 <start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n",
            ),
            (
                "phi-3",
                "<|system|>\nBe brief.<|end|>\n<|user|>\n Hi <|end|>\n<|assistant|>\nHello<|end|>\n\
                 <|user|>\nBye<|end|>\n<|assistant|>\n",
            ),
            (
                "phi-4",
                "<|im_start|>system<|im_sep|>Be brief.<|im_end|><|im_start|>user<|im_sep|> Hi <|im_end|>\
                 <|im_start|>assistant<|im_sep|>Hello<|im_end|><|im_start|>user<|im_sep|>Bye<|im_end|>\
                 <|im_start|>assistant<|im_sep|>",
            ),
            (
                "zephyr",
                "<|system|>\nBe brief.</s>\n<|user|>\n Hi </s>\n<|assistant|>\nHello</s>\n<|user|>\nBye</s>\n\
                 <|assistant|>\n",
            ),
            ("vicuna", "<s>Be brief. USER:  Hi  ASSISTANT: Hello</s>USER: Bye ASSISTANT:"),
            (
                "alpaca",
                "<s>Be brief.\n\n### Instruction:\n Hi \n\n### Response:\nHello</s>\n\n### Instruction:\nBye\n\n\
                 ### Response:\n",
            ),
        ] {
            assert_eq!(render(name, &talk, true).unwrap(), expected, "{name}");
        }
        let without = &talk[1..3];
        let alpaca = render("alpaca", without, false).unwrap();
        assert!(alpaca.starts_with("<s>Below is an instruction that describes a task. "), "{alpaca}");
        assert!(
            render("vicuna", without, false)
                .unwrap()
                .contains("polite answers to the user's questions. USER:")
        );
    }

    #[test]
    fn what_has_no_place_is_refused() {
        let tool = [Message::user("a"), Message::new("tool", "b")];
        for name in ["alpaca", "gemma", "llama-2", "mistral", "phi-3", "vicuna"] {
            let error = render(name, &tool, false).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("role tool"), "{error}");
        }
        for named in NAMED_TEMPLATES {
            let template = ChatTemplate::new(named.source).unwrap();
            let tools = [serde_json::json!({"name": "f"})];
            let input = RenderInput { messages: &tool[..1], tools: Some(&tools), ..RenderInput::default() };
            let error = template.render(&input).unwrap_err().to_string();
            assert!(error.contains("no place for tools"), "{error}");
        }
    }

    #[test]
    fn control_tokens_are_found_in_a_source() {
        let source = "{{ '<|im_start|>' + role }}<|a b|><||>{{ x < y |> z }}<|end|>";
        assert_eq!(control_tokens(source).collect::<Vec<_>>(), ["<|im_start|>", "<|end|>"]);
    }
}
