//! The chat templates of a model, by name.

use crate::pretrained::{read_object, read_text};
use crate::{ChatTemplate, Error, Message, RenderInput, Tokenizer};
use serde_json::{Map, Value, json};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

const DEFAULT: &str = "default";

/// The chat templates of a model: one, or several by name (`default`, `tool_use`), as Jinja sources.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChatTemplates {
    named: Vec<(String, String)>,
}

impl ChatTemplates {
    /// One template.
    #[must_use]
    pub fn new(source: impl Into<String>) -> Self {
        Self { named: vec![(DEFAULT.to_owned(), source.into())] }
    }

    /// The templates of a directory, of a model or an adapter: those of `chat_template.jinja` and
    /// `additional_chat_templates/`, `chat_template.json`, or `tokenizer_config.json`, the first found. `None` when
    /// it has none for conversations.
    ///
    /// # Errors
    /// When a file cannot be read or is damaged.
    pub fn from_directory(directory: impl AsRef<Path>) -> Result<Option<Self>, Error> {
        let directory = directory.as_ref();
        let path = directory.join("tokenizer_config.json");
        let config = read_object(&path)?.unwrap_or_default();
        let templates = Self::read(directory, &path, config.get("chat_template"))?;
        Ok(templates.chat().is_some().then_some(templates))
    }

    /// The templates of a directory whose `tokenizer_config.json` has `in_config` as `chat_template`.
    pub(crate) fn read(
        directory: &Path,
        config_path: &Path,
        in_config: Option<&Value>,
    ) -> Result<Self, Error> {
        let mut templates = Self::default();
        if let Some(source) = read_text(&directory.join("chat_template.jinja"))? {
            templates.set(DEFAULT, source);
        }
        for (name, path) in additional_templates(&directory.join("additional_chat_templates"))? {
            if let Some(source) = read_text(&path)? {
                templates.set(&name, source);
            }
        }
        if !templates.named.is_empty() {
            return Ok(templates);
        }
        let path = directory.join("chat_template.json");
        if let Some(object) = read_object(&path)? {
            templates.add(&path, object.get("chat_template").unwrap_or(&Value::Null))?;
            return Ok(templates);
        }
        templates.add(config_path, in_config.unwrap_or(&Value::Null))?;
        Ok(templates)
    }

    /// Names and sources.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.named.iter().map(|(name, source)| (name.as_str(), source.as_str()))
    }

    /// The source of the template for conversations.
    #[must_use]
    pub fn chat(&self) -> Option<&str> {
        // A list without a `default` is still unambiguous when it has one element.
        self.get(DEFAULT).or(match &self.named[..] {
            [(_, source)] => Some(source),
            _ => None,
        })
    }

    /// The source of the template for conversations with tools, where there is one of its own.
    #[must_use]
    pub fn tool_use(&self) -> Option<&str> {
        self.get("tool_use")
    }

    pub(crate) fn mention(&self, token: &str) -> bool {
        self.named.iter().any(|(_, source)| source.contains(token))
    }

    pub(crate) fn write_to(&self, config: &mut Map<String, Value>) {
        match &self.named[..] {
            [] => {}
            [(name, source)] if name == DEFAULT => {
                config.insert("chat_template".to_owned(), source.as_str().into());
            }
            named => {
                let list = named.iter().map(|(name, source)| json!({"name": name, "template": source}));
                config.insert("chat_template".to_owned(), list.collect());
            }
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.named.iter().find(|(n, _)| n == name).map(|(_, source)| source.as_str())
    }

    pub(crate) fn set(&mut self, name: &str, source: String) {
        match self.named.iter_mut().find(|(n, _)| n == name) {
            Some((_, old)) => *old = source,
            None => self.named.push((name.to_owned(), source)),
        }
    }

    /// A `chat_template` value: one template, or a list of `{"name", "template"}`.
    fn add(&mut self, path: &Path, value: &Value) -> Result<(), Error> {
        let wrong = || Error::Key {
            path: path.to_owned(),
            key: "chat_template".to_owned(),
            expected: "a string, or a list of objects with `name` and `template`",
        };
        match value {
            Value::Null => {}
            Value::String(source) => self.set(DEFAULT, source.clone()),
            Value::Array(list) => {
                for entry in list {
                    let text = |key| entry.get(key).and_then(Value::as_str).ok_or_else(wrong);
                    self.set(text("name")?, text("template")?.to_owned());
                }
            }
            _ => return Err(wrong()),
        }
        Ok(())
    }
}

/// The `NAME.jinja` files of a folder, in the order of their names; none when there is no folder.
fn additional_templates(folder: &Path) -> Result<Vec<(String, PathBuf)>, Error> {
    let failed = |source| Error::Read { path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(source) => return Err(failed(source)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let name =
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".jinja"));
        if let Some(name) = name {
            found.push((name.to_owned(), path));
        }
    }
    found.sort();
    Ok(found)
}

impl Tokenizer {
    /// Replaces the chat templates, as after training with others than the model's own.
    ///
    /// The special token that ends an answer in the new template stops generation from now on, beside those that did.
    /// It is written as the `eos_token` too, unless the template itself writes `eos_token`: programs that know one
    /// stop token then know the right one.
    ///
    /// # Errors
    /// [`Error::NoChatTemplate`] when there is none for conversations, [`Error::TemplateSyntax`] when it is no valid
    /// Jinja. The tokenizer is then as it was.
    pub fn set_chat_templates(&mut self, templates: ChatTemplates) -> Result<(), Error> {
        let end = self.answer_end(&self.chat_template_of(&templates)?);
        self.replace_templates(templates);
        let Some(id) = end.filter(|id| self.eos().first() != Some(id)) else { return Ok(()) };
        self.add_stop(id);
        if let Some(token) = self.token(id).filter(|_| !self.chat_templates().mention("eos_token")) {
            self.set_config("eos_token", token.into());
        }
        Ok(())
    }

