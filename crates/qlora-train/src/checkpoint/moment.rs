//! Optimizer moments on the host, and their entries in a file.

use qlora_files::safetensors::{Dtype, SafetensorsFile, Tensor, TensorBytes};
use qlora_kernels::quantized8::BLOCK;

/// A moment of the optimizer on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedMoment {
    /// The PEFT name of the parameter it belongs to.
    pub name: String,
    /// The parameter's shape.
    pub shape: Vec<usize>,
    /// Its elements, row-major.
    pub values: MomentValues,
}

/// The elements of a moment.
#[derive(Clone, Debug, PartialEq)]
pub enum MomentValues {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// One code of a dynamic map an element, one scale for 256 of them.
    EightBit {
        /// Codes.
        codes: Vec<u8>,
        /// Scales.
        absmax: Vec<f32>,
    },
}

const CODES: &str = ".codes";
const ABSMAX: &str = ".absmax";

impl NamedMoment {
    /// What a file holds of it: `NAME + suffix`, or two entries whose names end in `.codes` and `.absmax`.
    pub(super) fn entries<'a>(&'a self, suffix: &str) -> Vec<TensorBytes<'a>> {
        let name = format!("{}{suffix}", self.name);
        match &self.values {
            MomentValues::F32(values) => vec![TensorBytes::f32(name, self.shape.clone(), values)],
            MomentValues::EightBit { codes, absmax } => vec![
                TensorBytes::new(format!("{name}{CODES}"), Dtype::U8, self.shape.clone(), codes.as_slice()),
                TensorBytes::f32(format!("{name}{ABSMAX}"), [absmax.len()], absmax),
            ],
        }
    }

    /// The moments whose entries carry a suffix, in the order of their names.
    pub(super) fn read_all(file: &SafetensorsFile, suffix: &str) -> Result<Vec<Self>, String> {
        let (codes, absmax) = (format!("{suffix}{CODES}"), format!("{suffix}{ABSMAX}"));
        let mut moments = Vec::new();
        for tensor in file.tensors() {
            let of = |name: &str, values| Self { name: name.into(), shape: tensor.shape().to_vec(), values };
            if let Some(name) = tensor.name().strip_suffix(suffix) {
                moments.push(of(name, MomentValues::F32(floats(&tensor)?)));
            } else if let Some(name) = tensor.name().strip_suffix(&codes) {
                if tensor.dtype() != Dtype::U8 {
                    return Err(format!("`{}` is {}, expected U8", tensor.name(), tensor.dtype()));
                }
                let scales = format!("{name}{absmax}");
                let scales = file
                    .tensors()
                    .find(|tensor| tensor.name() == scales)
                    .ok_or_else(|| format!("`{scales}` is missing beside the codes"))?;
                let blocks = tensor.elements().div_ceil(BLOCK);
                if scales.shape() != [blocks] {
                    let (name, found) = (scales.name(), scales.shape());
                    return Err(format!("`{name}` has shape {found:?}, its codes need {blocks} scales"));
                }
                let codes = tensor.bytes().to_vec();
                moments.push(of(name, MomentValues::EightBit { codes, absmax: floats(&scales)? }));
            }
        }
        moments.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(moments)
    }
}

fn floats(tensor: &Tensor<'_>) -> Result<Vec<f32>, String> {
    tensor.to_f32().map_err(|error| error.to_string())
}
