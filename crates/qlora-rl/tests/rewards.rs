//! Rewards: values, and programs that misbehave.

use std::sync::Arc;
use std::time::{Duration, Instant};

use qlora_rl::{
    Candidate, CommandReward, Limits, Reward, RewardConfig, RewardError, RewardInput, Scores, reward_fn,
    score_during,
};
use serde_json::{Map, Value, json};

/// The reward of a completion of so many tokens.
fn score(config: Value, completion: &str, tokens: usize, columns: Value) -> Result<Option<f64>, RewardError> {
    let reward = RewardConfig::from_value(&config).unwrap().build().unwrap();
    let columns = columns.as_object().unwrap().clone();
    let ids = vec![1; tokens];
    reward.score(&RewardInput {
        prompt: "p",
        completion,
        completion_ids: &ids,
        finished: true,
        columns: &columns,
    })
}

fn value(config: Value, completion: &str) -> f64 {
    score(config, completion, 10, json!({"answer": "42"})).unwrap().unwrap()
}

#[test]
fn answers_are_compared() {
    let exact = json!({"kind": "exact", "column": "answer"});
    assert_eq!([" 42\n", "42.", "it is 42"].map(|text| value(exact.clone(), text)), [1.0, 0.0, 0.0]);
    let numeric = json!({"kind": "numeric", "column": "answer"});
    assert_eq!(
        ["4,2", "42,0", "7, 42", "1,42"].map(|text| value(numeric.clone(), text)),
        [0.0, 0.0, 1.0, 1.0]
    );
    assert_eq!(["it is 42.0", "42 or 43", ""].map(|text| value(numeric.clone(), text)), [1.0, 0.0, 0.0]);
    let tag = json!({"kind": "numeric", "column": "answer", "extract": "tag"});
    assert_eq!(value(tag, "7 <answer> 42 </answer> 9"), 1.0);
    let missing = json!({"kind": "exact", "column": "solution"});
    let error = score(missing, "42", 1, json!({"answer": "42"})).unwrap_err().to_string();
    assert!(error.contains("`solution`") && error.contains("found nothing"), "{error}");
}

#[test]
fn forms_are_recognized() {
    let tags = json!({"kind": "tags", "partial": true});
    let of = |text: &str| value(tags.clone(), text);
    assert_eq!(of("<think>a</think>\n<answer>b</answer>"), 1.0);
    assert_eq!(of("x <think>a</think><answer>b</answer>"), 0.5);
    assert_eq!(of("<answer>b</answer><think>a</think>"), 0.5);
    assert_eq!(of("<think>a</think><think>a</think><answer>b</answer>"), 0.25);
    assert_eq!(of("<think><answer>a</answer></think><answer>b</answer>"), 0.25, "a tag within another");
    assert_eq!(of("<think>a <answer></think><answer>b</answer>"), 0.375);
    assert_eq!(of("<think>a</think><answer>b <think></answer>"), 0.375);
    assert_eq!(of("nothing"), 0.0);
    let pattern = json!({"kind": "pattern", "pattern": "a.*z"});
    assert_eq!(["a\nz", "a z "].map(|text| value(pattern.clone(), text)), [1.0, 0.0]);
    let schema =
        json!({"type": "object", "required": ["n"], "properties": {"n": {"type": "integer", "minimum": 2}}});
    let json = json!({"kind": "json", "schema": schema, "partial": 0.25});
    let texts = ["{\"n\": 2}", "```json\n{\"n\": 5}\n```", "{\"n\": 1}", "{}", "{n: 2}"];
    assert_eq!(texts.map(|text| value(json.clone(), text)), [1.0, 1.0, 0.25, 0.25, 0.0]);
}

