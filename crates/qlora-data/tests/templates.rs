//! Every golden template and every named one on random conversations: the tokens give back the text, and the trained
//! ones are exactly what the assistant says and the end of its turn.

use proptest::prelude::*;
use qlora_data::{Encoded, Encoder, Row, Sample, TrainOn, pieces};
use qlora_text::{ChatTemplate, Message, NAMED_TEMPLATES, RenderInput, Tokenizer};
use serde_json::{Map, Value, json};
use std::sync::{Arc, LazyLock};

/// The control tokens of all the templates.
const SPECIAL: [&str; 16] = [
    "<s>",
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_sep|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|python_tag|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
];

/// The character that stands for a byte in a byte-level vocabulary (GPT-2's rule): itself where it can be printed,
/// else one from U+0100 on.
fn byte_character(byte: u8) -> char {
    let printed = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printed(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&b| !printed(b)).count() as u32;
    char::from_u32(0x100 + before).unwrap()
}

/// A byte-level tokenizer that merges without regard to words: line ends with line ends, colons with spaces, ends of
/// headers with what follows, so that tokens would straddle every boundary that there is.
static TOKENIZER: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| tokenizer(&Value::Null));

fn tokenizer(normalizer: &Value) -> Arc<Tokenizer> {
    let mut vocab = Map::new();
    for byte in 0..=255_u8 {
        vocab.insert(byte_character(byte).to_string(), json!(byte));
    }
    let merges = ["Ċ Ċ", "ĊĊ Ċ", "Ġ t", "h e", "Ġt he", ": Ġ", "Ċ Ġ", "] Ġ", "t Ċ", "> Ċ", "Ġ Ġ"];
    for merge in merges {
        let id = vocab.len();
        vocab.insert(merge.replace(' ', ""), json!(id));
    }
    let added = |(i, token): (usize, &&str)| {
        json!({"id": vocab.len() + i, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let added: Vec<Value> = SPECIAL.iter().enumerate().map(added).collect();
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let definition = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": normalizer, "post_processor": null,
        "added_tokens": added, "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocab, "merges": merges},
    });
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), definition.to_string()).unwrap();
    let config = json!({"bos_token": "<s>", "eos_token": "<|endoftext|>"});
    std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    Arc::new(Tokenizer::from_directory(folder.path()).unwrap())
}

/// What a template makes of an assistant's turn.
struct Format {
    name: &'static str,
    /// Before the text, within what is trained.
    before: &'static str,
    /// What becomes of the text.
    content: fn(&str) -> &str,
    after: &'static str,
    after_last: &'static str,
    train_on: TrainOn,
}

fn whole(text: &str) -> &str {
    text
}

fn without_line_ends(text: &str) -> &str {
    text.trim_start_matches('\n')
}

const fn format(
    name: &'static str,
    before: &'static str,
    content: fn(&str) -> &str,
    after: &'static str,
    after_last: &'static str,
) -> Format {
    Format { name, before, content, after, after_last, train_on: TrainOn::Assistant }
}

const THOUGHT: &str = "<think>\n\n</think>\n\n";

const GOLDEN: [Format; 12] = [
    format("gemma3", "", str::trim, "<end_of_turn>", "<end_of_turn>"),
    format("gemma3_training", "", str::trim, "<end_of_turn>\n", "<end_of_turn>\n"),
    format("llama3", "", str::trim, "<|eot_id|>", "<|eot_id|>"),
    format("llama3_training", "", str::trim, "<|eot_id|>", "<|eot_id|>"),
    format("llama3_1", "", str::trim, "<|eot_id|>", "<|eot_id|>"),
    format("llama3_2", "", str::trim, "<|eot_id|>", "<|eot_id|>"),
    format("phi3", "", whole, "<|end|>", "<|end|>\n<|endoftext|>"),
    format("phi3_training", "", whole, "<|end|>\n", "<|end|>\n<|endoftext|>"),
    format("qwen2_5", "", whole, "<|im_end|>", "<|im_end|>"),
    format("qwen2_5_training", "\n", whole, "<|im_end|>\n", "<|im_end|>\n"),
    // Rewrites the turns before the last, so that only the last can be trained.
    Format {
        train_on: TrainOn::Last,
        ..format("qwen3", THOUGHT, without_line_ends, "<|im_end|>", "<|im_end|>")
    },
    format("qwen3_training", THOUGHT, without_line_ends, "<|im_end|>\n", "<|im_end|>\n"),
];

