//! Chat templates of real models against `transformers`' own rendering, and the rules that Jinja2 and
//! Python have and minijinja has not.

use proptest::prelude::*;
use qlora_text::{ChatTemplate, Error, Message, RenderInput, Rendered};
use serde_json::{Map, Value, json};
use std::path::Path;

fn char_spans(rendered: &Rendered) -> Vec<[usize; 2]> {
    let chars = |byte: usize| rendered.text[..byte].chars().count();
    rendered.generation_spans.iter().map(|span| [chars(span.start), chars(span.end)]).collect()
}

/// Twelve templates, sixteen conversations each; the expected texts come from transformers 5.23.
#[test]
fn renders_real_templates_as_transformers_does() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/chat_templates");
    let mut rows = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let golden: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let template = ChatTemplate::new(golden["template"].as_str().unwrap()).unwrap();
        for row in golden["rows"].as_array().unwrap() {
            let place = format!("{}: {} {}", path.display(), row["case"], row["add_generation_prompt"]);
            let messages = Message::list_from_json(row["messages"].as_array().unwrap().clone()).unwrap();
            let rendered = template.render(&RenderInput {
                messages: &messages,
                tools: row["tools"].as_array().map(Vec::as_slice),
                add_generation_prompt: row["add_generation_prompt"].as_bool().unwrap(),
                variables: golden["variables"].as_object(),
                ..RenderInput::default()
            });
            if let Some(expected) = row["error"].as_str() {
                let message = expected.strip_prefix("TemplateError: ").unwrap();
                assert!(
                    matches!(&rendered, Err(Error::Raised { message: found }) if found == message),
                    "{place}: {rendered:?}"
                );
            } else {
                let rendered = rendered.unwrap_or_else(|error| panic!("{place}: {error}"));
                assert_eq!(rendered.text, row["ok"].as_str().unwrap(), "{place}");
                if let Some(spans) = row["assistant_char_spans"].as_array() {
                    let spans: Vec<[usize; 2]> =
                        spans.iter().map(|span| serde_json::from_value(span.clone()).unwrap()).collect();
                    assert_eq!(char_spans(&rendered), spans, "{place}");
                }
            }
            rows += 1;
        }
    }
    assert_eq!(rows, 12 * 16);
}

fn render(source: &str, variables: Value) -> Result<Rendered, Error> {
    let messages = [Message::user("Hi")];
    let variables = variables.as_object().cloned().unwrap_or_default();
    ChatTemplate::new(source)?.render(&RenderInput {
        messages: &messages,
        variables: Some(&variables),
        ..RenderInput::default()
    })
}

fn text(source: &str, variables: Value) -> String {
    render(source, variables).unwrap_or_else(|error| panic!("{source}: {error}")).text
}

/// Each expected text was printed by Jinja2 3.1 with the settings of transformers.
#[test]
fn prints_values_as_python_does() {
    let values = json!({"x": [1, 2.0, null, true, "it's"], "m": {"a": 1e-7}, "s": " a b ", "n": null});
    for (source, expected) in [
        (
            "{{ n }}|{{ true }}|{{ 1.0 }}|{{ absent }}|{{ x }}|{{ m }}",
            "None|True|1.0||[1, 2.0, None, True, \"it's\"]|{'a': 1e-07}",
        ),
        ("{{ x | join('-') }}", "1-2.0-None-True-it's"),
        ("{{ n | string + '!' }}", "None!"),
        (
            "{{ m | tojson }}{{ x | tojson(indent=1) }}",
            "{\"a\": 1e-07}[\n 1,\n 2.0,\n null,\n true,\n \"it's\"\n]",
        ),
        (
            "{{ {'b': 1, 'a': '<é>'} | tojson(separators=(',', ':'), sort_keys=true) }}",
            "{\"a\":\"<é>\",\"b\":1}",
        ),
        ("{{ 'é' | tojson(true) }}", "\"\\u00e9\""),
        ("{{ 's' is sequence }}{{ 's' is iterable }}{{ m is mapping }}{{ n is none }}", "TrueTrueTrueTrue"),
        ("{{ s.strip() }}|{{ s.split() }}|{{ m.get('z') }}|{{ m.get('z', 3) }}", "a b|['a', 'b']|None|3"),
        ("{{ s.startswith(' a') and not s.endswith('c') }}", "True"),
        ("{{ messages[-1].role }}{{ messages[::-1][0]['content'][:1] }}", "userH"),
        (
            "{% for i in range(5) %}{% if i == 1 %}{% continue %}{% elif i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
            "02",
        ),
        ("{% set ns = namespace(a=1) %}{% for i in [1] %}{% set ns.a = 2 %}{% endfor %}{{ ns.a }}", "2"),
        ("a\r\n{% if true %}\r\nb\r\n{% endif %}\r\nc\r\n", "a\nb\nc"),
        ("  {% if true %}\n  x\n  {% endif %}\n", "  x\n"),
        (
            "{{ tools is none }}{{ tools is defined }}{{ documents }}{{ add_generation_prompt }}",
            "TrueTrueNoneFalse",
        ),
        ("{% macro f(a, b=2) %}{{ a }}{{ b }}{% endmacro %}{{ f(1) }}{{ f(1, b=3) }}", "1213"),
    ] {
        assert_eq!(text(source, values.clone()), expected, "{source}");
    }
}