#[test]
fn lengths_and_repetition_are_those_of_trl() {
    let at = |config: &Value, tokens: usize, text: &str| {
        score(config.clone(), text, tokens, json!({"answer": "42"})).unwrap().unwrap()
    };
    let overlong = json!({"kind": "soft_overlong", "max_tokens": 100, "cache": 20});
    assert_eq!([10, 80, 90, 100, 130].map(|n| at(&overlong, n, "")), [0.0, 0.0, -0.5, -1.0, -1.0]);
    let cosine = json!({"kind": "cosine_length", "column": "answer", "max_tokens": 100});
    // `min + 0.5·(max − min)·(1 + cos(π·length/max_length))`, the two swapped where the answer is wrong.
    let close = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-12, "{found} {expected}");
    close(at(&cosine, 50, "42"), 0.75);
    close(at(&cosine, 100, "42"), 0.5);
    close(at(&cosine, 0, "41"), -1.0);
    close(at(&cosine, 100, "41"), -0.5);
    let repetition = json!({"kind": "repetition", "ngram": 2, "max_penalty": -1.0});
    // Four bigrams, two of them distinct.
    close(at(&repetition, 1, "a b A b a"), -0.5);
    close(at(&repetition, 1, "a b c d"), 0.0);
    close(at(&repetition, 1, "a"), 0.0);
    let length = json!({"kind": "length", "tokens": 10});
    assert_eq!([0, 5, 10, 20, 40].map(|n| at(&length, n, "")), [0.0, 0.5, 1.0, 0.0, 0.0]);
}

#[test]
fn options_are_checked() {
    let error = |config: Value| match RewardConfig::from_value(&config) {
        Err(error) => error,
        Ok(config) => config.build().err().expect("an error"),
    };
    assert!(error(json!({"kind": "exact", "colum": "a"})).contains("colum"));
    assert!(error(json!({"kind": "exact"})).contains("column"));
    assert!(error(json!({"kind": "guess"})).contains("guess"));
    assert!(error(json!({"kind": "pattern", "pattern": "("})).contains("pattern"));
    assert!(error(json!({"kind": "json", "schema": {"oneOf": []}})).contains("oneOf"));
    assert!(error(json!({"kind": "soft_overlong", "max_tokens": 5, "cache": 9})).contains("cache"));
    assert!(error(json!({"kind": "command", "command": ["/does/not/exist"]})).contains("/does/not/exist"));
    assert!(error(json!({"kind": "command", "command": ["cat"], "timeout": -1})).contains("timeout"));
    let unit_tests = |command: &str, done: Option<&str>| {
        error(json!({"kind": "unit_tests", "command": [command], "column": "t", "done": done}))
    };
    assert!(unit_tests("/does/not/python3", None).contains("can't start `/does/not/python3`"));
    assert!(unit_tests("/does/not/exist", Some("")).contains("can't start `/does/not/exist`"));
    assert!(unit_tests("cargo-script", None).contains("done: the language that `cargo-script` runs"));
    assert!(unit_tests("sh", Some("echo done")).contains("\"echo done\" does not hold {done}"));
    let config = RewardConfig::from_value(&json!({"kind": "tags", "weight": 0.5, "name": "form"})).unwrap();
    assert_eq!(RewardConfig::from_value(&config.to_value()), Ok(config));
}

/// `sh -c script`, so many seconds for each answer: few only where it hangs.
fn shell_within(seconds: u64, script: &str) -> CommandReward {
    let command = ["sh", "-c", script].map(String::from).to_vec();
    let limits = Limits { timeout: Duration::from_secs(seconds), memory: None };
    CommandReward::start("command", command, limits).unwrap()
}

fn shell(script: &str) -> CommandReward {
    shell_within(10, script)
}

/// Scores of completions named `c0`, `c1`, ... by one reward.
fn score_all(reward: impl Reward + 'static, count: usize, threads: usize) -> Scores {
    let rewards: [Box<dyn Reward>; 1] = [Box::new(reward)];
    let columns = Arc::new(Map::new());
    let ((), scores) = score_during(&rewards, count, threads, |hand_over| {
        for index in 0..count {
            hand_over(Candidate {
                index,
                prompt: "p".into(),
                columns: Arc::clone(&columns),
                completion: format!("c{index}"),
                completion_ids: vec![1; index],
                finished: true,
            });
        }
    });
    scores
}

