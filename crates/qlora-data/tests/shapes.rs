//! Every shape and dialect, column mapping, and what bad rows say.

use qlora_data::{OnBadRow, Record, Records, Row, Source};
use qlora_hub::Silent;
use serde_json::{Value, json};

fn records(rows: &[Value], change: impl FnOnce(&mut Source)) -> Result<Vec<Record>, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("d.jsonl");
    let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
    std::fs::write(&path, lines.join("\n")).unwrap();
    let mut source = Source::new(path.to_str().unwrap());
    change(&mut source);
    let records = Records::open(qlora_data::Sources(vec![source]), OnBadRow::Stop, &mut Silent);
    let prefix = format!("{}", folder.path().display());
    records
        .and_then(|records| records.map(|record| record.map(|(_, record)| record)).collect())
        .map_err(|error| error.to_string().replace(&prefix, ""))
}

/// The messages of a single row.
fn messages(row: Value) -> Value {
    match records(std::slice::from_ref(&row), |_| ()).unwrap().remove(0) {
        Record::Row(Row::Conversation { messages, .. }) => json!(messages),
        other => panic!("{row}: {other:?}"),
    }
}

fn refused(row: Value) -> String {
    records(&[row], |_| ()).unwrap_err()
}

fn turns(turns: &[(&str, &str)]) -> Value {
    turns.iter().map(|(role, content)| json!({"role": role, "content": content})).collect()
}

#[test]
fn dialects_of_sharegpt() {
    let expected = turns(&[("system", "s"), ("user", "q"), ("assistant", "a")]);
    for (human, gpt) in [("human", "gpt"), ("user", "assistant"), ("Human", "chatgpt"), ("input", "model")] {
        let turns = json!([{"from": "system", "value": "s"}, {"from": human, "value": "q"}, {"from": gpt, "value": "a"}]);
        assert_eq!(messages(json!({"conversations": turns})), expected);
        assert_eq!(messages(json!({"conversation": turns, "id": 1})), expected);
        assert_eq!(messages(json!({"messages": turns})), expected);
        assert_eq!(
            messages(json!({"conversations": turns.as_array().unwrap()[1..], "system": "s"})),
            expected
        );
        // In a table the list is text.
        assert_eq!(messages(json!({"conversations": turns.to_string()})), expected);
    }
    assert_eq!(messages(json!({"conversations": expected})), expected);
    let weighted = json!([{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "weight": 0}]);
    assert_eq!(messages(json!({"conversations": weighted}))[1]["weight"], 0);
}

#[test]
fn functions_of_sharegpt() {
    let row = json!({"conversations": [
        {"from": "human", "value": "weather?"},
        {"from": "function_call", "value": "{\"name\": \"get\", \"arguments\": {\"city\": \"Rom\"}}"},
        {"from": "observation", "value": "12"},
        {"from": "gpt", "value": "cold"}], "tools": "[{\"name\": \"get\"}]"});
    let Record::Row(Row::Conversation { messages, tools, .. }) = records(&[row], |_| ()).unwrap().remove(0)
    else {
        panic!("a conversation")
    };
    assert_eq!(tools, Some(vec![json!({"name": "get"})]));
    let messages = json!(messages);
    assert_eq!(
        messages[1]["tool_calls"][0]["function"],
        json!({"name": "get", "arguments": {"city": "Rom"}})
    );
    assert_eq!((&messages[1]["role"], &messages[2]["role"]), (&json!("assistant"), &json!("tool")));
    let bad = |value: &str| refused(json!({"conversations": [{"from": "function_call", "value": value}]}));
    assert!(bad("get()").contains("line 1: turn 0: the function call is not valid JSON"), "{}", bad("get()"));
    assert!(bad("[1]").contains("expected a function call {\"name\", \"arguments\"}, found 1"));
}

#[test]
fn messages_keep_what_templates_use() {
    let turns = json!([{"role": "user", "content": "q"},
        {"role": "assistant", "reasoning_content": "hm", "content": "a", "tool_calls": [{"id": "1"}]}]);
    assert_eq!(messages(json!({"messages": turns})), turns);
}

