//! The generator: what is shared, waits or stops does not change what is drawn.

use std::fs;
use std::path::Path;

use qlora_kernels::{Flex, FlexDevice};
use qlora_models::{
    Checkpoint, Completion, Decoder, FinishReason, Flow, GenerateOptions, Generator, GeneratorOptions,
    LoadOptions, LoraConfig, ModelError, Pass, Request, Sampling, TokenBatch, load,
};

fn model() -> Option<Decoder<Flex>> {
    let directory = qlora_testing::golden("tiny/llama_tied_rope3")?;
    let checkpoint = Checkpoint::open(directory).unwrap();
    Some(load::<Flex>(&checkpoint, LoadOptions::default(), &FlexDevice, &mut |_, _| {}).unwrap())
}

/// The tiny models of two rotations that depend on the length; from 65 tokens on they are not those of the training.
fn scaled(name: &str) -> Decoder<Flex> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let folder = tempfile::tempdir().unwrap();
    let mut keys: serde_json::Value =
        serde_json::from_slice(&fs::read(source.join("config.json")).unwrap()).unwrap();
    if name == "llama_dynamic" {
        keys["max_position_embeddings"] = 64.into();
    }
    fs::write(folder.path().join("config.json"), keys.to_string()).unwrap();
    fs::copy(source.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    load::<Flex>(&checkpoint, LoadOptions::default(), &FlexDevice, &mut |_, _| {}).unwrap()
}

fn serve(generator: &mut Generator<Flex>, request: Request) -> Vec<Completion> {
    let number = generator.submit(request).unwrap();
    generator.run(&mut |_| Flow::Continue).unwrap();
    generator.take(number)
}

fn serve_alone(model: &Decoder<Flex>, request: Request) -> Vec<Completion> {
    serve(&mut Generator::new(model, GeneratorOptions::default()), request)
}

fn warm() -> Sampling {
    Sampling { temperature: 1.0, ..Sampling::default() }
}

fn prompt(length: usize, seed: u32) -> Vec<u32> {
    (0..length as u32).map(|i| (i * 31 + seed * 17 + 5) % 90).collect()
}

/// Close enough for two ways to sum the same numbers.
fn assert_same(left: &[Completion], right: &[Completion]) {
    assert_eq!(left.len(), right.len());
    for (left, right) in left.iter().zip(right) {
        assert_eq!((&left.ids, left.finish), (&right.ids, right.finish));
        for (a, b) in left.log_probs.iter().zip(&right.log_probs) {
            assert!((a - b).abs() < 1e-4, "{a} against {b}");
        }
    }
}

/// Eight completions of each prompt, whose lengths end within a page and at its end: each as if it were alone.
#[test]
fn completions_of_a_prompt_share_it() {
    let Some(model) = model() else { return };
    let prompts = [prompt(5, 1), prompt(16, 2), prompt(33, 3)];
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let options = GenerateOptions {
        max_new_tokens: 20,
        completions: 8,
        sampling: warm(),
        seed: 7,
        ..GenerateOptions::default()
    };
    let together = model.generate(&prompts, &options, &mut |_| true).unwrap();
    assert_eq!(together.len(), 24);
    assert_ne!(together[0].ids, together[1].ids, "completions are drawn on their own");
    for (index, prompt) in prompts.iter().enumerate() {
        for completion in 0..8 {
            let request = Request {
                max_new_tokens: 20,
                sampling: warm(),
                seed: 7,
                first_stream: (index * 8 + completion) as u64,
                ..Request::new(prompt.to_vec())
            };
            let mut generator = Generator::new(&model, GeneratorOptions::default());
            generator.submit(request).unwrap();
            generator.run(&mut |_| Flow::Continue).unwrap();
            assert_same(&generator.take(0), &together[index * 8 + completion..][..1]);
        }
    }
}

/// With room for few sequences the others wait; what is drawn stays the same.
#[test]
fn requests_wait_for_room() {
    let Some(model) = model() else { return };
    let prompts: Vec<Vec<u32>> = (0..9).map(|i| prompt(1 + 7 * i as usize % 40, i)).collect();
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let options = GenerateOptions {
        max_new_tokens: 12,
        completions: 3,
        sampling: warm(),
        stop_tokens: vec![3, 11, 40, 60, 61, 62],
        ..GenerateOptions::default()
    };
    let all = model.generate(&prompts, &options, &mut |_| true).unwrap();
    assert!(all.iter().any(|one| one.finish == FinishReason::Stop && one.ids.len() < 12));
    assert!(all.iter().any(|one| one.finish == FinishReason::Length));
    for max_sequences in [1, 2, 5] {
        let options = GenerateOptions { max_sequences, ..options.clone() };
        assert_same(&model.generate(&prompts, &options, &mut |_| true).unwrap(), &all);
    }
}