/// Answers each line with the reward 1, but does something else for the completion `c2`.
fn but_for_c2(misbehaviour: &str) -> String {
    format!(
        "while read -r line; do id=$(echo \"$line\" | sed 's/.*\"id\":\\([0-9]*\\).*/\\1/'); \
         case \"$line\" in *c2*) {misbehaviour};; *) echo \"{{\\\"id\\\":$id,\\\"reward\\\":1}}\";; esac; done"
    )
}

#[test]
#[cfg(unix)]
fn a_command_that_misbehaves_costs_only_the_completion_that_it_misbehaved_on() {
    let cases = [
        ("hangs", "sleep 600", "no answer within 2 s"),
        ("crashes", "echo broken >&2; exit 3", "it ended without an answer; it said: broken"),
        ("prints garbage", "echo garbage", "found \"garbage"),
        ("answers another", "echo '{\"id\":99,\"reward\":5}'", "\\\"id\\\":99"),
        ("answers with text", "echo \"{\\\"id\\\":$id,\\\"reward\\\":\\\"1\\\"}\"", "a number or null"),
        ("never ends a line", "head -c 3000000 /dev/zero | tr '\\0' x", "a line of more than 1048576 bytes"),
        ("says that it can't tell", "echo \"{\\\"id\\\":$id,\\\"error\\\":\\\"odd\\\"}\"", "odd"),
    ];
    for (what, misbehaviour, message) in cases {
        let started = Instant::now();
        let seconds = if what == "hangs" { 2 } else { 10 };
        let scores = score_all(shell_within(seconds, &but_for_c2(misbehaviour)), 6, 1);
        assert!(started.elapsed() < Duration::from_secs(60), "{what}: it did not stop the run");
        let one = Some(1.0);
        assert_eq!(scores.rewards, [vec![one, one, None, one, one, one]], "{what}: {:?}", scores.messages);
        assert_eq!(scores.failed, [false, false, true, false, false, false], "{what}");
        assert_eq!(scores.errors, [1], "{what}");
        assert!(scores.messages[&0].contains(message), "{what}: {}", scores.messages[&0]);
    }
}

#[test]
#[cfg(unix)]
fn a_flood_on_standard_error_stops_nothing() {
    let script = but_for_c2("head -c 3000000 /dev/zero >&2; echo \"{\\\"id\\\":$id,\\\"reward\\\":1}\"");
    let scores = score_all(shell(&script), 4, 2);
    assert_eq!((scores.rewards, scores.errors), (vec![vec![Some(1.0); 4]], vec![0]));
}

#[test]
#[cfg(target_os = "linux")]
fn memory_is_limited_and_null_is_no_opinion() {
    // `tail` holds all of it before it writes the reward.
    let hungry = "head -c 400000000 /dev/zero | tail -c 400000000 >/dev/null || exit 1; \
                  echo \"{\\\"id\\\":$id,\\\"reward\\\":1}\"";
    let command = ["sh", "-c", &but_for_c2(hungry)].map(String::from).to_vec();
    let scores = |memory| {
        let limits = Limits { timeout: Duration::from_secs(30), memory };
        score_all(CommandReward::start("command", command.clone(), limits).unwrap(), 4, 1)
    };
    let scores = [None, Some(100_000_000)].map(scores);
    assert_eq!(scores[0].failed, [false; 4], "{:?}", scores[0].messages);
    assert_eq!(scores[1].failed, [false, false, true, false], "{:?}", scores[1].messages);
    let null = shell(&but_for_c2("echo \"{\\\"id\\\":$id,\\\"reward\\\":null}\""));
    let scores = score_all(null, 4, 1);
    assert_eq!(scores.rewards, [vec![Some(1.0), Some(1.0), None, Some(1.0)]]);
    assert_eq!(scores.failed, [false; 4]);
}