#[test]
fn alpaca_with_its_options() {
    assert_eq!(
        messages(
            json!({"instruction": "i", "input": "x", "output": "o", "system": "s", "history": [["a", "b"]]})
        ),
        turns(&[("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "i\n\nx"), ("assistant", "o")])
    );
    assert_eq!(
        messages(json!({"instruction": "i", "input": "", "output": "o", "system": ""})),
        turns(&[("user", "i"), ("assistant", "o")])
    );
    assert!(
        refused(json!({"instruction": 1, "output": "o"})).contains("`instruction`: expected a text, found 1")
    );
    assert!(
        refused(json!({"instruction": "i", "output": "o", "history": [["a"]]}))
            .contains("`history`: expected a list of pairs [question, answer], found a list")
    );
}

#[test]
fn preference_pairs() {
    let (q, good, bad) = (("user", "q"), ("assistant", "good"), ("assistant", "bad"));
    for row in [
        json!({"prompt": "q", "chosen": "good", "rejected": "bad"}),
        json!({"prompt": turns(&[q]), "chosen": turns(&[good]), "rejected": turns(&[bad])}),
        json!({"prompt": "q", "chosen": turns(&[q, good]), "rejected": turns(&[q, bad])}),
        json!({"chosen": turns(&[q, good]), "rejected": turns(&[q, bad])}),
    ] {
        let Record::Preference(pair) = records(&[row], |_| ()).unwrap().remove(0) else { panic!("a pair") };
        assert_eq!(
            json!([pair.prompt, pair.chosen, pair.rejected]),
            json!([turns(&[q]), turns(&[good]), turns(&[bad])])
        );
    }
    assert!(refused(json!({"chosen": "a", "rejected": "a"})).contains("`chosen` and `rejected` are equal"));
    assert!(
        refused(json!({"chosen": turns(&[q]), "rejected": turns(&[q, bad])}))
            .contains("`chosen`: expected an answer beyond the prompt, found the prompt alone")
    );
    assert!(refused(json!({"chosen": 1, "rejected": "a"})).contains("`chosen`: expected a string or a list"));
}

#[test]
fn prompts_keep_their_columns_and_documents_their_text() {
    let rows = records(&[json!({"prompt": "q", "answer": "72", "n": [1]})], |_| ()).unwrap();
    let [Record::Prompt(prompt)] = &rows[..] else { panic!("{rows:?}") };
    assert_eq!(json!(prompt.messages), turns(&[("user", "q")]));
    assert_eq!(Value::Object(prompt.columns.clone()), json!({"answer": "72", "n": [1]}));
    let rows = records(&[json!({"text": " a\n"})], |_| ()).unwrap();
    assert_eq!(rows, [Record::Row(Row::Text { prompt: String::new(), completion: " a\n".into() })]);
    // A text that looks like a list is a text.
    let rows = records(&[json!({"prompt": "[1, 2]", "completion": "[3]"})], |_| ()).unwrap();
    assert_eq!(rows, [Record::Row(Row::Text { prompt: "[1, 2]".into(), completion: "[3]".into() })]);
}

#[test]
fn what_fits_several_shapes_names_them_and_how_to_choose() {
    let error = refused(json!({"instruction": "i", "output": "o", "text": "t"}));
    assert_eq!(
        error,
        "/d.jsonl, line 1: the row could be `instruction` and `output` or `text`; name the shape of the file: \
         shape = \"alpaca\" or \"text\""
    );
    let rows = records(&[json!({"instruction": "i", "output": "o", "text": "t"})], |source| {
        source.shape = Some(qlora_data::RowShape::Text);
    });
    assert_eq!(rows.unwrap(), [Record::Row(Row::Text { prompt: String::new(), completion: "t".into() })]);
    let error = records(&[json!({"text": "a"}), json!({"prompt": "a"})], |_| ()).unwrap_err();
    assert!(
        error.contains("line 2: the row has the shape `prompt`, and 1 of the file's 2 rows have `text`"),
        "{error}"
    );
    // A prompt beside a conversation, or a null, decides nothing.
    assert_eq!(
        messages(json!({"prompt": "x", "text": null, "messages": turns(&[("user", "q")])})),
        turns(&[("user", "q")])
    );
}

#[test]
fn unknown_speakers_and_turns() {
    let error = refused(json!({"conversations": [{"from": "narrator", "value": "x"}]}));
    assert!(error.contains("turn 0: the speaker \"narrator\" is unknown; known are system, "), "{error}");
    let error = refused(json!({"conversations": [{"from": 1, "value": "x"}]}));
    assert!(error.contains("turn 0: `from` must be a string, not 1"), "{error}");
    let error = refused(json!({"conversations": [{"from": "human"}]}));
    assert!(error.contains("turn 0: has `from` and no `value`"), "{error}");
}

#[test]
fn columns_and_templates() {
    let source: Source = toml_like(json!({"path": "x", "columns": {"completion": "answer"},
        "template": {"prompt": "Q: {question}[[ ({hint})]]"}}));
    let rows = records(
        &[
            json!({"question": "1+1", "hint": "two", "answer": "2"}),
            json!({"question": "1", "answer": "1", "hint": null}),
        ],
        |s| (s.columns, s.template) = (source.columns.clone(), source.template.clone()),
    );
    let text = |prompt: &str, completion: &str| {
        Record::Row(Row::Text { prompt: prompt.into(), completion: completion.into() })
    };
    assert_eq!(rows.unwrap(), [text("Q: 1+1 (two)", "2"), text("Q: 1", "1")]);
    let error = records(&[json!({"q": "x"})], |s| s.columns = source.columns.clone()).unwrap_err();
    assert!(error.contains("the column \"answer\" is missing or empty; the row has [\"q\"]"), "{error}");
    let error =
        serde_json::from_value::<Source>(json!({"path": "x", "template": {"prompt": "{a"}})).unwrap_err();
    assert!(error.to_string().contains("`{` without `}` at byte 0"), "{error}");
    assert!(serde_json::from_value::<Source>(json!({"path": "x", "colums": {}})).is_err());
    let sources: qlora_data::Sources = toml_like(json!(["a", {"path": "b", "repeat": 2.0}]));
    assert_eq!((sources.0.len(), sources.0[1].repeat), (2, 2.0));
}

fn toml_like<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}
