//! The real model, from its GGUF file: logits, log-probabilities and greedy ids of transformers.
#![cfg(feature = "flex")]

use burn::tensor::Tensor;
use qlora_kernels::{Compute, Flex, FlexDevice};
use qlora_models::{Checkpoint, Decoder, GenerateOptions, LoadOptions, Pass, Quantization, TokenBatch, load};
use qlora_quant::Nf4Options;
use serde_json::Value;

fn open() -> Option<(Checkpoint, Value)> {
    let golden = qlora_testing::golden("smollm2/gguf_f32.json")?;
    let golden = serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
    Some((Checkpoint::open(qlora_testing::model()?).unwrap(), golden))
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn values(t: Tensor<Flex, 2>) -> Vec<f32> {
    t.into_data().to_vec().unwrap()
}

fn last_logits(model: &Decoder<Flex>, ids: &[u32]) -> Vec<f32> {
    let hidden = model.hidden_states(TokenBatch { ids, lengths: &[ids.len()] }, Pass::default());
    values(model.logits(hidden.narrow(0, ids.len() - 1, 1)))
}

#[test]
fn f32_equals_transformers() {
    let Some((checkpoint, golden)) = open() else { return };
    let model = load::<Flex>(&checkpoint, LoadOptions::default(), &FlexDevice, &mut |_, _| {}).unwrap();
    assert_eq!(model.config().parameter_count(), 134_515_008);
    for prompt in golden["prompts"].as_array().unwrap() {
        let name = prompt["prompt"].as_str().unwrap();
        let input = ids(&prompt["input_ids"]);
        let logits = last_logits(&model, &input);
        for pair in prompt["last_logits_top20"].as_array().unwrap() {
            let (token, expected) = (pair[0].as_u64().unwrap() as usize, pair[1].as_f64().unwrap() as f32);
            let difference = (logits[token] - expected).abs();
            assert!(difference < 2e-3, "{name}: logit of {token} is off by {difference}");
        }
        let (targets, mut weights) = ([&input[1..], &[0]].concat(), vec![1.0; input.len()]);
        weights[input.len() - 1] = 0.0;
        let batch = TokenBatch { ids: &input, lengths: &[input.len()] };
        let losses = model.token_losses(batch, &targets, &weights, Pass::default());
        for (got, expected) in
            losses.log_probs.iter().zip(prompt["prompt_token_logprobs"].as_array().unwrap())
        {
            assert!((f64::from(*got) - expected.as_f64().unwrap()).abs() < 2e-3, "{name}: log-probability");
        }
        let greedy = ids(&prompt["greedy_ids"]);
        let options = GenerateOptions { max_new_tokens: greedy.len(), ..GenerateOptions::default() };
        let completions = model.generate(&[&input], &options, &mut |_| true).unwrap();
        assert_eq!(completions[0].ids, greedy, "{name}: greedy ids");
    }
}

/// Products in bf16 change the losses of the NF4 model by no more than rounding does.
#[test]
fn bf16_products_stay_close() {
    let Some((checkpoint, golden)) = open() else { return };
    let losses = |compute| {
        let options = LoadOptions { quantization: Quantization::Nf4(Nf4Options::default()), compute };
        let model = load::<Flex>(&checkpoint, options, &FlexDevice, &mut |_, _| {}).unwrap();
        let input: Vec<u32> =
            golden["prompts"].as_array().unwrap().iter().flat_map(|p| ids(&p["input_ids"])).collect();
        let (targets, mut weights) = ([&input[1..], &[0]].concat(), vec![1.0; input.len()]);
        weights[input.len() - 1] = 0.0;
        let batch = TokenBatch { ids: &input, lengths: &[input.len()] };
        let losses = model.token_losses(batch, &targets, &weights, Pass::default()).losses;
        (losses.iter().sum::<f32>() / losses.len() as f32, model.weight_bytes())
    };
    let ((exact, _), (rounded, bytes)) = (losses(Compute::F32), losses(Compute::Bf16));
    assert!((rounded - exact).abs() < 0.05, "mean loss {rounded}, in f32 {exact}");
    assert!(bytes < 125_000_000, "{bytes} bytes");
}

/// New tokens have rows near the mean of all, none like another; what was there stays.
#[test]
fn special_tokens_are_added_on_purpose() {
    let Some(model) = qlora_testing::model() else { return };
    let open = || Checkpoint::open(&model).unwrap();
    let (before, mut checkpoint) = (open(), open());
    let rows = before.config().vocab_size;
    let name = "model.embed_tokens.weight";
    let tokens = ["<|im_end|>", "<|think|>", "<|answer|>"];
    let ids = checkpoint.add_special_tokens(&tokens).unwrap();
    assert_eq!(ids, [2, rows as u32, rows as u32 + 1], "a token that is there keeps its id");
    assert_eq!(checkpoint.config().vocab_size, rows + 2);
    checkpoint.check_tensors().unwrap();
    let tokenizer = checkpoint.tokenizer().unwrap();
    assert_eq!(tokenizer.encode("<|think|>").unwrap(), [ids[1]]);

    let hidden = before.config().hidden_size;
    let old = before.tensor(name, &[rows, hidden]).unwrap();
    let new = checkpoint.tensor(name, &[rows + 2, hidden]).unwrap();
    assert!(new[..old.len()] == old, "rows of other tokens stay");
    let piece = checkpoint.table_rows(name, rows - 1..rows + 2).unwrap().unwrap();
    assert!(piece == new[(rows - 1) * hidden..], "rows are the same in pieces and whole");

    let column = |column: usize| old[column..].iter().step_by(hidden).map(|&value| f64::from(value));
    let mut squares = [0.0, 0.0];
    for at in 0..hidden {
        let mean = column(at).sum::<f64>() / rows as f64;
        let variance = column(at).map(|value| (value - mean).powi(2)).sum::<f64>() / rows as f64;
        for (row, square) in squares.iter_mut().enumerate() {
            let away = f64::from(new[(rows + row) * hidden + at]) - mean;
            assert!(away.abs() < 0.18 * variance.sqrt(), "column {at}: {away} from the mean");
            *square += away * away / variance / hidden as f64;
        }
    }
    assert!(squares.iter().all(|square| (0.08..0.12).contains(&square.sqrt())), "{squares:?}");
    assert!(new[rows * hidden..(rows + 1) * hidden] != new[(rows + 1) * hidden..]);
    assert!(checkpoint.add_special_tokens(&[" "]).is_err());
}
