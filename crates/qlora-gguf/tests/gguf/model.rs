use qlora_gguf::{GgmlType, Gguf, GgufError};

#[test]
fn smollm2_opens_and_dequantizes() {
    let Some(path) = qlora_testing::model() else { return };
    let gguf = Gguf::open(&path).unwrap();
    let metadata = gguf.metadata();
    assert_eq!(metadata.string("general.architecture").unwrap(), "llama");
    assert_eq!(metadata.usize("llama.block_count").unwrap(), 30);
    assert_eq!(metadata.strings("tokenizer.ggml.tokens").unwrap().len(), 49_152);
    assert_eq!(gguf.parameter_count(), 134_515_008);
    assert_eq!(gguf.file_length(), std::fs::metadata(&path).unwrap().len());

    let embedding = gguf.tensor("token_embd.weight").unwrap();
    assert_eq!(embedding.shape(), [49_152, 576]);
    let values = embedding.dequantize().unwrap();
    let mean_square = values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / values.len() as f64;
    assert!(values.iter().all(|x| x.is_finite()));
    assert!((0.05..0.25).contains(&mean_square.sqrt()), "{}", mean_square.sqrt());

    let row = 17 * 576..18 * 576;
    let mut piece = vec![0.0; 576];
    embedding.dequantize_range(row.clone(), &mut piece).unwrap();
    assert_eq!(piece, values[row]);

    assert_eq!(gguf.tensor("blk.0.attn_k.weight").unwrap().shape(), [192, 576]);
    assert_eq!(gguf.tensor("blk.0.attn_norm.weight").unwrap().ggml_type(), GgmlType::F32);
    assert!(matches!(gguf.tensor("output.weight"), Err(GgufError::MissingTensor { .. })));
}