const NAMED: [Format; 10] = [
    format("alpaca", "", whole, "<|endoftext|>", "<|endoftext|>"),
    format("chatml", "", whole, "<|im_end|>", "<|im_end|>"),
    format("gemma", "", whole, "<end_of_turn>", "<end_of_turn>"),
    format("llama-2", " ", whole, " <|endoftext|>", " <|endoftext|>"),
    format("llama-3", "", whole, "<|eot_id|>", "<|eot_id|>"),
    format("mistral", " ", whole, "<|endoftext|>", "<|endoftext|>"),
    format("phi-3", "", whole, "<|end|>", "<|end|>"),
    format("phi-4", "", whole, "<|im_end|>", "<|im_end|>"),
    format("vicuna", " ", whole, "<|endoftext|>", "<|endoftext|>"),
    format("zephyr", "", whole, "<|endoftext|>", "<|endoftext|>"),
];

static GOLDEN_TEMPLATES: LazyLock<Vec<ChatTemplate>> = LazyLock::new(|| {
    let template = |format: &Format| {
        let path = qlora_testing::chat_templates().join(format!("{}.json", format.name));
        let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        TOKENIZER.chat_template_from(golden["template"].as_str().unwrap(), None).unwrap()
    };
    GOLDEN.iter().map(template).collect()
});

/// Text with what goes wrong elsewhere: spaces and line ends at the edges, joined emoji, combining marks, template
/// syntax, pieces of control tokens, and nothing at all.
fn content() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "[ -~]{0,12}",
        "\\PC{0,6}",
        prop::sample::select(vec![
            " ",
            "\n",
            "\n\n",
            "  ",
            "\t",
            "\r\n",
            ": the",
            "你好",
            "👩‍👩‍👧",
            "e\u{301}",
            "{{ x }}",
            "{% raw %}",
            "{% generation %}",
            "{#",
            "<|im_",
            "im_end|>",
            "12345",
            "\u{fffd}",
            "\u{feff}",
            "\u{a0}",
            "assistant\n",
            "user",
            "[/INST] ",
            "### Response:\n",
        ])
        .prop_map(str::to_owned),
    ];
    prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

/// A conversation that ends with the assistant.
fn conversation() -> impl Strategy<Value = Vec<Message>> {
    let pairs = prop::collection::vec((content(), content()), 1..4);
    (prop::option::of(content()), pairs).prop_map(|(system, pairs)| {
        let pairs = pairs.into_iter().flat_map(|(q, a)| [Message::user(q), Message::assistant(a)]);
        system.map(Message::system).into_iter().chain(pairs).collect()
    })
}

/// The trained parts, each decoded on its own.
fn trained(sample: &Sample) -> Vec<String> {
    let positions: Vec<usize> = (0..sample.len()).filter(|&i| sample.weights[i] != 0.0).collect();
    positions
        .chunk_by(|a, b| a + 1 == *b)
        .map(|run| {
            let ids: Vec<u32> = run.iter().map(|&i| sample.ids[i]).collect();
            TOKENIZER.decode(&ids, false).unwrap()
        })
        .collect()
}

