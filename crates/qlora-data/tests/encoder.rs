//! What is trained, with the real SmolLM2 tokenizer and with the templates of other models.

use proptest::prelude::*;
use qlora_data::{Encoded, Encoder, Row, RowProblem, Sample, TrainOn};
use qlora_gguf::Gguf;
use qlora_text::{ChatTemplate, Message, RenderInput, Tokenizer};
use serde_json::{Value, json};
use std::sync::{Arc, LazyLock};

static SMOLLM2: LazyLock<Option<Arc<Tokenizer>>> = LazyLock::new(|| {
    let gguf = Gguf::open(qlora_testing::model()?).unwrap();
    Some(Arc::new(Tokenizer::from_gguf(gguf.metadata()).unwrap()))
});

fn conversation(messages: Vec<Message>) -> Row {
    Row::Conversation { messages, trained_from: 0, tools: None, variables: None }
}

fn turns(texts: &[&str]) -> Vec<Message> {
    let roles = ["user", "assistant"].into_iter().cycle();
    texts.iter().zip(roles).map(|(text, role)| Message::new(role, *text)).collect()
}

/// The trained parts, each decoded on its own.
fn trained(tokenizer: &Tokenizer, sample: &Sample) -> Vec<String> {
    let mut parts: Vec<Vec<u32>> = Vec::new();
    let mut before = 0.0;
    for (&id, &weight) in sample.ids.iter().zip(&sample.weights) {
        if weight != 0.0 {
            if before == 0.0 {
                parts.push(Vec::new());
            }
            parts.last_mut().unwrap().push(id);
        }
        before = weight;
    }
    parts.iter().map(|ids| tokenizer.decode(ids, false).unwrap()).collect()
}

fn encode(encoder: &Encoder, row: &Row) -> Encoded {
    encoder.encode(row, 7).unwrap_or_else(|problem| panic!("{problem}"))
}

#[test]
fn responses_are_trained_with_their_end_and_without_the_line_end() {
    let Some(tokenizer) = &*SMOLLM2 else { return };
    let row = conversation(turns(&["2+2?", "4", "3+3?", " 6\n"]));
    let encoder = Encoder::new(tokenizer.clone());
    let Encoded { sample, remarks } = encode(&encoder, &row);
    assert_eq!(trained(tokenizer, &sample), ["4<|im_end|>", " 6\n<|im_end|>"]);
    // The line end of the header and the space of " 6" are one token of the vocabulary: cut.
    assert_eq!((sample.line, remarks.unended_responses, remarks.split_boundaries), (7, 0, 1));
    // The template's default system prompt is part of the text.
    assert!(tokenizer.decode(&sample.ids, true).unwrap().starts_with("system\nYou are a helpful AI"));

    let last = encode(&encoder.clone().with_train_on(TrainOn::Last), &row).sample;
    assert_eq!(last.ids, sample.ids);
    assert_eq!(trained(tokenizer, &last), [" 6\n<|im_end|>"]);
    let all = encode(&encoder.with_train_on(TrainOn::All), &row).sample;
    assert_eq!(all.trained_tokens(), all.len() - 1);
}

#[test]
fn the_prompt_of_a_response_is_the_prompt_of_generation() {
    let Some(tokenizer) = &*SMOLLM2 else { return };
    // "\n" + "\n" is one token of the vocabulary: it would straddle the boundary.
    let messages = turns(&["go", "\n\nwell"]);
    let template = tokenizer.chat_template().unwrap();
    let input =
        RenderInput { messages: &messages[..1], add_generation_prompt: true, ..RenderInput::default() };
    let prompt = tokenizer.encode(&template.render(&input).unwrap().text).unwrap();
    let Encoded { sample, remarks } = encode(&Encoder::new(tokenizer.clone()), &conversation(messages));
    assert_eq!(sample.ids[..prompt.len()], prompt);
    assert!(sample.weights[..prompt.len()].iter().all(|&weight| weight == 0.0));
    assert_eq!(trained(tokenizer, &sample), ["\n\nwell<|im_end|>"]);
    assert_eq!(remarks.split_boundaries, 1);
}