/// A conversation that goes on computes only what is new, and says the same as one that is computed afresh.
#[test]
fn a_conversation_goes_on_from_its_cache() {
    let Some(model) = model() else { return };
    let mut generator = Generator::new(&model, GeneratorOptions { pages: 12, ..Default::default() });
    let request = |prompt: &[u32]| Request { max_new_tokens: 18, ..Request::new(prompt.to_vec()) };
    let mut conversation = prompt(20, 4);
    for turn in 0..3 {
        let number = generator.submit(request(&conversation)).unwrap();
        generator.run(&mut |_| Flow::Continue).unwrap();
        let cached = generator.take(number);
        let mut fresh = Generator::new(&model, GeneratorOptions { pages: 12, ..Default::default() });
        fresh.submit(request(&conversation)).unwrap();
        fresh.run(&mut |_| Flow::Continue).unwrap();
        assert_same(&cached, &fresh.take(0));
        conversation.extend(&cached[0].ids);
        conversation.extend(prompt(6, turn));
    }
    // Another conversation needs the pages; the first is then computed again.
    let number = generator.submit(request(&prompt(100, 9))).unwrap();
    generator.run(&mut |_| Flow::Continue).unwrap();
    assert_eq!(generator.take(number)[0].ids.len(), 18);
}

/// A long prompt, its beginning, a conversation that grows past the original context: each as if it were alone.
#[test]
fn keys_are_shared_only_by_sequences_that_are_rotated_alike() {
    for name in ["phi3_short", "llama_dynamic"] {
        let model = scaled(name);
        let mut generator = Generator::new(&model, GeneratorOptions::default());
        let mut check = |prompt: &[u32]| {
            let request = Request { max_new_tokens: 20, ..Request::new(prompt.to_vec()) };
            let cached = serve(&mut generator, request.clone());
            assert_same(&cached, &serve_alone(&model, request));
            [prompt, &cached[0].ids].concat()
        };
        let long = prompt(100, 1);
        for length in [100, 40, 99, 100, 41] {
            check(&long[..length]);
        }
        let mut conversation = prompt(20, 4);
        for turn in 0..3 {
            conversation = check(&conversation);
            conversation.extend(prompt(6, turn));
        }
        assert!(conversation.len() > 64 + 16, "beyond the original context");
    }
}

/// A completion that outgrows the original context goes on as if its sequence had always been long.
#[test]
fn a_sequence_that_outgrows_its_context_is_computed_again() {
    let model = scaled("phi3_short");
    let mut sequence = prompt(50, 2);
    let request = Request { max_new_tokens: 30, ..Request::new(sequence.clone()) };
    for id in serve_alone(&model, request)[0].ids.clone() {
        let batch = TokenBatch { ids: &sequence, lengths: &[sequence.len()] };
        let logits = model.logits(model.hidden_states(batch, Pass::default()));
        let logits = logits.into_data().to_vec::<f32>().unwrap();
        let last = &logits[logits.len() - model.config().vocab_size..];
        let best = (0..last.len()).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
        assert_eq!(best as u32, id, "after {} tokens", sequence.len());
        sequence.push(id);
    }
}

/// Where the cache has room for few of the sequences that are computed again, the others wait.
#[test]
fn outgrown_sequences_wait_for_room() {
    let model = scaled("phi3_short");
    let request = Request {
        completions: 4,
        max_new_tokens: 40,
        sampling: warm(),
        seed: 3,
        stop_tokens: vec![7, 8],
        ..Request::new(prompt(50, 2))
    };
    let all = serve_alone(&model, request.clone());
    assert!(all.iter().any(|one| one.ids.len() > 15), "some go beyond 64 tokens");
    for pages in [6, 9, 13] {
        let options = GeneratorOptions { pages, ..GeneratorOptions::default() };
        assert_same(&serve(&mut Generator::new(&model, options), request.clone()), &all);
    }
}

/// The model with adapters that change much.
fn adapted(base: &Decoder<Flex>, seed: u64) -> Decoder<Flex> {
    let mut adapted = base.clone();
    let config = LoraConfig { rank: 4, alpha: 32.0, ..LoraConfig::default() };
    adapted.attach(&config, seed).unwrap();
    for (_, linear) in adapted.linears_mut() {
        if let Some(adapter) = linear.adapter_mut() {
            adapter.update_b(|b| b + 0.3);
        }
    }
    adapted
}

