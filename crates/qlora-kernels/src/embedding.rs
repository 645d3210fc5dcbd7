//! Rows of a frozen table.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Int, Tensor, TensorData};

use crate::KernelBackend;
use crate::primitive::{primitive, tensor};
use crate::weight::{FrozenWeight, WeightParts};

/// Rows `ids` of `table` `[vocabulary, hidden]`: `[ids, hidden]`, in the type of activations.
///
/// # Panics
/// When an id is not below the size of the vocabulary.
#[must_use]
pub fn embedding<B: KernelBackend>(table: &FrozenWeight<B>, ids: &[u32]) -> Tensor<B, 2> {
    let [vocabulary, _] = table.shape();
    assert!(ids.iter().all(|id| (*id as usize) < vocabulary), "token ids must be below {vocabulary}");
    tensor(B::embedding_rows(&table.parts(), ids, B::activation_dtype(table.compute())))
}

pub(crate) fn reference<B: KernelBackend>(
    table: &WeightParts<B>,
    ids: &[u32],
    dtype: DType,
) -> FloatTensor<B> {
    let table = match table {
        WeightParts::Dense(values, _) => tensor::<B, 2>(values.clone()),
        WeightParts::Nf4(_) => tensor(table.dequantize(dtype)),
    };
    let device = table.device();
    let ids: Vec<i64> = ids.iter().map(|id| i64::from(*id)).collect();
    let count = ids.len();
    let ids = Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [count]), &device);
    primitive(table.select(0, ids).cast(dtype))
}