/// The reward of code of a shell, against tests of one.
#[cfg(unix)]
fn tested(code: &str, tests: &str, timeout: u32) -> f64 {
    let config =
        json!({"kind": "unit_tests", "command": ["sh", "-s"], "column": "tests", "timeout": timeout});
    score(config, code, 1, json!({"tests": tests})).unwrap().unwrap()
}

#[test]
#[cfg(unix)]
fn code_is_run_against_tests() {
    let of = |text: &str| tested(text, "[ $(answer) = 42 ]", 10);
    assert_eq!(of("Here:\n```sh\nanswer() { echo 42; }\n```"), 1.0);
    assert_eq!(of("answer() { echo 41; }"), 0.0);
    assert_eq!(of("("), 0.0);
    assert_eq!(of("printf 'a line without an end'; answer() { echo 42; }"), 1.0);
    assert_eq!(of("head -c 3000000 /dev/zero | tr '\\0' x; answer() { echo 42; }"), 1.0);
    assert_eq!(tested("answer() { sleep 60; }", "[ $(answer) = 42 ]", 1), 0.0);
}

#[test]
#[cfg(unix)]
fn code_that_ends_before_the_tests_do_is_worth_nothing() {
    let tests = "[ $(answer) = 42 ] || exit 1\n[ \"$(answer)\" = 42 ]";
    let of = |code: &str| tested(code, tests, 10);
    assert_eq!(of("answer() { echo 42; }"), 1.0);
    for code in [
        "exit 0",
        "exec true",
        "answer() { echo 42; }\nexit 0",
        // In a test.
        "[() { exit 0; }",
        // What follows is read by the code: it prints the statement, and not what that prints.
        "cat; exit 0",
        "cat >/dev/null",
        "echo {done}; exit 0",
    ] {
        assert_eq!(of(code), 0.0, "{code}");
    }
}

#[test]
#[cfg(unix)]
fn the_end_of_tests_can_be_told_by_a_statement_of_ones_own_or_not_at_all() {
    let of = |done: &str, code: &str| {
        let command = json!(["env", "-", "sh", "-s", "x"]);
        let config = json!({"kind": "unit_tests", "command": command, "column": "t", "done": done});
        score(config, code, 1, json!({"t": "[ $answer = 42 ] || exit 1"})).unwrap().unwrap()
    };
    assert_eq!(["answer=42", "answer=41", "exit 0"].map(|code| of("echo {done}", code)), [1.0, 0.0, 0.0]);
    assert_eq!(["answer=42", "answer=41", "exit 0"].map(|code| of("", code)), [1.0, 0.0, 1.0]);
    let wrong = json!({"kind": "unit_tests", "command": ["sh"], "column": "t", "done": "print(\"{done}\")"});
    let error = RewardConfig::from_value(&wrong).unwrap().build().err().expect("an error");
    assert!(error.contains("`done` is not of its language"), "{error}");
}

#[test]
#[cfg(unix)]
fn python_and_node_say_that_their_tests_came_to_an_end() {
    let cases = [
        ("python3", "import sys\nsys.stdout = None\n", "assert answer() == 42", "import sys\nsys.exit(0)"),
        ("node", "", "if (answer() !== 42) { throw new Error() }", "process.exit(0)"),
    ];
    for (program, before, tests, exit) in cases {
        if std::process::Command::new(program).arg("--version").output().is_err() {
            eprintln!("skipped: there is no {program}");
            continue;
        }
        let function = |value: u32| match program {
            "node" => format!("function answer() {{ return {value} }}"),
            _ => format!("{before}def answer():\n    return {value}"),
        };
        let of = |code: &str| {
            let config =
                json!({"kind": "unit_tests", "command": [program, "-"], "column": "tests", "timeout": 30});
            score(config, code, 1, json!({"tests": tests})).unwrap().unwrap()
        };
        let found = [&function(42), &function(41), exit].map(of);
        assert_eq!(found, [1.0, 0.0, 0.0], "{program}");
    }
}