/// The base and two adapters in one generator: three models, whose keys are not mixed up.
#[test]
fn adapters_are_switched_by_request() {
    let Some(base) = model() else { return };
    let (one, other) = (adapted(&base, 3), adapted(&base, 4));
    let prompt = prompt(40, 5);
    let request = |adapter| Request { max_new_tokens: 10, adapter, ..Request::new(prompt.clone()) };
    let mut generator = Generator::new(&one, GeneratorOptions::default());
    assert_eq!(generator.add_adapters(&other.adapter_set()).unwrap(), 1);
    for adapter in [Some(0), None, Some(1), Some(0), Some(1)] {
        generator.submit(request(adapter)).unwrap();
    }
    generator.run(&mut |_| Flow::Continue).unwrap();
    let answers = generator.take_all();
    let expected = [&one, &base, &other].map(|model| serve_alone(model, request(Some(0))));
    assert_ne!(answers[0][0].ids, answers[1][0].ids, "the adapter changes the answer");
    assert_ne!(answers[0][0].ids, answers[2][0].ids, "the other differs");
    for (answer, expected) in answers.iter().zip([0, 1, 2, 0, 2].map(|model| &expected[model])) {
        assert_same(answer, expected);
    }
    let refused = generator.submit(request(Some(2)));
    assert!(matches!(refused, Err(ModelError::UnknownAdapter { adapter: 2, held: 2 })), "{refused:?}");
}

#[test]
fn completions_are_stopped_and_cancelled() {
    let Some(model) = model() else { return };
    let mut generator = Generator::new(&model, GeneratorOptions { max_sequences: 2, ..Default::default() });
    for i in 0..3 {
        generator.submit(Request { max_new_tokens: 9, ..Request::new(prompt(4, i)) }).unwrap();
    }
    let mut seen = 0;
    generator
        .run(&mut |token| {
            seen += 1;
            match (token.prompt, seen) {
                (0, _) => Flow::Stop,
                (_, 8..) => Flow::Cancel,
                _ => Flow::Continue,
            }
        })
        .unwrap();
    let made = generator.take_all().concat();
    assert_eq!((made[0].finish, made[0].ids.len()), (FinishReason::Stop, 1));
    assert!(made[1..].iter().all(|one| one.finish == FinishReason::Cancelled && one.ids.len() < 9));
    assert_eq!(seen, 8);
}

/// What is under way or waits when it is taken ends there; others do not notice.
#[test]
fn requests_are_taken_before_their_end() {
    let Some(model) = model() else { return };
    let mut generator = Generator::new(&model, GeneratorOptions { max_sequences: 3, ..Default::default() });
    let request = |seed| Request { max_new_tokens: 9, completions: 2, ..Request::new(prompt(20, seed)) };
    for seed in 0..3 {
        generator.submit(request(seed)).unwrap();
    }
    assert!(generator.step(&mut |_| Flow::Continue).unwrap());
    for (number, made) in [(0, [1, 1]), (1, [1, 0])] {
        let taken = generator.take(number);
        assert_eq!(taken.iter().map(|one| one.ids.len()).collect::<Vec<_>>(), made);
        assert!(taken.iter().all(|one| one.finish == FinishReason::Cancelled));
        assert!(generator.take(number).is_empty());
    }
    generator.run(&mut |_| Flow::Continue).unwrap();
    assert_same(&generator.take(2), &serve_alone(&model, request(2)));
    assert!(generator.take(3).is_empty());
}

#[test]
fn at_least_one_sequence_is_decoded() {
    let Some(model) = model() else { return };
    let mut generator = Generator::new(&model, GeneratorOptions { max_sequences: 0, ..Default::default() });
    let made = serve(&mut generator, Request { max_new_tokens: 3, ..Request::new(prompt(4, 0)) });
    assert_eq!(made[0].ids.len(), 3);
}

#[test]
fn requests_that_no_cache_holds_are_refused() {
    let Some(model) = model() else { return };
    let mut generator = Generator::new(&model, GeneratorOptions { pages: 2, ..Default::default() });
    let refused = generator.submit(Request { max_new_tokens: 30, ..Request::new(prompt(10, 0)) });
    assert!(matches!(refused, Err(ModelError::CacheTooSmall { tokens: 39, pages: 2 })), "{refused:?}");
}
