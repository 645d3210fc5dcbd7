//! The loss of next-token prediction, fused with the head that makes the logits.
//!
//! `z = softcap(logit_scale · hidden · headᵀ)`, `lossᵢ = lse(zᵢ) − z_{i,target}`, label smoothing as torch:
//! `(1−ε) · loss + ε · (lse − mean(z))`. The logits of a few tokens exist at a time, the gradient with
//! respect to `hidden` is computed in the same pass, and tokens of weight zero are not computed at all.

use std::sync::Arc;

use burn::tensor::ops::FloatTensor;
use burn::tensor::{Int, Tensor, TensorData, TensorMetadata};

use crate::KernelBackend;
use crate::linear;
use crate::primitive::{primitive, statistics_dtype, tensor};
use crate::weight::{FrozenWeight, WeightParts};

/// How logits become a loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CrossEntropyOptions {
    /// Factor of the logits, before the soft cap.
    pub logit_scale: f32,
    /// `cap · tanh(logit / cap)`.
    pub softcap: Option<f32>,
    /// ε of label smoothing.
    pub label_smoothing: f32,
}

impl Default for CrossEntropyOptions {
    fn default() -> Self {
        Self { logit_scale: 1.0, softcap: None, label_smoothing: 0.0 }
    }
}

/// Which tokens are predicted, and how.
#[derive(Clone, Debug)]
pub struct CrossEntropySpec {
    /// The token that each row predicts.
    pub targets: Arc<[u32]>,
    /// The weight of each row in the loss.
    pub weights: Arc<[f32]>,
    /// How logits become a loss.
    pub options: CrossEntropyOptions,
}

/// What the loss is made of, for each token of non-zero weight, in order. For metrics and for rewards.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenLosses {
    /// Loss of each token, nats.
    pub losses: Vec<f32>,
    /// Log-probability of each target.
    pub log_probs: Vec<f32>,
    /// Entropy of each distribution, nats.
    pub entropies: Vec<f32>,
    /// Whether the target was the most likely token.
    pub correct: Vec<bool>,
}

/// What the forward pass is to give beside the loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LossParts {
    /// The gradient with respect to `hidden`.
    pub grad: bool,
    /// The losses token by token. They are read back from the device, which a training step must not wait for.
    pub tokens: bool,
}

/// What the forward pass gives.
#[derive(Clone, Debug)]
pub struct LossOutput<B: KernelBackend> {
    /// `Σ weight · loss`, `[1]`.
    pub loss: FloatTensor<B>,
    /// The loss token by token, if asked for.
    pub tokens: Option<TokenLosses>,
    /// Gradient of the loss with respect to `hidden`, if asked for.
    pub dhidden: Option<FloatTensor<B>>,
}

/// `Σ weightᵢ · lossᵢ` of the tokens that `hidden` `[tokens, features]` predicts through `head`
/// `[vocabulary, features]`: a tensor of one element, differentiable in `hidden`.
///
/// # Panics
/// When `targets` and `weights` have not one element a row, or a target is outside of the vocabulary.
#[must_use]
pub fn linear_cross_entropy<B: KernelBackend>(
    hidden: Tensor<B, 2>,
    head: &FrozenWeight<B>,
    targets: &[u32],
    weights: &[f32],
    options: CrossEntropyOptions,
) -> Tensor<B, 1> {
    let spec = checked(hidden.dims()[0], head, targets, weights, options);
    tensor(B::linear_cross_entropy(primitive(hidden), &head.parts(), &spec))
}

/// Losses, log-probabilities and entropies of the tokens of non-zero weight; nothing to differentiate.
///
/// # Panics
/// As [`linear_cross_entropy`].
#[must_use]
pub fn token_losses<B: KernelBackend>(
    hidden: Tensor<B, 2>,
    head: &FrozenWeight<B>,
    targets: &[u32],
    weights: &[f32],
    options: CrossEntropyOptions,
) -> TokenLosses {
    let spec = checked(hidden.dims()[0], head, targets, weights, options);
    let parts = LossParts { tokens: true, grad: false };
    let out = B::linear_cross_entropy_forward(primitive(hidden), &head.parts(), &spec, parts);
    out.tokens.expect("the losses of tokens were asked for")
}

/// `hidden · headᵀ` in f32: `[tokens, vocabulary]`. Nothing to differentiate.
///
/// # Panics
/// When the inner sizes differ.
#[must_use]
pub fn logits<B: KernelBackend>(hidden: Tensor<B, 2>, head: &FrozenWeight<B>) -> Tensor<B, 2> {
    let [vocabulary, width] = head.shape();
    assert_eq!(hidden.dims()[1], width, "the head is [{vocabulary}, {width}]");
    tensor(B::logits(primitive(hidden), &head.parts()))
}

pub(crate) fn logits_reference<B: KernelBackend>(
    hidden: FloatTensor<B>,
    head: &WeightParts<B>,
) -> FloatTensor<B> {
    let wide = statistics_dtype(hidden.dtype());
    primitive(tensor::<B, 2>(B::linear_forward(hidden, head, None, None).y).cast(wide))
}