#[test]
fn generation_blocks_scope_what_they_set() {
    let source = "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}";
    let rendered = render(source, Value::Null).unwrap();
    assert_eq!((rendered.text.as_str(), char_spans(&rendered)), ("21", vec![[0, 1]]));
}

#[test]
fn the_time_can_be_fixed() {
    let template = ChatTemplate::new("{{ strftime_now('%d %b %Y') }}").unwrap();
    let text = |template: &ChatTemplate| template.render(&RenderInput::default()).unwrap().text;
    assert_eq!(text(&template.clone().with_time(1_721_952_000)), "26 Jul 2024");
    assert_ne!(text(&template), "26 Jul 2024");
}

#[test]
fn errors_say_where_and_why() {
    let error = |source: &str| render(source, Value::Null).unwrap_err().to_string();
    assert_eq!(
        error("{{ raise_exception('no ' + messages[0].role + 's here') }}"),
        "the chat template refuses this conversation: no users here"
    );
    assert_eq!(
        error("{% macro f() %}{{ raise_exception('deep') }}{% endmacro %}{{ f() }}"),
        "the chat template refuses this conversation: deep"
    );
    assert!(error("a\n\n{{ absent.x }}").starts_with("chat template, line 3: undefined value"));
    assert!(error("\n{% if %}").starts_with("chat template, line 2: syntax error"));
    assert!(error("{{ absent | tojson }}").contains("undefined"));
    assert!(error("{% generation %}x").starts_with("chat template, line 1: syntax error"));
    assert!(error("{{ strftime_now('%Q') }}").contains("%Q"));
    assert!(error("{{ 1 | tojson(colour=2) }}").contains("colour"));
}

#[test]
fn tools_select_the_tool_use_template() {
    let template = ChatTemplate::new("plain").unwrap().with_tool_use("{{ tools[0].name }}").unwrap();
    let tools = [json!({"name": "f"})];
    let input = RenderInput { tools: Some(&tools), ..RenderInput::default() };
    assert_eq!(template.render(&input).unwrap().text, "f");
    assert_eq!(template.render(&RenderInput::default()).unwrap().text, "plain");
}

#[test]
fn messages_need_a_role() {
    for (value, reason) in [
        (json!("hi"), "must be an object"),
        (json!({"content": "x"}), "has no `role`"),
        (json!({"role": 3, "content": "x"}), "`role` must be a string, not 3"),
    ] {
        let error = Message::from_json(4, value).unwrap_err().to_string();
        assert!(error.starts_with("message 4: ") && error.contains(reason), "{error}");
    }
}

proptest! {
    /// Content never becomes template syntax, a mark, or a span of its own.
    #[test]
    fn content_is_only_text(contents in prop::collection::vec(any::<String>(), 1..4), tail in "[{}%#\u{fdd0}\u{fdd1}0-9a-z ]*") {
        let template = ChatTemplate::new(
            "{% for m in messages %}<{{ m.content }}>{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
        ).unwrap();
        let contents: Vec<String> = contents.into_iter().map(|c| c + &tail).collect();
        let messages: Vec<Message> = contents.iter().map(|c| Message::user(c.as_str())).collect();
        let rendered = template.render(&RenderInput { messages: &messages, ..RenderInput::default() }).unwrap();
        let mut expected = String::new();
        let mut spans = Vec::new();
        for content in &contents {
            expected += &format!("<{content}>");
            if !content.is_empty() {
                spans.push(expected.len()..expected.len() + content.len());
            }
            expected += content;
        }
        prop_assert_eq!(rendered.text, expected);
        // Adjacent blocks stay apart: a "<" stands between them.
        prop_assert_eq!(rendered.generation_spans, spans);
    }

    /// No source text makes the parser or the rewriting of tags panic.
    #[test]
    fn hostile_sources_are_errors(source in "([{}%#'\"\\\\ \\-+]|raw|endraw|generation|endgeneration|é|\n){0,24}") {
        if let Ok(template) = ChatTemplate::new(&source) {
            let _ = template.render(&RenderInput { variables: Some(&Map::new()), ..RenderInput::default() });
        }
    }
}