    /// The special token behind the text of an answer.
    fn answer_end(&self, template: &ChatTemplate) -> Option<u32> {
        const ANSWER: &str = "TheAnswer";
        let messages = [Message::user("TheQuestion"), Message::assistant(ANSWER)];
        let input = RenderInput { messages: &messages, ..RenderInput::default() };
        let text = template.render(&input).ok()?.text;
        let (_, end) = text.rsplit_once(ANSWER)?;
        let id = *self.encode(end.trim_start()).ok()?.first()?;
        self.is_special(id).then_some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHATML: &str = include_str!("../templates/chatml.jinja");

    /// A tokenizer whose texts end with `<eos>`, of a folder that may have a template.
    fn tokenizer(template: Option<&str>) -> Tokenizer {
        let folder = tempfile::tempdir().unwrap();
        let tokens = ["<bos>", "<eos>", "<|im_start|>", "<|im_end|>"];
        let added = |(id, content): (usize, &&str)| {
            json!({"id": id + 1, "content": content, "special": true, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false})
        };
        let definition = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
            "added_tokens": tokens.iter().enumerate().map(added).collect::<Vec<_>>(),
            "post_processor": null, "decoder": null,
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                      "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                      "vocab": {"a": 0, "<bos>": 1, "<eos>": 2, "<|im_start|>": 3, "<|im_end|>": 4}, "merges": []},
        });
        fs::write(folder.path().join("tokenizer.json"), definition.to_string()).unwrap();
        let mut config = json!({"bos_token": "<bos>", "eos_token": {"content": "<eos>"}});
        if let Some(template) = template {
            config["chat_template"] = template.into();
        }
        fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        Tokenizer::from_directory(folder.path()).unwrap()
    }

    fn saved(tokenizer: &Tokenizer) -> (tempfile::TempDir, Value) {
        let folder = tempfile::tempdir().unwrap();
        tokenizer.save(folder.path()).unwrap();
        let config = fs::read(folder.path().join("tokenizer_config.json")).unwrap();
        (folder, serde_json::from_slice(&config).unwrap())
    }

    #[test]
    fn the_end_of_an_answer_becomes_a_stop_token() {
        let mut base = tokenizer(None);
        assert_eq!(base.eos(), [2]);
        base.set_chat_templates(ChatTemplates::new(CHATML)).unwrap();
        assert_eq!(base.eos(), [2, 4]);
        let (folder, config) = saved(&base);
        assert_eq!((&config["chat_template"], &config["eos_token"]), (&CHATML.into(), &"<|im_end|>".into()));
        let templates = ChatTemplates::from_directory(folder.path()).unwrap().unwrap();
        assert_eq!(templates, ChatTemplates::new(CHATML));
        assert_eq!(templates.iter().collect::<Vec<_>>(), [("default", CHATML)]);

        // Where the template writes `eos_token` itself, another one would change what it writes.
        let mixed = format!("{CHATML}{{{{ eos_token }}}}");
        let mut base = tokenizer(None);
        base.set_chat_templates(ChatTemplates::new(mixed)).unwrap();
        assert_eq!(base.eos(), [2, 4]);
        assert_eq!(saved(&base).1["eos_token"], json!({"content": "<eos>"}));
    }

    #[test]
    fn an_end_that_is_the_end_of_a_text_or_plain_text_changes_nothing_else() {
        for source in [
            "{% for m in messages %}{{ m.role }}: {{ m.content }} {{ eos_token }}{% endfor %}",
            "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
            "{{ raise_exception('never') }}",
        ] {
            let mut base = tokenizer(Some("{{ messages[0].content }}"));
            base.set_chat_templates(ChatTemplates::new(source)).unwrap();
            assert_eq!((base.eos(), base.chat_template_source()), (&[2][..], Some(source)));
            assert_eq!(saved(&base).1["eos_token"], json!({"content": "<eos>"}));
        }
    }

    #[test]
    fn what_is_no_template_is_refused() {
        let mut base = tokenizer(Some("{{ messages[0].content }}"));
        let error = base.set_chat_templates(ChatTemplates::new("{% for %}")).unwrap_err();
        assert!(matches!(error, Error::TemplateSyntax { line: 1, .. }), "{error}");
        let error = base.set_chat_templates(ChatTemplates::default()).unwrap_err();
        assert!(matches!(error, Error::NoChatTemplate { .. }), "{error}");
        assert_eq!(base.chat_template_source(), Some("{{ messages[0].content }}"));
        assert_eq!(ChatTemplates::from_directory("nowhere").unwrap(), None);
    }

    #[test]
    fn gguf_metadata_has_the_template_and_both_ends() {
        let mut base = tokenizer(None);
        base.set_chat_templates(ChatTemplates::new(CHATML)).unwrap();
        let metadata = base.chat_gguf_metadata();
        assert_eq!(metadata.string("tokenizer.chat_template").unwrap(), CHATML);
        assert_eq!(metadata.u32("tokenizer.ggml.eos_token_id").unwrap(), 2);
        assert_eq!(metadata.u32("tokenizer.ggml.eot_token_id").unwrap(), 4);
    }
}
