//! `qlora data`: checks, rows as the model sees them, templates.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::program::{Ran, files, qlora};
use crate::tiny_model;

fn pair(question: &str, answer: &str) -> Value {
    json!({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
}

fn write_rows(path: &Path, rows: &[Value]) {
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    fs::write(path, lines).unwrap();
}

fn finding<'a>(report: &'a Value, kind: &str) -> &'a Value {
    let findings = report["findings"].as_array().unwrap();
    findings.iter().find(|finding| finding["kind"] == kind).unwrap_or_else(|| panic!("no {kind} in {report}"))
}

fn report(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout).expect("JSON alone on stdout")
}

#[test]
fn golden_templates_are_rendered_with_their_spans() {
    let folder = qlora_testing::chat_templates();
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let mut templates = 0;
    for path in files(&folder) {
        let golden: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let rows = golden["rows"].as_array().unwrap();
        fs::write(home.join("t.jinja"), golden["template"].as_str().unwrap()).unwrap();
        let messages: Vec<Value> = rows
            .iter()
            .map(|row| {
                json!({"messages": row["messages"], "tools": row["tools"],
                       "add_generation_prompt": row["add_generation_prompt"], "variables": golden["variables"]})
            })
            .collect();
        fs::write(home.join("m.json"), Value::from(messages).to_string()).unwrap();
        let ran = qlora(home, ["data", "render", "--template", "t.jinja", "--messages", "m.json"]);
        let found: Vec<Value> = serde_json::from_str(&ran.succeeded().stdout).unwrap();
        assert_eq!(found.len(), rows.len());
        for (found, row) in found.iter().zip(rows) {
            let place = format!("{}: {}", path.display(), row["case"]);
            match row["error"].as_str() {
                Some(error) => {
                    assert_eq!(
                        *found,
                        json!({"error": error.strip_prefix("TemplateError: ").unwrap()}),
                        "{place}"
                    );
                }
                None => {
                    assert_eq!(found["text"], row["ok"], "{place}");
                    if row["assistant_char_spans"].is_array() {
                        assert_eq!(found["assistant_spans"], row["assistant_char_spans"], "{place}");
                    }
                }
            }
        }
        templates += 1;
    }
    assert_eq!(templates, 12);
}

#[test]
fn named_templates_are_rendered_and_mistakes_are_told() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    fs::write(home.join("m.json"), r#"[{"messages": [{"role": "user", "content": "Hé"}]}]"#).unwrap();
    let ran = qlora(home, ["data", "render", "--template", "chatml", "--messages", "m.json"]).succeeded();
    assert_eq!(ran.stdout, "[{\"text\":\"<|im_start|>user\\nHé<|im_end|>\\n\",\"assistant_spans\":[]}]\n");
    let render =
        |template: &str| qlora(home, ["data", "render", "--template", template, "--messages", "m.json"]);
    render("absent.jinja").failed(1, &["cannot read absent.jinja"]);
    fs::write(home.join("bad.jinja"), "\n{% if %}").unwrap();
    render("bad.jinja").failed(1, &["bad.jinja: chat template, line 2"]);
    fs::write(home.join("m.json"), "{\"messages\": []}").unwrap();
    render("chatml").failed(1, &["m.json: expected a JSON list"]);
    fs::write(home.join("m.json"), "[{\"messages\": [3]}]").unwrap();
    assert!(render("chatml").succeeded().stdout.contains("message 0: must be an object"));
}