#[test]
fn prompt_and_completion_meet_at_a_token_boundary() {
    let Some(tokenizer) = &*SMOLLM2 else { return };
    let encoder = Encoder::new(tokenizer.clone());
    let text = |prompt: &str, completion: &str| {
        let row = Row::Text { prompt: prompt.to_owned(), completion: completion.to_owned() };
        let Encoded { sample, remarks } = encode(&encoder, &row);
        assert_eq!(tokenizer.decode(&sample.ids, true).unwrap(), format!("{prompt}{completion}"));
        (trained(tokenizer, &sample), remarks)
    };
    assert_eq!(text("Hello", " world").0, [" world<|im_end|>"]);
    // "Hello" is one token: cut.
    let (parts, remarks) = text("Hel", "lo");
    assert_eq!((parts, remarks.split_boundaries), (vec!["lo<|im_end|>".to_owned()], 1));
    // An end token that is there is not doubled; a special token in the text is counted.
    let row = Row::Text { prompt: "a".into(), completion: " b<|im_end|>".into() };
    let Encoded { sample, remarks } = encode(&encoder, &row);
    assert_eq!(trained(tokenizer, &sample), [" b<|im_end|>"]);
    assert_eq!(remarks.special_in_content, 1);
}

#[test]
fn completions_of_messages_train_only_what_is_completed() {
    let Some(tokenizer) = &*SMOLLM2 else { return };
    let row = Row::Conversation {
        messages: turns(&["a", "context", "b", "answer"]),
        trained_from: 3,
        tools: None,
        variables: None,
    };
    let sample = encode(&Encoder::new(tokenizer.clone()), &row).sample;
    assert_eq!(trained(tokenizer, &sample), ["answer<|im_end|>"]);
}

fn with_weight(role: &str, content: &str, weight: Value) -> Message {
    Message::from_json(0, json!({"role": role, "content": content, "weight": weight})).unwrap()
}

