//! Prompts from files and tasks: what stands before a text, what is too long, which order.

use std::path::Path;

use qlora_rl::Task;
use qlora_text::Tokenizer;
use qlora_train::grpo::{PromptError, PromptOptions, PromptSet, TaskPrompts};
use serde_json::{Map, Value, json};

/// Single characters, a token that begins a text, and a template that writes it.
fn tokenizer() -> Tokenizer {
    let characters = (32..127_u8).map(|byte| char::from(byte).to_string());
    let mut vocabulary: Map<String, Value> =
        characters.enumerate().map(|(id, text)| (text, id.into())).collect();
    vocabulary.insert("<s>".into(), 95.into());
    let special = json!({"id": 95, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                         "normalized": false, "special": true});
    let split = json!({"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": false});
    let definition = json!({
        "version": "1.0",
        "added_tokens": [special],
        "pre_tokenizer": split,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": " "}
    });
    let template = "<s>{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}a:";
    let config = json!({"bos_token": "<s>", "add_bos_token": true, "chat_template": template});
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), definition.to_string()).unwrap();
    std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    Tokenizer::from_directory(folder.path()).unwrap()
}

const BOS: u32 = 95;

fn options(max_tokens: usize) -> PromptOptions {
    PromptOptions { max_tokens, skip_bad_rows: false, skip_long_rows: false }
}

fn read(rows: &str, options: PromptOptions) -> Result<PromptSet, PromptError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prompts.jsonl");
    std::fs::write(&path, rows).unwrap();
    PromptSet::from_jsonl(Path::new(&path), &tokenizer(), None, options)
}

#[test]
fn a_plain_text_stands_behind_the_token_that_begins_one() {
    let rows = r#"{"prompt": "2+3=", "prefill": " "}
{"prompt": "<s>2+3="}
{"prompt": [{"role": "user", "content": "2+3"}], "prefill": "5"}"#;
    let set = read(rows, options(100)).unwrap();
    let [plain, marked, chat] = set.prompts() else { panic!("three rows") };
    assert_eq!((&*plain.text, plain.ids.len(), plain.ids[0]), ("2+3= ", 6, BOS));
    assert_ne!(plain.ids[1], BOS);
    assert_eq!(marked.ids, plain.ids[..5]);
    assert_eq!(&*chat.text, "<s>u:2+3;a:5");
    assert_eq!(chat.ids.iter().filter(|id| **id == BOS).count(), 1);
    assert!(read("{\"prompt\": \"\"}", options(9)).unwrap_err().to_string().contains("it is empty"));
}

#[test]
fn long_and_bad_rows_are_errors_or_left_out_each_for_itself() {
    let rows = "{\"prompt\": \"short\"}\n\n{\"prompt\": \"a longer prompt\"}\n{}\n";
    let error = read(rows, options(8)).unwrap_err().to_string();
    assert!(error.contains("prompts.jsonl, line 3: the prompt has 16 tokens, and at most 8"), "{error}");
    assert!(error.contains("data.on_long = \"skip\""), "{error}");
    let skip_bad = PromptOptions { skip_bad_rows: true, ..options(8) };
    assert!(read(rows, skip_bad).unwrap_err().to_string().contains("line 3"));
    let skip_long = PromptOptions { skip_long_rows: true, ..options(8) };
    assert!(read(rows, skip_long).unwrap_err().to_string().contains("line 4: expected `prompt`"));
    let set = read(rows, PromptOptions { skip_bad_rows: true, ..skip_long }).unwrap();
    assert_eq!(set.prompts().len(), 1);
    assert_eq!(set.skipped().iter().map(|(line, _)| *line).collect::<Vec<_>>(), [3, 4]);
    let none = read(rows, PromptOptions { max_tokens: 2, skip_bad_rows: true, skip_long_rows: true });
    assert!(none.unwrap_err().to_string().contains("number 1: the prompt has 6 tokens"));
}

#[test]
fn a_task_has_a_system_message_and_a_beginning_of_answers() {
    let wanted = TaskPrompts {
        task: Task::Arithmetic,
        count: 3,
        seed: 7,
        system: Some("Be brief.".into()),
        prefill: Some("It is".into()),
    };
    let set = PromptSet::from_task(&wanted, &tokenizer(), None, options(100)).unwrap();
    for (prompt, problem) in set.prompts().iter().zip(Task::Arithmetic.problems(3, 7)) {
        assert_eq!(*prompt.text, format!("<s>s:Be brief.;u:{};a:It is", problem.question));
        assert_eq!(*prompt.columns, problem.columns);
        assert_eq!(prompt.ids[..2].iter().filter(|id| **id == BOS).count(), 1);
    }
    let error = PromptSet::from_task(&wanted, &tokenizer(), None, options(20)).unwrap_err().to_string();
    assert!(error.contains("problem 1 of task arithmetic: the prompt has"), "{error}");
}
