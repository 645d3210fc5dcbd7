//! Writes small files, right or wrong, byte by byte.

/// The parts of a file; counts are those of the parts unless set.
pub(crate) struct File {
    pub(crate) magic: [u8; 4],
    pub(crate) version: u32,
    pub(crate) tensor_count: Option<u64>,
    pub(crate) entry_count: Option<u64>,
    pub(crate) entries: Vec<u8>,
    pub(crate) tensors: Vec<u8>,
    pub(crate) alignment: usize,
    pub(crate) data: Vec<u8>,
    entries_written: u64,
    tensors_written: u64,
}

pub(crate) fn text(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text].concat()
}

impl File {
    pub(crate) fn new() -> Self {
        Self {
            magic: *b"GGUF",
            version: 3,
            tensor_count: None,
            entry_count: None,
            entries: Vec::new(),
            tensors: Vec::new(),
            alignment: 32,
            data: Vec::new(),
            entries_written: 0,
            tensors_written: 0,
        }
    }

    /// A file with every kind of value and three tensors.
    pub(crate) fn sample() -> Self {
        let mut file = Self::new();
        file.entry(b"general.architecture", 8, &text(b"llama"));
        file.entry(b"general.alignment", 4, &32_u32.to_le_bytes());
        file.entry(b"u8", 0, &[200]);
        file.entry(b"i8", 1, &[(-5_i8) as u8]);
        file.entry(b"u16", 2, &60_000_u16.to_le_bytes());
        file.entry(b"i16", 3, &(-5_i16).to_le_bytes());
        file.entry(b"i32", 5, &(-5_i32).to_le_bytes());
        file.entry(b"f32", 6, &1.5_f32.to_le_bytes());
        file.entry(b"bool", 7, &[1]);
        file.entry(b"u64", 10, &(1_u64 << 40).to_le_bytes());
        file.entry(b"i64", 11, &(-5_i64).to_le_bytes());
        file.entry(b"f64", 12, &2.5_f64.to_le_bytes());
        file.array(b"tokens", 8, 2, &[text("a".as_bytes()), text("é".as_bytes())].concat());
        file.array(b"scores", 6, 2, &[1.0_f32.to_le_bytes(), (-1.0_f32).to_le_bytes()].concat());
        file.array(b"token_type", 5, 2, &[1_i32.to_le_bytes(), 3_i32.to_le_bytes()].concat());
        file.array(b"flags", 7, 3, &[1, 0, 1]);
        let inner = [&4_u32.to_le_bytes()[..], &1_u64.to_le_bytes(), &7_u32.to_le_bytes()].concat();
        file.array(b"nested", 9, 2, &[inner.clone(), inner].concat());
        file.tensor(b"dense", &[3, 2], 0, 0);
        file.tensor(b"blocks", &[32], 8, 32);
        file.tensor(b"half", &[1], 1, 96);
        file.data = vec![0; 98];
        for (i, chunk) in file.data[..24].chunks_mut(4).enumerate() {
            chunk.copy_from_slice(&(i as f32).to_le_bytes());
        }
        file.data[32..34].copy_from_slice(&half::f16::from_f32(0.5).to_le_bytes());
        file.data[34..66].copy_from_slice(&std::array::from_fn::<u8, 32, _>(|i| i as u8));
        file.data[96..98].copy_from_slice(&half::f16::from_f32(-2.0).to_le_bytes());
        file
    }

    pub(crate) fn entry(&mut self, key: &[u8], value_type: u32, value: &[u8]) {
        self.entries.extend(text(key));
        self.entries.extend(value_type.to_le_bytes());
        self.entries.extend(value);
        self.entries_written += 1;
    }

    pub(crate) fn array(&mut self, key: &[u8], element_type: u32, count: u64, elements: &[u8]) {
        let value = [&element_type.to_le_bytes()[..], &count.to_le_bytes(), elements].concat();
        self.entry(key, 9, &value);
    }

    /// `ne` in ggml's order: innermost first.
    pub(crate) fn tensor(&mut self, name: &[u8], ne: &[u64], ggml_type: u32, offset: u64) {
        self.tensors.extend(text(name));
        self.tensors.extend((ne.len() as u32).to_le_bytes());
        self.tensors.extend(ne.iter().flat_map(|n| n.to_le_bytes()));
        self.tensors.extend(ggml_type.to_le_bytes());
        self.tensors.extend(offset.to_le_bytes());
        self.tensors_written += 1;
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.magic);
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.tensor_count.unwrap_or(self.tensors_written).to_le_bytes());
        bytes.extend(self.entry_count.unwrap_or(self.entries_written).to_le_bytes());
        bytes.extend(&self.entries);
        bytes.extend(&self.tensors);
        if !self.data.is_empty() {
            bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
            bytes.extend(&self.data);
        }
        bytes
    }
}
