//! A GGUF file with two keys and one tensor, written by hand.

/// A sound file of about 200 bytes.
pub(crate) fn bytes() -> Vec<u8> {
    let mut file = Vec::new();
    let text = |file: &mut Vec<u8>, text: &str| {
        file.extend((text.len() as u64).to_le_bytes());
        file.extend(text.as_bytes());
    };
    file.extend(b"GGUF");
    file.extend(3_u32.to_le_bytes());
    file.extend(1_u64.to_le_bytes());
    file.extend(2_u64.to_le_bytes());
    text(&mut file, "general.architecture");
    file.extend(8_u32.to_le_bytes());
    text(&mut file, "mamba");
    text(&mut file, "sizes");
    file.extend(9_u32.to_le_bytes());
    file.extend(4_u32.to_le_bytes());
    file.extend(2_u64.to_le_bytes());
    file.extend([7_u32.to_le_bytes(), 9_u32.to_le_bytes()].concat());
    text(&mut file, "token_embd.weight");
    file.extend(2_u32.to_le_bytes());
    file.extend([3_u64.to_le_bytes(), 2_u64.to_le_bytes()].concat());
    file.extend(0_u32.to_le_bytes());
    file.extend(0_u64.to_le_bytes());
    file.resize(file.len().next_multiple_of(32), 0);
    file.extend((0..6).flat_map(|value| (value as f32).to_le_bytes()));
    file
}
