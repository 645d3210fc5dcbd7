//! Frozen weights as the kernels of `qlora-cpu` take them.

use burn::tensor::{DType, TensorMetadata, bf16, f16};
use burn_flex::{Flex, FlexTensor};
use qlora_cpu::{Absmax, Lora, Nf4View, Precision, Weight, WeightData};
use qlora_quant::dynamic_map;

use super::slices::{elements, floats, is_f32, rows};
use crate::linear::LoraParts;
use crate::nf4::AbsmaxParts;
use crate::weight::WeightParts;

/// A weight whose tensors are rows of memory.
pub(super) struct Host {
    shape: [usize; 2],
    data: HostData,
}

#[expect(clippy::large_enum_variant, reason = "lives for one call, on the stack")]
enum HostData {
    Dense(FlexTensor),
    Nf4 { codes: FlexTensor, absmax: HostAbsmax, block_size: usize, codebook: [f32; 16] },
}

enum HostAbsmax {
    Plain(FlexTensor),
    Double { codes: FlexTensor, nested_absmax: FlexTensor, offset: f32, nested_block: usize },
}

impl Host {
    pub(super) fn new(w: &WeightParts<Flex>) -> Self {
        let data = match w {
            WeightParts::Dense(values, _) => HostData::Dense(rows(values.clone())),
            WeightParts::Nf4(parts) => {
                let absmax = match &parts.absmax {
                    AbsmaxParts::Plain(absmax) => HostAbsmax::Plain(rows(absmax.clone())),
                    AbsmaxParts::Double { codes, nested_absmax, offset, nested_block } => {
                        HostAbsmax::Double {
                            codes: rows(codes.clone()),
                            nested_absmax: rows(nested_absmax.clone()),
                            offset: *offset,
                            nested_block: *nested_block,
                        }
                    }
                };
                let (block_size, codebook) = (parts.block_size, parts.codebook);
                HostData::Nf4 { codes: rows(parts.codes.clone()), absmax, block_size, codebook }
            }
        };
        Self { shape: w.shape(), data }
    }

    pub(super) fn weight(&self) -> Weight<'_> {
        let [rows, cols] = self.shape;
        let data = match &self.data {
            HostData::Dense(values) => match values.dtype() {
                DType::F32 => WeightData::F32(floats(values)),
                DType::BF16 => WeightData::Bf16(elements::<bf16>(values)),
                DType::F16 => WeightData::F16(elements::<f16>(values)),
                other => unreachable!("a {other:?} weight goes through the reference"),
            },
            HostData::Nf4 { codes, absmax, block_size, codebook } => {
                let absmax = match absmax {
                    HostAbsmax::Plain(absmax) => Absmax::Plain(floats(absmax)),
                    HostAbsmax::Double { codes, nested_absmax, offset, nested_block } => Absmax::Double {
                        codes: bytes(codes),
                        map: dynamic_map::signed().values(),
                        nested_absmax: floats(nested_absmax),
                        nested_block: *nested_block,
                        offset: *offset,
                    },
                };
                WeightData::Nf4(Nf4View { codes: bytes(codes), absmax, block_size: *block_size, codebook })
            }
        };
        Weight::new(rows, cols, data)
    }

    /// A row of a dense weight, as f32.
    pub(super) fn read_row(&self, row: usize, out: &mut [f32]) {
        let range = row * out.len()..(row + 1) * out.len();
        match self.weight().data() {
            WeightData::F32(values) => out.copy_from_slice(&values[range]),
            WeightData::Bf16(values) => {
                out.iter_mut().zip(&values[range]).for_each(|(out, value)| *out = value.to_f32());
            }
            WeightData::F16(values) => {
                out.iter_mut().zip(&values[range]).for_each(|(out, value)| *out = value.to_f32());
            }
            WeightData::Nf4(_) => unreachable!("rows of a dense weight"),
        }
    }
}

/// The bytes of U32 words. Little-endian words hold them in their order.
fn bytes(words: &FlexTensor) -> &[u8] {
    const { assert!(cfg!(target_endian = "little"), "packed codes are little-endian words") };
    bytemuck::cast_slice(elements::<u32>(words))
}

/// The factors of an adapter as rows of memory.
pub(super) struct HostLora {
    a: FlexTensor,
    b: FlexTensor,
    scale: f32,
}

impl HostLora {
    pub(super) fn new(lora: &LoraParts<Flex>) -> Self {
        Self { a: rows(lora.a.clone()), b: rows(lora.b.clone()), scale: lora.scale }
    }

    pub(super) fn rank(&self) -> usize {
        self.a.shape()[0]
    }

    pub(super) fn lora(&self) -> Lora<'_> {
        Lora { a: floats(&self.a), b: floats(&self.b), rank: self.rank(), scale: self.scale }
    }
}

/// Whether the kernels of `qlora-cpu` take these operands.
pub(super) fn supported(x: &FlexTensor, w: &WeightParts<Flex>, lora: Option<&LoraParts<Flex>>) -> bool {
    let weight = match w {
        WeightParts::Dense(values, _) => matches!(values.dtype(), DType::F32 | DType::BF16 | DType::F16),
        WeightParts::Nf4(_) => true,
    };
    weight && is_f32(x) && lora.is_none_or(|lora| is_f32(&lora.a) && is_f32(&lora.b))
}

pub(super) fn precision(w: &WeightParts<Flex>) -> Precision {
    super::products(w.compute())
}
