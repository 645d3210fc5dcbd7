//! The gated MLP of a layer, and a mixture of them.

use burn::module::Module;
use burn::tensor::activation::softmax;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData};
use qlora_kernels::{Activation, FrozenWeight, KernelBackend, linear};
use qlora_lora::{AdaptedLinear, Pass};

use crate::layer::LayerContext;

/// `down(act(gate(x)) ⊙ up(x))`.
#[derive(Module, Debug)]
pub struct GatedMlp<B: Backend> {
    /// Gate and up; or one layer whose rows are those of both.
    pub(crate) gate_up: Vec<AdaptedLinear<B>>,
    pub(crate) down_proj: AdaptedLinear<B>,
}

/// The MLPs of a layer: one, or as many as there are experts.
#[derive(Module, Debug)]
pub struct Mlp<B: Backend> {
    pub(crate) experts: Vec<GatedMlp<B>>,
    /// `[experts, hidden]`, frozen; `None`: there is one MLP, for all tokens.
    pub(crate) router: Option<FrozenWeight<B>>,
}

impl<B: KernelBackend> GatedMlp<B> {
    fn forward(&self, x: Tensor<B, 2>, activation: Activation, pass: Pass) -> Tensor<B, 2> {
        let (gate, up) = match &self.gate_up[..] {
            [gate_proj, up_proj] => (gate_proj.forward(x.clone(), pass), up_proj.forward(x, pass)),
            fused => {
                let both = fused[0].forward(x, pass);
                let width = both.dims()[1] / 2;
                (both.clone().narrow(1, 0, width), both.narrow(1, width, width))
            }
        };
        self.down_proj.forward_gated(activation, gate, up, pass)
    }
}

impl<B: KernelBackend> Mlp<B> {
    /// Rows `x` `[tokens, hidden]` to `[tokens, hidden]`.
    pub(crate) fn forward(&self, x: Tensor<B, 2>, context: &LayerContext<B>) -> Tensor<B, 2> {
        let config = &*context.config;
        let (Some(router), Some(experts)) = (&self.router, &config.experts) else {
            return self.experts[0].forward(x, config.activation, context.pass);
        };
        let [tokens, hidden] = x.dims();
        let (device, dtype) = (x.device(), x.dtype());
        let indices = |rows: &[usize]| {
            let rows: Vec<i64> = rows.iter().map(|row| *row as i64).collect();
            let count = rows.len();
            Tensor::<B, 1, Int>::from_data(TensorData::new(rows, [count]), &device)
        };
        let weights = softmax(linear(x.clone(), router, None, None).cast(DType::F32), 1);
        let chosen = chosen(weights.clone(), experts.per_token);
        let weights = weights.gather(1, indices(&chosen).reshape([tokens, experts.per_token]));
        let weights = match experts.normalize {
            true => weights.clone() / weights.sum_dim(1),
            false => weights,
        };

        // A place is a token and one of its experts. They are brought into the order of the experts, each of which
        // computes its tokens at once, and back: nothing depends on the order in which experts run.
        let mut places: Vec<usize> = (0..chosen.len()).collect();
        places.sort_by_key(|place| (chosen[*place], *place));
        let mut back = vec![0; places.len()];
        places.iter().enumerate().for_each(|(row, place)| back[*place] = row);
        let tokens_of: Vec<usize> = places.iter().map(|place| place / experts.per_token).collect();
        let inputs = x.select(0, indices(&tokens_of));
        let mut outputs = Vec::new();
        let mut start = 0;
        for rows in places.chunk_by(|a, b| chosen[*a] == chosen[*b]) {
            let expert = &self.experts[chosen[rows[0]]];
            let rows = rows.len();
            let input = inputs.clone().narrow(0, start, rows);
            outputs.push(expert.forward(input, config.activation, context.pass));
            start += rows;
        }
        let outputs = Tensor::cat(outputs, 0).select(0, indices(&back)).cast(DType::F32);
        let weighted = outputs * weights.reshape([tokens * experts.per_token, 1]);
        let sums = weighted.reshape([tokens, experts.per_token, hidden]).sum_dim(1);
        sums.squeeze_dim::<2>(1).cast(dtype)
    }
}

/// The `count` experts of the most weight for each row of `weights` `[tokens, experts]`, the first of equals first:
/// row after row.
fn chosen<B: KernelBackend>(weights: Tensor<B, 2>, count: usize) -> Vec<usize> {
    let experts = weights.dims()[1];
    let weights: Vec<f32> = weights.into_data().iter::<f32>().collect();
    let mut chosen = Vec::with_capacity(weights.len() / experts * count);
    for row in weights.chunks_exact(experts) {
        let mut order: Vec<usize> = (0..experts).collect();
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
        chosen.extend_from_slice(&order[..count]);
    }
    chosen
}