#[test]
fn a_message_may_weigh_less_or_nothing() {
    let Some(tokenizer) = &*SMOLLM2 else { return };
    let messages = vec![
        Message::user("a"),
        with_weight("assistant", "context", json!(0)),
        Message::user("b"),
        with_weight("assistant", "half", json!(0.5)),
        with_weight("user", "c", json!(null)),
        Message::assistant("whole"),
    ];
    // By prefixes, and by blocks.
    let blocks = ChatTemplate::new(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}\
         {{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\\n' }}{% endfor %}\
         {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    )
    .unwrap();
    let encoder = Encoder::new(tokenizer.clone());
    for encoder in [encoder.clone(), encoder.with_template(blocks)] {
        let sample = encode(&encoder, &conversation(messages.clone())).sample;
        assert_eq!(trained(tokenizer, &sample), ["half<|im_end|>", "whole<|im_end|>"]);
        let halves = sample.weights.iter().filter(|&&weight| weight == 0.5).count();
        assert_eq!(halves, tokenizer.encode("half<|im_end|>").unwrap().len());
        // Beside everything else the weights still hold.
        let encoder = encoder.with_train_on(TrainOn::All);
        let all = encode(&encoder, &conversation(messages.clone())).sample;
        assert_eq!(all.ids, sample.ids);
        let parts = trained(tokenizer, &all);
        assert_eq!(parts.len(), 2, "{parts:?}");
        assert!(parts[0].ends_with("a<|im_end|>\n<|im_start|>assistant\n"), "{parts:?}");
        assert!(parts[1].starts_with("\n<|im_start|>user\nb<|im_end|>"), "{parts:?}");
        assert_eq!(all.weights.iter().filter(|&&weight| weight == 0.5).count(), halves);
    }
    let encoder = Encoder::new(tokenizer.clone());
    for (message, words) in [
        (
            with_weight("assistant", "x", json!(-1)),
            "message 1: `weight` is -1, expected a number of at least 0",
        ),
        (with_weight("assistant", "x", json!("1")), "`weight` is \"1\""),
        (with_weight("system", "x", json!(1)), "on messages of the assistant only"),
        (with_weight("assistant", "x", json!(0)), "has `weight` 0"),
    ] {
        let problem = encoder.encode(&conversation(vec![Message::user("a"), message]), 1).unwrap_err();
        assert!(problem.to_string().contains(words), "{problem}");
    }
}

#[test]
fn completions_train_all_that_follows_the_prompt() {
    let Some(tokenizer) = &*SMOLLM2 else { return };
    let encoder = Encoder::new(tokenizer.clone()).with_train_on(TrainOn::Completions);
    let row = |trained_from| Row::Conversation {
        messages: turns(&["a", "b", "c", "d"]),
        trained_from,
        tools: None,
        variables: None,
    };
    let sample = encode(&encoder, &row(1)).sample;
    assert_eq!(
        trained(tokenizer, &sample),
        ["b<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\nd<|im_end|>"]
    );
    let sample = encode(&encoder, &row(2)).sample;
    assert_eq!(
        trained(tokenizer, &sample),
        ["<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\nd<|im_end|>"]
    );
    let problem = encoder.encode(&row(0), 1).unwrap_err().to_string();
    assert!(problem.contains("train_on = \"completions\" needs a prompt and a completion"), "{problem}");
    let text = Row::Text { prompt: "Hello".into(), completion: " world".into() };
    assert_eq!(trained(tokenizer, &encode(&encoder, &text).sample), [" world<|im_end|>"]);
}

/// A template of the goldens, and SmolLM2's vocabulary: the special tokens of the other model are then plain
/// text, except those that both have.
fn golden_encoder(tokenizer: &Arc<Tokenizer>, name: &str) -> Encoder {
    let path = qlora_testing::chat_templates().join(format!("{name}.json"));
    let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let template = ChatTemplate::new(golden["template"].as_str().unwrap()).unwrap();
    let template = template.with_variable("bos_token", "").with_variable("eos_token", "<|endoftext|>");
    Encoder::new(tokenizer.clone()).with_template(template)
}

#[test]
fn templates_of_other_models() {
    let Some(tokenizer) = &*SMOLLM2 else { return };
    let row = conversation(turns(&["Hi", "Hello", "1+1?", "2"]));
    let parts = |name: &str, train_on: TrainOn| -> Result<Vec<String>, RowProblem> {
        let encoded = golden_encoder(tokenizer, name).with_train_on(train_on).encode(&row, 1)?;
        Ok(trained(tokenizer, &encoded.sample))
    };
    let responses =
        |name: &str| parts(name, TrainOn::Assistant).unwrap_or_else(|problem| panic!("{name}: {problem}"));
    assert_eq!(responses("qwen2_5"), ["Hello<|im_end|>", "2<|im_end|>"]);
    // Blocks decide to the byte, the line ends of the template included.
    assert_eq!(responses("qwen2_5_training"), ["\nHello<|im_end|>\n", "\n2<|im_end|>\n"]);
    assert_eq!(
        responses("qwen3_training"),
        ["<think>\n\n</think>\n\nHello<|im_end|>\n", "<think>\n\n</think>\n\n2<|im_end|>\n"]
    );
    assert_eq!(parts("qwen3_training", TrainOn::Last).unwrap().len(), 1);
    // No special token ends these turns in this vocabulary: all the turn is trained.
    assert_eq!(responses("llama3"), ["Hello<|eot_id|>", "2<|eot_id|>"]);
    assert_eq!(responses("gemma3"), ["Hello<end_of_turn>\n", "2<end_of_turn>\n"]);

    // Qwen3 takes the thoughts out of all turns but the last.
    let problem = parts("qwen3", TrainOn::Assistant).unwrap_err();
    assert!(matches!(problem, RowProblem::HistoryRewritten { turn: 1 }), "{problem}");
    assert!(problem.to_string().contains("train on the last turn only"));
    assert_eq!(parts("qwen3", TrainOn::Last).unwrap(), ["<think>\n\n</think>\n\n2<|im_end|>"]);
}

/// Phi-3 writes an end of text after the last turn only, and its turns end with a special token.
#[test]
fn an_end_of_text_after_the_last_turn_is_no_rewriting() {
    let Some(tokenizer) = &*SMOLLM2 else { return };
    let template = ChatTemplate::new(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
         {% if add_generation_prompt %}<|im_start|>assistant\n{% else %}<|endoftext|>{% endif %}",
    )
    .unwrap();
    let encoder = Encoder::new(tokenizer.clone()).with_template(template);
    let sample = encode(&encoder, &conversation(turns(&["a", "b", "c", "d"]))).sample;
    assert_eq!(trained(tokenizer, &sample), ["b<|im_end|>", "d<|im_end|>\n<|endoftext|>"]);
}

#[test]
fn unended_responses_are_counted() {
    let Some(tokenizer) = &*SMOLLM2 else { return };
    let template = ChatTemplate::new(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
         {% if add_generation_prompt %}assistant:{% endif %}",
    )
    .unwrap();
    let encoder = Encoder::new(tokenizer.clone()).with_template(template);
    let Encoded { sample, remarks } = encode(&encoder, &conversation(turns(&["a", "b", "c", "d"])));
    assert_eq!(trained(tokenizer, &sample), [" b\n", " d\n"]);
    assert_eq!(remarks.unended_responses, 2);
}

#[test]
fn unusable_rows_say_what_to_do() {
    let Some(tokenizer) = &*SMOLLM2 else { return };
    let encoder = Encoder::new(tokenizer.clone());
    let refused = |encoder: &Encoder, row: &Row, words: &str| {
        let problem = encoder.encode(row, 1).unwrap_err().to_string();
        assert!(problem.contains(words), "{problem}");
    };
    refused(&encoder, &conversation(turns(&["only a question"])), "no message of the role `assistant`");
    refused(
        &encoder,
        &conversation(vec![Message::assistant("first")]),
        "begin the conversation with a user's",
    );
    refused(
        &encoder,
        &Row::Text { prompt: "a".into(), completion: String::new() },
        "the completion is empty",
    );
    refused(&encoder, &Row::Tokens { ids: vec![1, 2], weights: vec![1.0, 0.0] }, "every label is -100");
    refused(
        &encoder,
        &Row::Tokens { ids: vec![1, 49152], weights: vec![1.0, 1.0] },
        "position 1 holds 49152, and the vocabulary has 49152",
    );
    refused(
        &encoder.clone().with_vocab_size(2),
        &Row::Tokens { ids: vec![1, 2], weights: vec![1.0; 2] },
        "2 tokens",
    );
    let raising = ChatTemplate::new("{{ raise_exception('roles must alternate') }}").unwrap();
    let row = conversation(turns(&["a", "b"]));
    refused(&encoder.clone().with_template(raising), &row, "refuses this conversation: roles must alternate");
    let doubled = ChatTemplate::new(
        "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}\
         {% if add_generation_prompt %}<|im_start|>{% endif %}",
    )
    .unwrap()
    .with_variable("bos_token", "<|im_start|>");
    refused(&encoder.with_template(doubled), &row, "begins with the token \"<|im_start|>\" twice");
    let ids_only = Encoder::token_ids_only();
    refused(&ids_only, &row, "there is no tokenizer");
    refused(&ids_only, &Row::Text { prompt: "a".into(), completion: "b".into() }, "without a tokenizer");
    assert!(ids_only.encode(&Row::Tokens { ids: vec![1, 2], weights: vec![1.0; 2] }, 1).is_ok());
}

/// Text with what goes wrong elsewhere: spaces and line ends at the edges, joined emoji, combining marks, digits,
/// template syntax, and text that looks like special tokens but is none.
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
            "你好",
            "👩‍👩‍👧",
            "e\u{301}",
            "{{ x }}",
            "{% raw %}",
            "{#",
            "<|im_",
            "im_end|>",
            "<think>",
            "12345",
            "\u{fffd}",
            "\u{feff}",
            "\u{a0}",
            "assistant\n",
            "user",
        ])
        .prop_map(str::to_owned),
    ];
    prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(160))]

    #[test]
    fn trained_tokens_are_the_assistants_text(texts in prop::collection::vec(content(), 2..7), system in prop::option::of(content())) {
        let Some(tokenizer) = &*SMOLLM2 else { return Ok(()) };
        let mut messages: Vec<Message> = system.map(Message::system).into_iter().collect();
        messages.extend(turns(&texts.iter().map(String::as_str).collect::<Vec<_>>()));
        let text = tokenizer.chat_template().unwrap()
            .render(&RenderInput { messages: &messages, ..RenderInput::default() }).unwrap().text;
        let expected: Vec<String> = messages.iter().filter(|message| message.role() == "assistant")
            .map(|message| format!("{}<|im_end|>", message.text().unwrap())).collect();
        // A special token put together by chance would be another test.
        prop_assume!(!texts.iter().any(|text| text.contains("<|im_end|>")));
        let Encoded { sample, remarks } = Encoder::new(tokenizer.clone()).encode(&conversation(messages), 1).unwrap();
        prop_assert_eq!(trained(tokenizer, &sample), expected);
        prop_assert_eq!(tokenizer.decode(&sample.ids, false).unwrap(), text);
        prop_assert_eq!(remarks.unended_responses, 0);
    }

    #[test]
    fn trained_tokens_are_the_completion(prompt in content(), completion in content()) {
        let Some(tokenizer) = &*SMOLLM2 else { return Ok(()) };
        prop_assume!(!completion.is_empty());
        let row = Row::Text { prompt: prompt.clone(), completion: completion.clone() };
        let Encoded { sample, .. } = Encoder::new(tokenizer.clone()).encode(&row, 1).unwrap();
        // With an empty prompt the first token is not trained: nothing precedes it.
        if !prompt.is_empty() {
            prop_assert_eq!(trained(tokenizer, &sample), [format!("{completion}<|im_end|>")]);
        }
        prop_assert_eq!(tokenizer.decode(&sample.ids, false).unwrap(), format!("{prompt}{completion}<|im_end|>"));
    }
}
