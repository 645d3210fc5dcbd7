//! Which tensors a file has, in what order and format, and what is in them.

use std::io::Write;

use qlora_gguf::{GgmlType, ModelFacts, TensorSpec};

use super::GgufOptions;
use super::encode::encode;
use crate::{ExportError, ExportSource};

/// The tensors of a file, in file order.
pub(super) struct Plan<'a> {
    tensors: Vec<Planned>,
    options: GgufOptions<'a>,
}

struct Planned {
    spec: TensorSpec,
    content: Content,
}

enum Content {
    /// A tensor of the checkpoint by its Hugging Face name.
    Weight(String),
    /// The tensors of all experts of a layer, by the Hugging Face name of the first.
    Experts(String),
    /// Values that are no weights: divisors of rotary frequencies.
    Values(Vec<f32>),
}

impl<'a> Plan<'a> {
    pub(super) fn new(source: ExportSource<'_>, options: GgufOptions<'a>) -> Result<Self, ExportError> {
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
            match (gguf.expert, &config.experts) {
                (Some(expert), Some(experts)) => {
                    // The experts of a layer are one tensor, which the first of them stands for.
                    if expert == 0 {
                        let spec = TensorSpec::new(
                            gguf.tensor,
                            [&[experts.count], shape.as_slice()].concat(),
                            GgmlType::F32,
                        );
                        tensors.push(Planned { spec, content: Content::Experts(name) });
                    }
                }
                _ => {
                    let spec = TensorSpec::new(gguf.tensor, shape, GgmlType::F32);
                    tensors.push(Planned { spec, content: Content::Weight(name) });
                }
            }
        }
        let divisors = config.rope_scaling.divisors(config.rope_theta, config.head_dim);
        let [short, long] = config.rope_scaling.factors().map_or([None, None], |factors| factors.map(Some));
        for (name, divisors) in [
            ("rope_freqs.weight", divisors),
            ("rope_factors_short.weight", short),
            ("rope_factors_long.weight", long),
        ] {
            let Some(divisors) = divisors else { continue };
            let spec = TensorSpec::new(name, [divisors.len()], GgmlType::F32);
            tensors.push(Planned { spec, content: Content::Values(divisors) });
        }
        let facts = ModelFacts {
            architecture: config.family.gguf_architecture(),
            layers: config.layers,
            heads: config.heads,
            kv_heads: config.kv_heads,
            experts: config.experts.as_ref().map_or(0, |experts| experts.count),
        };
        let shapes: Vec<(&str, &[usize])> =
            tensors.iter().map(|tensor| (tensor.spec.name.as_str(), tensor.spec.shape.as_slice())).collect();
        let types = options.file_type.tensor_types(&facts, options.importance.is_some(), &shapes);
        for (tensor, ggml_type) in tensors.iter_mut().zip(types) {
            // Norms, biases and other vectors are f32, as llama.cpp needs them.
            tensor.spec.ggml_type = ggml_type.unwrap_or(GgmlType::F32);
        }
        Ok(Self { tensors, options })
    }

    pub(super) fn len(&self) -> usize {
        self.tensors.len()
    }

    pub(super) fn specs(&self) -> Vec<TensorSpec> {
        self.tensors.iter().map(|tensor| tensor.spec.clone()).collect()
    }

    /// The weights of a tensor's columns, `[matrices, columns]`, where its format takes any and the file has them.
    fn importance(
        &self,
        source: ExportSource<'_>,
        spec: &TensorSpec,
    ) -> Result<Option<Vec<f32>>, ExportError> {
        let Some(matrix) = self.options.importance.filter(|_| spec.ggml_type.block_len() > 1) else {
            return Ok(None);
        };
        let columns = spec.shape.last().copied().unwrap_or(0);
        let matrices = if spec.shape.len() == 3 { spec.shape[0] } else { 1 };
        let importance = matrix.importances(&spec.name, matrices, columns);
        if importance.is_none() && matrix.entries.contains_key(&spec.name) {
            return Err(ExportError::Inexpressible {
                path: source.checkpoint().path().to_owned(),
                what: format!("importances of `{}` for other sizes than {:?}", spec.name, spec.shape),
                form: "weights of its columns",
                hint: "; the importance matrix is of another model",
            });
        }
        Ok(importance)
    }

    /// Writes the blocks of a tensor.
    pub(super) fn write(
        &self,
        source: ExportSource<'_>,
        index: usize,
        out: &mut dyn Write,
    ) -> Result<(), ExportError> {
        let Planned { spec, content } = &self.tensors[index];
        let importance = self.importance(source, spec)?;
        let importance = importance.as_deref();
        match content {
            Content::Values(values) => encode(source, spec, values, importance, out),
            Content::Experts(first) => {
                for expert in 0..spec.shape[0] {
                    let name = first.replace(".experts.0.", &format!(".experts.{expert}."));
                    let values = source.tensor(&name, &spec.shape[1..])?;
                    let each = importance.map(|all| {
                        let columns = all.len() / spec.shape[0];
                        &all[expert * columns..(expert + 1) * columns]
                    });
                    encode(source, spec, &values, each, out)?;
                }
                Ok(())
            }
            Content::Weight(name) => {
                let config = source.checkpoint().config();
                source.pieces(name, &spec.shape, |values| {
                    let values = config.family.values_to_gguf(name, values, config);
                    encode(source, spec, &values, importance, out)
                })
            }
        }
    }
}