fn check(format: &Format, template: &ChatTemplate, messages: &[Message]) -> Result<(), TestCaseError> {
    let variables = json!({"date_string": "26 Jul 2024"}).as_object().cloned();
    let input = RenderInput { messages, variables: variables.as_ref(), ..RenderInput::default() };
    let text = template.render(&input).unwrap().text;
    let encoder =
        Encoder::new(TOKENIZER.clone()).with_template(template.clone()).with_train_on(format.train_on);
    let row = Row::Conversation { messages: messages.to_vec(), trained_from: 0, tools: None, variables };
    let Encoded { sample, remarks } = encoder
        .encode(&row, 1)
        .map_err(|problem| TestCaseError::fail(format!("{}: {problem}", format.name)))?;
    prop_assert_eq!(&TOKENIZER.decode(&sample.ids, false).unwrap(), &text, "{}", format.name);

    let answers: Vec<&str> =
        messages.iter().filter(|m| m.role() == "assistant").map(|m| m.text().unwrap()).collect();
    let mut expected: Vec<String> = answers
        .iter()
        .enumerate()
        .map(|(i, text)| {
            let after = if i + 1 == answers.len() { format.after_last } else { format.after };
            format!("{}{}{after}", format.before, (format.content)(text))
        })
        .collect();
    if format.train_on == TrainOn::Last {
        expected.drain(..expected.len() - 1);
    }
    prop_assert_eq!(trained(&sample), expected, "{}", format.name);
    prop_assert_eq!(remarks.unended_responses, 0, "{}", format.name);

    // What `data show` prints is the same text.
    let shown = pieces(&sample, Some(&TOKENIZER)).unwrap();
    prop_assert_eq!(shown.iter().map(|piece| piece.text.as_str()).collect::<String>(), text);
    let ids: Vec<u32> = shown.iter().flat_map(|piece| piece.ids.clone()).collect();
    prop_assert_eq!(ids, sample.ids);
    Ok(())
}

#[test]
fn the_named_templates_are_all_here_and_write_tokens_of_the_vocabulary() {
    assert_eq!(NAMED.map(|format| format.name), NAMED_TEMPLATES.map(|template| template.name));
    for format in &NAMED {
        assert_eq!(TOKENIZER.choose_template(format.name).unwrap().warning(), None, "{}", format.name);
    }
    let error = TOKENIZER.choose_template("chat-ml").unwrap_err().to_string();
    assert!(error.contains("no chat template \"chat-ml\"") && error.contains("chatml, gemma"), "{error}");
    let error = TOKENIZER.choose_template("no/such.jinja").unwrap_err().to_string();
    assert!(error.starts_with("cannot read no/such.jinja"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("own.jinja");
    std::fs::write(&path, "{{ '<|im_start|><|turn|>' }}").unwrap();
    let chosen = TOKENIZER.choose_template(path.to_str().unwrap()).unwrap();
    assert_eq!(chosen.missing_tokens, ["<|turn|>"]);
    assert!(chosen.warning().unwrap().contains("writes <|turn|> which the vocabulary does not have"));
}

#[test]
fn a_tokenizer_without_a_template_says_so() {
    let messages = vec![Message::user("a"), Message::assistant("b")];
    let row = Row::Conversation { messages, trained_from: 0, tools: None, variables: None };
    let problem = Encoder::new(TOKENIZER.clone()).encode(&row, 1).unwrap_err().to_string();
    assert!(problem.contains("chat template"), "{problem}");
}

/// A tokenizer that changes a text by what stands before it: what is trained would not be what was written.
#[test]
fn trained_tokens_that_are_another_text_are_refused() {
    let normalizer = json!({"type": "Replace", "pattern": {"Regex": "(?<=:)[A-Z]"}, "content": "_"});
    let encoder = Encoder::new(tokenizer(&normalizer));
    let row = |prompt: &str| Row::Text { prompt: prompt.into(), completion: "Yes".into() };
    assert!(encoder.encode(&row("Answer "), 1).is_ok());
    let problem = encoder.encode(&row("Answer:"), 1).unwrap_err().to_string();
    assert!(
        problem.contains("the tokens to train on decode to \"_es\", not to \"Yes\"")
            && problem.contains("tokenize the data yourself"),
        "{problem}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn golden_templates(messages in conversation()) {
        for (format, template) in GOLDEN.iter().zip(&*GOLDEN_TEMPLATES) {
            check(format, template, &messages)?;
        }
    }

    #[test]
    fn named_templates(messages in conversation()) {
        for format in &NAMED {
            check(format, &TOKENIZER.choose_template(format.name).unwrap().template, &messages)?;
        }
    }
}
