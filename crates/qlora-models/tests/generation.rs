//! The generator: what is shared, waits or stops does not change what is drawn.

use qlora_kernels::{Flex, FlexDevice};
use qlora_models::{
    Checkpoint, Completion, Decoder, FinishReason, Flow, GenerateOptions, Generator, GeneratorOptions,
    LoadOptions, LoraConfig, ModelError, Request, Sampling, load,
};

fn model() -> Option<Decoder<Flex>> {
    let directory = qlora_testing::golden("tiny/llama_tied_rope3")?;
    let checkpoint = Checkpoint::open(directory).unwrap();
    Some(load::<Flex>(&checkpoint, LoadOptions::default(), &FlexDevice, &mut |_, _| {}).unwrap())
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

/// Adapters on and off in one generator: two models, whose keys are not mixed up.
#[test]
fn adapters_are_switched_by_request() {
    let Some(base) = model() else { return };
    let mut adapted = base.clone();
    let config = LoraConfig { rank: 4, alpha: 32.0, ..LoraConfig::default() };
    adapted.attach(&config, 3).unwrap();
    for (_, linear) in adapted.linears_mut() {
        if let Some(adapter) = linear.adapter_mut() {
            adapter.update_b(|b| b + 0.3);
        }
    }
    let prompt = prompt(40, 5);
    let request = |adapters| Request { max_new_tokens: 10, adapters, ..Request::new(prompt.clone()) };
    let mut generator = Generator::new(&adapted, GeneratorOptions::default());
    for adapters in [true, false, true] {
        generator.submit(request(adapters)).unwrap();
    }
    generator.run(&mut |_| Flow::Continue).unwrap();
    let answers = generator.take_all();
    let alone = |model: &Decoder<Flex>, adapters| {
        let mut generator = Generator::new(model, GeneratorOptions::default());
        generator.submit(request(adapters)).unwrap();
        generator.run(&mut |_| Flow::Continue).unwrap();
        generator.take(0)
    };
    assert_ne!(answers[0][0].ids, answers[1][0].ids, "the adapter changes the answer");
    assert_same(&answers[0], &alone(&adapted, true));
    assert_same(&answers[1], &alone(&base, true));
    assert_same(&answers[2], &answers[0]);
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

#[test]
fn requests_that_no_cache_holds_are_refused() {
    let Some(model) = model() else { return };
    let mut generator = Generator::new(&model, GeneratorOptions { pages: 2, ..Default::default() });
    let refused = generator.submit(Request { max_new_tokens: 30, ..Request::new(prompt(10, 0)) });
    assert!(matches!(refused, Err(ModelError::CacheTooSmall { tokens: 39, pages: 2 })), "{refused:?}");
}