/// Waits until a process that wrote its number into a file is gone.
#[cfg(target_os = "linux")]
fn wait_for_end(file: &std::path::Path) {
    let number = std::fs::read_to_string(file).unwrap();
    let status = format!("/proc/{}/stat", number.trim());
    // A process that nobody waits for yet has ended, too.
    let runs = || std::fs::read_to_string(&status).is_ok_and(|stat| !stat.contains(") Z "));
    let started = Instant::now();
    while runs() {
        assert!(started.elapsed() < Duration::from_secs(20), "process {number} still runs");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A folder for the numbers of processes.
#[cfg(target_os = "linux")]
fn folder(name: &str) -> std::path::PathBuf {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
#[cfg(target_os = "linux")]
fn what_a_program_leaves_behind_ends_with_it() {
    let folder = folder("left_behind");
    let file = folder.join("of_tests");
    let code = format!("sleep 600 & echo $! > '{}'", file.display());
    assert_eq!(tested(&code, "true", 10), 1.0);
    wait_for_end(&file);

    // A reward that ends in the middle, and one that is no longer needed.
    for (name, last) in [("of_crash", "exit 3"), ("of_drop", "cat >/dev/null")] {
        let file = folder.join(name);
        let script = format!(
            "sleep 600 & echo $! > '{}'; read -r line; echo '{{\"id\":1,\"reward\":1}}'; {last}",
            file.display()
        );
        let scores = score_all(shell(&script), 1, 1);
        assert_eq!(scores.rewards, [[Some(1.0)]], "{:?}", scores.messages);
        wait_for_end(&file);
    }
}

/// Not a test: the process that the next one kills.
#[test]
#[cfg(target_os = "linux")]
#[ignore = "started by the test of a killed trainer"]
fn trainer() {
    let file = std::env::var("QLORA_TEST_REWARD_FILE").expect("the parent names the file");
    tested(&format!("echo $$ > '{file}.new'; mv '{file}.new' '{file}'; while :; do :; done"), "true", 600);
}

#[test]
#[cfg(target_os = "linux")]
fn code_does_not_outlive_a_trainer_that_is_killed() {
    let file = folder("killed").join("program");
    let _ = std::fs::remove_file(&file);
    let mut trainer = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["trainer", "--exact", "--ignored"])
        .env("QLORA_TEST_REWARD_FILE", &file)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while !file.exists() {
        assert!(started.elapsed() < Duration::from_secs(60), "the program was not started");
        std::thread::sleep(Duration::from_millis(10));
    }
    trainer.kill().unwrap();
    trainer.wait().unwrap();
    wait_for_end(&file);
}

#[test]
#[cfg(unix)]
fn programs_that_were_started_again_are_counted() {
    let reward = shell("read -r line; echo '{\"id\":1,\"reward\":1}'; read -r line; exit 1");
    let input = |ids: &'static [u32]| RewardInput {
        prompt: "p",
        completion: "c",
        completion_ids: ids,
        finished: true,
        columns: Box::leak(Box::default()),
    };
    assert_eq!((reward.score(&input(&[1])).unwrap(), reward.restarts()), (Some(1.0), 0));
    assert_eq!((reward.score(&input(&[1])).unwrap(), reward.restarts()), (Some(1.0), 1));
}

#[test]
fn a_panic_or_a_nan_masks_its_completion_and_threads_change_nothing() {
    let odd = |threads| {
        let reward = reward_fn("odd", |input: &RewardInput<'_>| match input.completion {
            "c1" => panic!("no such luck"),
            "c3" => Some(f64::NAN),
            text => Some(text.len() as f64),
        });
        score_all(reward, 16, threads)
    };
    let (one, many) = (odd(1), odd(8));
    assert_eq!(one, many);
    assert_eq!(one.errors, [2]);
    assert!(one.messages[&0].contains("no such luck"));
    assert_eq!((one.rewards[0][1], one.rewards[0][3], one.rewards[0][2]), (None, None, Some(2.0)));
}
