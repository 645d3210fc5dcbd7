//! Rows of a frozen table.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Int, Tensor, TensorData};

use crate::KernelBackend;
use crate::norm::residual_dtype;
use crate::primitive::{primitive, tensor};
use crate::weight::{FrozenWeight, WeightParts};

/// Rows `ids` of `table` `[vocabulary, hidden]`: `[ids, hidden]`, in the type of the residual stream.
///
/// # Panics
/// When an id is not below the size of the vocabulary.
#[must_use]
pub fn embedding<B: KernelBackend>(table: &FrozenWeight<B>, ids: &[u32]) -> Tensor<B, 2> {
    let [vocabulary, _] = table.shape();
    assert!(ids.iter().all(|id| (*id as usize) < vocabulary), "token ids must be below {vocabulary}");
    let dtype = residual_dtype(B::activation_dtype(table.compute()));
    tensor(B::embedding_rows(&table.parts(), ids, dtype))
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

/// The gradient `[vocabulary, hidden]`, f32, of a table of which rows `ids` were looked up.
///
/// `dout` `[ids, hidden]` is the gradient of those rows; the gradients of an id that occurs several times add up,
/// in the order of the rows.
///
/// # Panics
/// When an id is not below `vocabulary`, or `dout` has not one row an id.
#[must_use]
pub fn embedding_gradient<B: KernelBackend>(
    dout: Tensor<B, 2>,
    ids: &[u32],
    vocabulary: usize,
) -> Tensor<B, 2> {
    assert_eq!(dout.dims()[0], ids.len(), "one row an id");
    assert!(ids.iter().all(|id| (*id as usize) < vocabulary), "token ids must be below {vocabulary}");
    tensor(B::embedding_gradient(primitive(dout), ids, vocabulary))
}

pub(crate) fn gradient_reference<B: KernelBackend>(
    dout: FloatTensor<B>,
    ids: &[u32],
    vocabulary: usize,
) -> FloatTensor<B> {
    let dout = tensor::<B, 2>(dout).cast(DType::F32);
    let (device, [_, width]) = (dout.device(), dout.dims());
    let ids: Vec<i64> = ids.iter().map(|id| i64::from(*id)).collect();
    let count = ids.len();
    let ids = Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [count]), &device);
    let zeros = Tensor::<B, 2>::zeros([vocabulary, width], (&device, DType::F32));
    primitive(zeros.select_assign(0, ids, dout, burn::tensor::IndexingUpdateOp::Add))
}
