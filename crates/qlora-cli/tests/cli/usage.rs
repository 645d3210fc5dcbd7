//! What is wrong with a command line is told with exit code 2, before anything is loaded.

use crate::program::{files, qlora};

#[test]
fn wrong_usage_is_exit_code_2() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    for (arguments, said) in [
        (&[][..], "Usage"),
        (&["fetsch", "x"], "fetch"),
        (&["generate", "--model", "m"], "--prompt"),
        (&["generate", "--model", "m", "--chat", "--prompt", "x"], "cannot be used with"),
        (&["generate", "--model", "m", "--chat", "--raw"], "cannot be used with"),
        (&["generate", "--model", "m", "--prompt", "x", "--max-tokens", "0"], "at least 1"),
        (&["generate", "--model", "m", "--prompt", "x", "--greedy", "--top-k", "3"], "cannot be used with"),
        (&["generate", "--model", "m", "--prompt", "x", "--temperature=-1"], "temperature is -1"),
        (&["generate", "--model", "m", "--prompt", "x", "--top-p", "0"], "top_p is 0"),
        (&["generate", "--model", "m", "--prompt", "x", "--top-h", "2"], "top_h is 2"),
        (&["generate", "--model", "m", "--prompt", "x", "--eta-cutoff", "1"], "eta_cutoff is 1"),
        (
            &["generate", "--model", "m", "--prompt", "x", "--min-tokens-to-keep", "0"],
            "min_tokens_to_keep is 0",
        ),
        (&["generate", "--model", "m", "--prompt", "x", "--greedy", "--top-h", "0.5"], "cannot be used with"),
        (&["logits", "--model", "m", "--ids", "i.json"], "--out"),
        (&["train"], "CONFIG.toml"),
        (&["data"], "check"),
        (&["data", "check", "x", "--epochs", "0"], "above 0"),
        (&["data", "render", "--template", "chatml"], "--messages"),
        (&["--threads", "0", "inspect", "x"], "threads"),
        (&["generate", "--model", "m", "--prompt", "x", "--quant", "q4"], "nf4"),
    ] {
        let ran = qlora(home, arguments);
        assert_eq!(ran.code, Some(2), "{arguments:?}: {ran:?}");
        assert!(ran.stderr.contains(said), "{arguments:?}: {}", ran.stderr);
    }
    assert!(files(home).is_empty());
}

#[cfg(not(feature = "cuda"))]
#[test]
fn an_absent_backend_says_how_to_get_it() {
    let home = tempfile::tempdir().unwrap();
    let arguments = ["generate", "--model", "m", "--prompt", "x", "--backend", "cuda"];
    qlora(home.path(), arguments).failed(2, &["no cuda backend", "it has cpu", "--features cuda"]);
    // Named in a configuration; the command line comes first.
    crate::tiny_model::write(home.path());
    crate::training::write_config(home.path(), "[device]\nbackend = 'cuda'\n");
    crate::training::write_rows(home.path(), 4);
    qlora(home.path(), ["train", "run.toml"]).failed(2, &["no cuda backend"]);
    let ran = qlora(home.path(), ["train", "run.toml", "--backend", "cpu", "--dtype", "f32"]).succeeded();
    assert!(ran.stderr.contains("computing on cpu, products in f32\n"), "{}", ran.stderr);
    assert!(
        std::fs::read_to_string(home.path().join("out/config.toml")).unwrap().contains("backend = \"cpu\"")
    );
}

#[test]
fn what_was_built_and_chosen_is_said() {
    let home = tempfile::tempdir().unwrap();
    let version = qlora(home.path(), ["--version"]).succeeded().stdout;
    assert!(version.contains("(backends: cpu"), "{version}");
    crate::tiny_model::write(home.path());
    crate::training::write_config(home.path(), "");
    crate::training::write_rows(home.path(), 4);
    let ran = qlora(home.path(), ["train", "run.toml"]).succeeded();
    assert!(
        ran.stderr.contains("computing on cpu, products in ") && ran.stderr.contains(" (this processor ")
    );
    qlora(home.path(), ["train", "run.toml", "--device", "1"]).failed(2, &["--device 1"]);
}

#[test]
fn help_and_version_succeed() {
    let home = tempfile::tempdir().unwrap();
    for arguments in [&["--help"][..], &["--version"], &["train", "--help"], &["help", "generate"]] {
        assert!(!qlora(home.path(), arguments).succeeded().stdout.is_empty());
    }
}