#[test]
fn without_a_model_texts_are_checked() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let long = "The ship sails at dawn from the old harbour, past the lighthouse and the three grey rocks. "
        .repeat(4);
    let rows = [
        pair("When?", &long),
        pair("When?", &format!("{long}Indeed.")),
        pair("When?", &long),
        pair("Empty", " "),
        pair("Broken", "caf\u{fffd}"),
        json!({"messages": [{"role": "assistant", "content": "first"}], "id": 7}),
        pair("Fine", "yes"),
    ];
    write_rows(&home.join("train.jsonl"), &rows);
    write_rows(
        &home.join("eval.jsonl"),
        &[
            pair("Fine", "yes"),
            pair("Fine", "no"),
            pair("When?", &format!("{long}Or later.")),
            pair("New", "x"),
        ],
    );
    let ran = qlora(home, ["data", "check", "train.jsonl", "--eval", "eval.jsonl", "--json"]).succeeded();
    let found = report(&ran);
    assert_eq!((found["train"]["rows"].as_u64(), found["eval"]["rows"].as_u64()), (Some(7), Some(4)));
    for (kind, file, line, words) in [
        ("duplicate", "train.jsonl", 3, "the same as train.jsonl, line 1"),
        ("near-duplicate", "train.jsonl", 2, "the same as train.jsonl, line 1"),
        ("empty-turn", "train.jsonl", 4, "message 1 (assistant)"),
        ("odd-characters", "train.jsonl", 5, "replacement characters"),
        ("role-order", "train.jsonl", 6, "the assistant speaks before the user"),
        ("ignored-keys", "train.jsonl", 6, "id"),
        ("leaked", "eval.jsonl", 1, "the same as train.jsonl, line 7"),
        ("leaked-prompt", "eval.jsonl", 2, "the prompt of train.jsonl, line 7"),
        ("near-leaked", "eval.jsonl", 3, "train.jsonl, line "),
    ] {
        let place = &finding(&found, kind)["places"][0];
        assert_eq!((place["file"].as_str(), place["line"].as_u64()), (Some(file), Some(line)), "{kind}");
        assert!(place["detail"].as_str().unwrap().contains(words), "{kind}: {place}");
    }
    let text = qlora(home, ["data", "check", "train.jsonl"]).succeeded().stdout;
    assert!(text.contains("warning: 1 exact duplicates of earlier rows; remove them"), "{text}");
    assert!(text.contains("name a model by --model"), "{text}");
}

#[test]
fn errors_in_the_data_are_exit_code_1() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    tiny_model::write(home);
    let good = json!({"input_ids": [1, 2, 3, 4], "labels": [-100, -100, 3, 4]});
    let untrained = json!({"input_ids": [1, 2], "labels": [-100, -100]});
    fs::write(home.join("train.jsonl"), format!("{good}\n{{\n{untrained}\n{{\"input_ids\": [1, 40]}}\n"))
        .unwrap();
    let check = ["data", "check", "train.jsonl", "--model", "model", "--max-length", "3", "--html", "r.html"];
    let ran =
        qlora(home, check).failed(1, &["1 lines that are no JSON object", "1 rows without a trained token"]);
    for part in [
        "train.jsonl, line 2: not valid JSON",
        "train.jsonl, line 3: no trained token",
        "train.jsonl, line 4: `input_ids`: position 1 holds 40",
        "train.jsonl, line 1: 4 tokens: 1 beyond 3, 1 of them trained",
        "1 rows (100.0 %), beyond the limit 1 tokens (25.0 %), 1 of them trained",
    ] {
        assert!(ran.stdout.contains(part), "no {part:?} in {}", ran.stdout);
    }
    assert!(fs::read_to_string(home.join("r.html")).unwrap().contains("<h1>Data check</h1>"));
    fs::write(home.join("train.jsonl"), format!("{good}\n")).unwrap();
    // What training would stop at is an error; what it is told to cut or to leave out is not.
    qlora(home, check).failed(1, &["1 rows longer than max_length"]);
    for on_long in ["truncate", "skip"] {
        let lines = format!("{good}\n{{\"input_ids\": [5, 6]}}\n");
        fs::write(home.join("train.jsonl"), lines).unwrap();
        let told = qlora(home, check.into_iter().chain(["--on-long", on_long])).succeeded().stdout;
        assert!(told.contains("warning: 1 rows longer than max_length; raise"), "{told}");
    }
    fs::write(home.join("train.jsonl"), format!("{good}\n")).unwrap();
    qlora(home, ["data", "check", "absent.jsonl"]).failed(1, &["cannot read absent.jsonl"]);
    fs::write(home.join("empty.jsonl"), "\n").unwrap();
    qlora(home, ["data", "check", "empty.jsonl"]).failed(1, &["empty.jsonl: no rows"]);
    qlora(home, ["data", "check"]).failed(2, &["FILE"]);
    qlora(home, ["data", "show", "train.jsonl", "--model", "model", "--rows", "3..1"]).failed(2, &["3..1"]);

    let shown = qlora(home, ["data", "show", "train.jsonl", "--model", "model"]).succeeded().stdout;
    assert!(shown.contains("row 0 (train.jsonl, line 1): 4 tokens, 2 of them trained"), "{shown}");
    assert!(shown.contains("1·2·⟦3·4·⟧"), "{shown}");
    qlora(home, ["data", "show", "train.jsonl", "--model", "model", "--rows", "9"])
        .failed(1, &["none of these rows"]);
}

