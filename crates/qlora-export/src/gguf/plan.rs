//! Which tensors a file has, in what order and format, and what is in them.

use std::io::Write;

use qlora_gguf::{GgmlType, TensorSpec};

use super::encode::encode;
use super::gguf_type::GgufType;
use crate::{ExportError, ExportSource};

/// The tensors of a file, in file order.
pub(super) struct Plan {
    tensors: Vec<Planned>,
}

struct Planned {
    spec: TensorSpec,
    content: Content,
}

enum Content {
    /// A tensor of the checkpoint by its Hugging Face name.
    Weight(String),
    /// Values that are no weights: divisors of rotary frequencies.
    Values(Vec<f32>),
}

impl Plan {
    pub(super) fn new(source: ExportSource<'_>, file_type: GgufType) -> Result<Self, ExportError> {
        let checkpoint = source.checkpoint();
        let config = checkpoint.config();
        let mut tensors = Vec::new();
        for (name, shape) in config.tensors() {
            let gguf = config.family.gguf_name(&name).ok_or_else(|| ExportError::Inexpressible {
                path: checkpoint.path().to_owned(),
                what: format!("tensor `{name}` of {}", config.family.name()),
                form: "GGUF",
                hint: "; llama.cpp has no such tensor for this architecture",
            })?;
            let ggml_type = file_type.tensor_type(&gguf, &shape);
            let spec = TensorSpec::new(gguf, shape, ggml_type);
            tensors.push(Planned { spec, content: Content::Weight(name) });
        }
        if let Some(divisors) = config.rope_scaling.divisors(config.rope_theta, config.head_dim) {
            let spec = TensorSpec::new("rope_freqs.weight", [divisors.len()], GgmlType::F32);
            tensors.push(Planned { spec, content: Content::Values(divisors) });
        }
        Ok(Self { tensors })
    }

    pub(super) fn len(&self) -> usize {
        self.tensors.len()
    }

    pub(super) fn specs(&self) -> Vec<TensorSpec> {
        self.tensors.iter().map(|tensor| tensor.spec.clone()).collect()
    }

    /// Writes the blocks of a tensor.
    pub(super) fn write(
        &self,
        source: ExportSource<'_>,
        index: usize,
        out: &mut dyn Write,
    ) -> Result<(), ExportError> {
        let Planned { spec, content } = &self.tensors[index];
        match content {
            Content::Values(values) => encode(source, spec, values, out),
            Content::Weight(name) => {
                let config = source.checkpoint().config();
                source.pieces(name, &spec.shape, |values| {
                    encode(source, spec, &config.family.rows_to_gguf(name, values, config), out)
                })
            }
        }
    }
}
