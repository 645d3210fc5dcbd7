//! Rotary position embedding (Su et al. 2021, <https://arxiv.org/abs/2104.09864>), rotate-half form.
//!
//! Element `i` of a head pairs with `i + d/2`, as in the checkpoints of Hugging Face:
//! `(x₁, x₂) → (x₁ cos − x₂ sin, x₂ cos + x₁ sin)`. The backward pass is the same with `−sin`.

use burn::tensor::Tensor;
use burn::tensor::ops::FloatTensor;

use crate::KernelBackend;
use crate::primitive::{primitive, statistics_dtype, tensor};

/// Rotates every head of `x` `[tokens, heads · d]` by the angles of its token.
///
/// `cos` and `sin` are `[tokens, d/2]` and constant. Differentiable in `x`.
#[must_use]
pub fn rope<B: KernelBackend>(x: Tensor<B, 2>, cos: Tensor<B, 2>, sin: Tensor<B, 2>) -> Tensor<B, 2> {
    tensor(B::rope(primitive(x), primitive(cos), primitive(sin), false))
}

pub(crate) fn reference<B: KernelBackend>(
    x: FloatTensor<B>,
    cos: FloatTensor<B>,
    sin: FloatTensor<B>,
    inverse: bool,
) -> FloatTensor<B> {
    let x = tensor::<B, 2>(x);
    let (dtype, [tokens, width]) = (x.dtype(), x.dims());
    let wide = statistics_dtype(dtype);
    let (cos, sin) = (tensor::<B, 2>(cos).cast(wide), tensor::<B, 2>(sin).cast(wide));
    let half = cos.dims()[1];
    let sin = if inverse { sin.neg() } else { sin };
    let (cos, sin) = (cos.unsqueeze_dim::<3>(1), sin.unsqueeze_dim::<3>(1));
    let x = x.cast(wide).reshape([tokens, width / (2 * half), 2 * half]);
    let (first, second) = (x.clone().narrow(2, 0, half), x.narrow(2, half, half));
    let rotated = Tensor::cat(
        vec![first.clone() * cos.clone() - second.clone() * sin.clone(), second * cos + first * sin],
        2,
    );
    primitive(rotated.reshape([tokens, width]).cast(dtype))
}