#[test]
fn rows_are_shown_as_a_real_model_sees_them() {
    let Some(model) = qlora_testing::model() else { return };
    let model = model.to_str().unwrap();
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let row = json!({"messages": [
        {"role": "user", "content": "<script>alert(1)</script> \"q\" & 'r'"},
        {"role": "assistant", "content": "  /\\_/\\\n ( o.o )\t", "weight": 0.5},
        {"role": "user", "content": "Again"},
        {"role": "assistant", "content": "No"},
    ]});
    write_rows(&home.join("train.jsonl"), &[row]);
    let shown = qlora(home, ["data", "show", "train.jsonl", "--model", model]).succeeded().stdout;
    assert!(shown.contains("⟦0.5: ··/\\_/\\⏎\n·(·o.o·)⇥<|im_end|>⟧"), "{shown}");
    assert!(shown.contains("⟦No<|im_end|>⟧⏎"), "{shown}");
    assert!(!shown.contains('\u{1b}'), "colours in a pipe");
    let json = qlora(home, ["data", "show", "train.jsonl", "--model", model, "--json"]).succeeded().stdout;
    let json: Value = serde_json::from_str(&json).unwrap();
    let pieces = json["pieces"].as_array().unwrap();
    let text: String = pieces.iter().map(|piece| piece["text"].as_str().unwrap()).collect();
    assert!(text.contains("<|im_start|>assistant\n  /\\_/\\\n ( o.o )\t<|im_end|>\n"), "{text}");

    let check = ["data", "check", "train.jsonl", "--model", model, "--html", "r.html"];
    qlora(home, check).succeeded();
    let page = fs::read_to_string(home.join("r.html")).unwrap();
    assert!(!page.contains("<script"), "text of the data became a part of the page");
    assert!(
        page.contains("<meta charset=\"utf-8\">") && !page.contains("http"),
        "the page needs something else"
    );
    assert!(page.contains(">&lt;</span>") || page.contains("&lt;"), "{page}");
    assert!(page.contains("weight 0.5\""), "{page}");

    // A template that trims loses the drawing's edges; one of other tokens is warned of.
    let with = |template: &str| {
        let template = ["--template", template];
        qlora(home, ["data", "check", "train.jsonl", "--model", model, "--json"].iter().chain(&template))
            .succeeded()
    };
    fs::write(
        home.join("trims.jinja"),
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}\
         {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    )
    .unwrap();
    let found = report(&with("trims.jinja"));
    let detail = &finding(&found, "whitespace-lost")["places"][0]["detail"];
    assert_eq!(*detail, "message 1 (assistant): the chat template cuts white space at its edges");
    let ran = with("llama-3");
    assert!(ran.stderr.contains("<|eot_id|> which the vocabulary does not have"), "{}", ran.stderr);
    assert_eq!(finding(&report(&ran), "unended-response")["rows"], 1);
}