fn checked<B: KernelBackend>(
    rows: usize,
    head: &FrozenWeight<B>,
    targets: &[u32],
    weights: &[f32],
    options: CrossEntropyOptions,
) -> CrossEntropySpec {
    assert_eq!((targets.len(), weights.len()), (rows, rows), "one target and one weight a row");
    let [vocabulary, _] = head.shape();
    let inside = targets.iter().zip(weights).all(|(t, w)| *w == 0.0 || (*t as usize) < vocabulary);
    assert!(inside, "targets must be below {vocabulary}");
    CrossEntropySpec { targets: targets.into(), weights: weights.into(), options }
}

/// Rows whose logits exist at a time in the reference.
const CHUNK: usize = 256;

pub(crate) fn forward<B: KernelBackend>(
    hidden: FloatTensor<B>,
    head: &WeightParts<B>,
    spec: &CrossEntropySpec,
    parts: LossParts,
) -> LossOutput<B> {
    let hidden = tensor::<B, 2>(hidden);
    let (device, dtype, [_, width]) = (hidden.device(), hidden.dtype(), hidden.dims());
    let wide = statistics_dtype(dtype);
    let CrossEntropyOptions { logit_scale, softcap, label_smoothing } = spec.options;
    let trained: Vec<usize> = (0..spec.weights.len()).filter(|i| spec.weights[*i] != 0.0).collect();
    let mut tokens = parts.tokens.then(TokenLosses::default);
    let mut total = Tensor::<B, 1>::zeros([1], (&device, wide));
    let mut dhidden = parts.grad.then(|| hidden.zeros_like());
    for rows in trained.chunks(CHUNK) {
        let count = rows.len();
        let select =
            |values: Vec<i64>| Tensor::<B, 1, Int>::from_data(TensorData::new(values, [count]), &device);
        let index = select(rows.iter().map(|row| *row as i64).collect());
        let target =
            select(rows.iter().map(|row| i64::from(spec.targets[*row])).collect()).reshape([count, 1]);
        let weight: Vec<f32> = rows.iter().map(|row| spec.weights[*row]).collect();
        let weight = Tensor::<B, 1>::from_data(TensorData::new(weight, [count]), (&device, wide));
        let x = hidden.clone().select(0, index.clone());
        let z = tensor::<B, 2>(linear::forward(primitive(x), head, None, None).y).cast(wide) * logit_scale;
        let z = match softcap {
            Some(cap) => (z / cap).tanh() * cap,
            None => z,
        };
        let vocabulary = z.dims()[1];
        let max = z.clone().max_dim(1);
        let lse = (z.clone() - max.clone()).exp().sum_dim(1).log() + max.clone();
        let p = (z.clone() - lse.clone()).exp();
        let at_target = z.clone().gather(1, target.clone());
        let log_prob = at_target.clone() - lse.clone();
        let smooth = lse.clone() - z.clone().mean_dim(1);
        let loss = log_prob.clone().neg() * (1.0 - label_smoothing) + smooth * label_smoothing;
        total = total + (loss.clone().squeeze_dim::<1>(1) * weight.clone()).sum();
        if let Some(tokens) = &mut tokens {
            let values = |t: Tensor<B, 2>| t.into_data().iter::<f32>().collect::<Vec<_>>();
            let entropy = lse - (p.clone() * z.clone()).sum_dim(1);
            tokens.correct.extend(values(at_target).iter().zip(values(max)).map(|(t, m)| *t >= m));
            tokens.losses.extend(values(loss));
            tokens.log_probs.extend(values(log_prob));
            tokens.entropies.extend(values(entropy));
        }
        if let Some(grad) = dhidden.take() {
            let one_hot = z.zeros_like().scatter(
                1,
                target,
                Tensor::ones([count, 1], (&device, wide)),
                burn::tensor::IndexingUpdateOp::Add,
            );
            let label = one_hot * (1.0 - label_smoothing) + f64::from(label_smoothing) / vocabulary as f64;
            let mut dz = (p - label) * weight.unsqueeze_dim::<2>(1) * logit_scale;
            if let Some(cap) = softcap {
                dz = dz * ((z / cap).powf_scalar(2.0).neg() + 1.0);
            }
            let dx = tensor::<B, 2>(linear::grad_input(primitive(dz.cast(dtype)), head, None).dx);
            debug_assert_eq!(dx.dims(), [count, width]);
            dhidden = Some(grad.select_assign(0, index, dx, burn::tensor::IndexingUpdateOp::Add));
        }
    }
    debug_assert_eq!(total.dtype(), wide);
    LossOutput { loss: primitive(total), tokens, dhidden: dhidden.map(primitive) }
}

/// The gradient of `hidden` times the gradient that arrives at the loss.
pub(crate) fn scale_gradient<B: KernelBackend>(
    dhidden: FloatTensor<B>,
    dloss: FloatTensor<B>,
) -> FloatTensor<B> {
    let dtype = dhidden.dtype();
    // Multiplied in the type of the loss: its scale may be beyond what an f16 can hold.
    let factor = tensor::<B, 1>(dloss).unsqueeze::<2>();
    let wide = factor.dtype();
    primitive((tensor::<B, 2>(dhidden).cast(wide) * factor).cast(dtype))
}
