//! A GGUF file: header, metadata, tensor table; every tensor dequantized, the tokenizer built.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(file) = qlora_gguf::Gguf::from_bytes(data.to_vec()) else { return };
    for info in file.tensors() {
        let tensor = file.tensor(&info.name).expect("it is in the table");
        let _ = tensor.dequantize();
    }
    if let Ok(tokenizer) = qlora_text::Tokenizer::from_gguf(file.metadata()) {
        let ids = tokenizer.encode("a text, 12 <s>").unwrap_or_default();
        let _ = tokenizer.decode(&ids, false);
        let _ = tokenizer.chat_template();
    }
});