#[test]
fn rows_of_a_table_become_messages() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    fs::write(home.join("qa.csv"), "question,answer\n1+1?,2\n\"a \"\"quote\"\"\",yes\n").unwrap();
    let arguments = ["data", "convert", "qa.csv", "--out", "out.jsonl", "--column", "prompt=question"];
    let ran =
        qlora(home, arguments.into_iter().chain(["--column", "completion=answer", "--json"])).succeeded();
    assert_eq!(report(&ran), json!({"out": "out.jsonl", "written": 2, "skipped": 0, "left_out": {}}));
    let rows: Vec<Value> = fs::read_to_string(home.join("out.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(rows, [pair("1+1?", "2"), pair("a \"quote\"", "yes")]);

    let ran = qlora(home, ["data", "convert", "qa.csv", "--out", "b.jsonl", "--shape", "table"]);
    ran.failed(2, &["--shape table", "unknown variant"]);
    let ran = qlora(home, ["data", "convert", "qa.csv", "--out", "b.jsonl", "--column", "prompt"]);
    ran.failed(2, &["KEY=COLUMN"]);
    fs::write(home.join("bad.jsonl"), "{\"prompt\": \"a\", \"completion\": \"b\"}\n{broken\n").unwrap();
    qlora(home, ["data", "convert", "bad.jsonl", "--out", "b.jsonl"]).failed(1, &["bad.jsonl", "line 2"]);
    assert!(!home.join("b.jsonl").exists());
    qlora(home, ["data", "convert", "bad.jsonl", "--out", "b.jsonl", "--skip-bad-rows"]).succeeded();
}

#[test]
fn columns_of_another_meaning_are_left_out_and_told() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let mut row = pair("a", "b");
    row["topic"] = "x".into();
    row["text"] = Value::Null;
    row["system"] = "Be brief.".into();
    write_rows(&home.join("d.jsonl"), &[row]);
    let told = qlora(home, ["data", "convert", "d.jsonl", "--out", "o.jsonl"]).succeeded().stdout;
    assert!(told.contains("the column \"system\" was left out of 1 rows"), "{told}");
    let mut expected = pair("a", "b");
    expected["topic"] = "x".into();
    assert_eq!(fs::read_to_string(home.join("o.jsonl")).unwrap(), format!("{expected}\n"));
    qlora(home, ["data", "convert", "d.jsonl", "--out", "no/such/o.jsonl"]).failed(1, &["no/such"]);
}

