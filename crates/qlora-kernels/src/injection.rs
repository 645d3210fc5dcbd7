//! A scalar with a given gradient.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{FloatDType, Shape, Tensor};

use crate::KernelBackend;
use crate::primitive::{primitive, tensor};

/// A zero, `[1]`, whose gradient with respect to `x` is `gradient`: calling `backward` on it goes on with a backward
/// pass that ended at a tensor equal to `x`. Numbers are not touched, so that two graphs, one after the other, give
/// the very bits of one graph.
///
/// # Panics
/// When `gradient` has another shape than `x`.
#[must_use]
pub fn inject_gradient<B: KernelBackend, const D: usize>(
    x: Tensor<B, D>,
    gradient: Tensor<B, D>,
) -> Tensor<B, 1> {
    assert_eq!(x.dims(), gradient.dims(), "a gradient has the shape of its tensor");
    tensor(B::inject_gradient(primitive(x), primitive(gradient)))
}

/// Nothing is differentiated here.
pub(crate) fn reference<B: KernelBackend>(x: &FloatTensor<B>) -> FloatTensor<B> {
    B::float_zeros(Shape::new([1]), &B::float_device(x), FloatDType::F32)
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::backend::Autodiff;

    use super::*;
    use crate::{Flex, FlexDevice};

    #[test]
    fn two_graphs_give_the_bits_of_one() {
        type B = Autodiff<Flex>;
        let x = Tensor::<B, 2>::from_data([[0.1, -0.7], [1e-20, 3.3]], &FlexDevice);
        let lower = |x: Tensor<B, 2>| x.exp() * 0.3;
        let upper = |h: Tensor<B, 2>| (h.clone() * h.sin()).sum();

        let whole = x.clone().require_grad();
        let expected = whole.grad(&upper(lower(whole.clone())).backward()).unwrap();

        let middle = lower(x.clone()).detach().require_grad();
        let gradient = middle.grad(&upper(middle.clone()).backward()).unwrap();
        let x = x.require_grad();
        let zero = inject_gradient(lower(x.clone()), Tensor::from_inner(gradient));
        assert_eq!(zero.to_data().to_vec::<f32>().unwrap(), [0.0]);
        let found = x.grad(&zero.backward()).unwrap();
        assert_eq!(found.to_data(), expected.to_data());
    }
}