#[test]
fn rows_of_any_source_are_shown_and_checked() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    tiny_model::write(home);
    fs::create_dir(home.join("more")).unwrap();
    fs::write(home.join("more/a.json"), r#"[{"tokens": [1, 2]}, {"tokens": [3, 4, 5]}]"#).unwrap();
    fs::write(home.join("more/b.json"), r#"[{"tokens": [6, 40]}]"#).unwrap();
    let options = ["--model", "model", "--shape", "tokens", "--column", "input_ids=tokens"];
    let show = |names: &[&str], rest: &[&str]| {
        qlora(home, ["data", "show"].iter().chain(names).chain(&options).chain(rest))
    };
    for name in ["more", "more/*.json"] {
        let ran = show(&[name], &[]).failed(1, &["1 of these rows cannot be used"]);
        for part in ["row 1 (more/a.json, row 2): 3 tokens", "row 2 (more/b.json, row 1): `input_ids`"] {
            assert!(ran.stdout.contains(part), "no {part:?} in {}", ran.stdout);
        }
    }
    let shown = show(&["more/a.json", "more/b.json"], &["--rows", "1", "--json"]).succeeded();
    let shown = report(&shown);
    assert_eq!(
        (&shown["file"], &shown["unit"], &shown["line"], &shown["row"]),
        (&json!("more/a.json"), &json!("row"), &json!(2), &json!(1))
    );

    let check = |more: &[&str]| qlora(home, ["data", "check", "more"].iter().chain(&options).chain(more));
    let found = check(&["--json"]).failed(1, &["1 rows without"]);
    let place = finding(&report(&found), "wrong-shape")["places"][0].clone();
    assert_eq!(
        (&place["file"], &place["unit"], &place["line"]),
        (&json!("more/b.json"), &json!("row"), &json!(1))
    );
    let page = ["--html", "r.html"];
    assert!(check(&page).stdout.contains("more/b.json, row 1: `input_ids`: position 1 holds 40"));
    let page = fs::read_to_string(home.join("r.html")).unwrap();
    assert!(
        page.contains("more/b.json, row 1: `input_ids`") && page.contains("<h3>more/a.json, row 1 ("),
        "{page}"
    );

    fs::write(home.join("d.md"), "# A\n\none\n\n# B\n\ntwo\n").unwrap();
    let parts = qlora(home, ["data", "check", "d.md", "--split", "10", "--json"]).succeeded();
    assert_eq!(report(&parts)["train"]["rows"], 2);
    qlora(home, ["data", "check", "more", "--split", "9"]).failed(1, &["`split` cuts text and Markdown"]);
    qlora(home, ["data", "show", "more"]).failed(2, &["--model MODEL"]);
    qlora(home, ["data", "check", "more", "--shape", "table"]).failed(2, &["--shape table"]);
}

#[test]
fn of_a_data_set_of_the_hub_the_train_split_is_read_and_told() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let store = |id: &str, files: &[&str]| {
        let folder = home.join("datasets/org").join(id);
        let siblings: Vec<Value> = files.iter().map(|name| json!({"rfilename": name})).collect();
        for name in files {
            let path = folder.join(commit).join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            write_rows(&path, &[pair(name, "yes")]);
        }
        fs::write(folder.join("listing.json"), json!({"sha": commit, "siblings": siblings}).to_string())
            .unwrap();
    };
    store("one", &["data/train-0.jsonl", "data/train, (new).jsonl", "data/test-0.jsonl"]);
    store("one@refs%2Fconvert%2Fplain", &["default/train/0.jsonl", "default/test/0.jsonl"]);
    store("two", &["en/train.jsonl", "de/train.jsonl"]);
    let check = |path: &str| qlora(home, ["data", "check", &format!("hf://datasets/org/{path}"), "--json"]);
    let ran = check("one").succeeded();
    assert!(
        ran.stderr.contains("hf://datasets/org/one: read is data/train-0.jsonl, data/train, (new).jsonl")
    );
    assert_eq!(report(&ran)["train"]["rows"], 2);
    assert_eq!(report(&check("one/data/test-*").succeeded())["train"]["rows"], 1);
    let revision = check("one@refs/convert/plain/default/train/0.jsonl").succeeded();
    assert_eq!(report(&revision)["train"]["rows"], 1);
    assert_eq!(report(&check("two/de").succeeded())["train"]["rows"], 1);
    check("two").failed(1, &["there are several configurations: de, en; name the folder of one of them"]);
}

/// What is shown of a run that goes on from an adapter is what its training sees: the adapter's template.
#[test]
fn rows_of_a_run_have_the_template_of_the_adapter_that_it_goes_on_from() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    tiny_model::write_with_tokenizer(home);
    fs::create_dir(home.join("adapter")).unwrap();
    let template = "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n\
                    {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    fs::write(home.join("adapter/chat_template.jinja"), template).unwrap();
    let row =
        r#"{"messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]}"#;
    fs::write(home.join("rows.jsonl"), row).unwrap();
    let run = |lora: &str| {
        let run = format!(
            "[model]\npath = 'model'\n[lora]\n{lora}\n[data]\ntrain = 'rows.jsonl'\n[train]\nsteps = 1\n[output]\ndir = 'out'\n"
        );
        fs::write(home.join("run.toml"), run).unwrap();
    };
    run("init_from = 'adapter'");
    let shown = qlora(home, ["data", "show", "run.toml"]).succeeded().stdout;
    assert!(shown.contains("<|im_start|>") && shown.contains("two"), "{shown}");
    qlora(home, ["data", "check", "run.toml"]).succeeded();
    run("rank = 4");
    qlora(home, ["data", "check", "run.toml"]).failed(1, &["chat template"]);
}
