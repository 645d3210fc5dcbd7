//! The trained low-rank factors of one layer.

use burn::module::{Module, Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};
use qlora_kernels::device::persistent;
use qlora_kernels::{Compute, KernelBackend, LoraOperands};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::LoraConfig;

/// Factors of one adapted layer, on the host: what an adapter file holds.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterFactors {
    /// `[rank, in]`, row-major.
    pub a: Vec<f32>,
    /// `[out, rank]`, row-major.
    pub b: Vec<f32>,
    /// Rank of the update.
    pub rank: usize,
    /// Input features.
    pub inputs: usize,
    /// Output features.
    pub outputs: usize,
    /// DoRA: the norm that each row of the adapted weight is brought to, `[out]`
    /// (<https://arxiv.org/abs/2402.09353>).
    pub magnitude: Option<Vec<f32>>,
}

/// The trained factors of one layer: the update is `scale · B A`. With a magnitude (DoRA) each row of the sum with the
/// weight is then brought to that norm.
#[derive(Module, Debug)]
pub struct LoraAdapter<B: Backend> {
    a: Param<Tensor<B, 2>>,
    b: Param<Tensor<B, 2>>,
    magnitude: Option<Param<Tensor<B, 2>>>,
    #[module(skip)]
    scale: f64,
    #[module(skip)]
    dropout: f64,
    #[module(skip)]
    site: u64,
}

impl<B: Backend> LoraAdapter<B> {
    /// A fresh adapter with PEFT's default initialisation: `A ~ U(−1/√in, 1/√in)`, `B = 0`.
    ///
    /// `A` is drawn from ChaCha8, keyed by `seed`, at a stream that is the hash of the layer's `path`:
    /// it depends neither on the order of layers nor on which others are adapted.
    #[must_use]
    pub fn init(
        path: &str,
        [outputs, inputs]: [usize; 2],
        config: &LoraConfig,
        seed: u64,
        device: &B::Device,
    ) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(site(path));
        let bound = 1.0 / (inputs as f64).sqrt();
        let a =
            (0..config.rank * inputs).map(|_| (rng.random::<f64>() * 2.0 - 1.0) * bound).map(|v| v as f32);
        let factors = AdapterFactors {
            a: a.collect(),
            b: vec![0.0; outputs * config.rank],
            rank: config.rank,
            inputs,
            outputs,
            magnitude: None,
        };
        Self::from_factors(path, factors, config.scale(), config.dropout, device)
    }

    /// An adapter with these factors.
    ///
    /// # Panics
    /// When the factors do not have the lengths that their sizes say.
    #[must_use]
    pub fn from_factors(
        path: &str,
        factors: AdapterFactors,
        scale: f64,
        dropout: f64,
        device: &B::Device,
    ) -> Self {
        let AdapterFactors { a, b, rank, inputs, outputs, magnitude } = factors;
        let param = |values: Vec<f32>, shape: [usize; 2]| {
            let values = persistent::<B, _, _>(device, TensorData::new(values, shape), |values| {
                Tensor::from_data(values, (device, DType::F32))
            });
            Param::initialized(ParamId::new(), values.require_grad())
        };
        Self {
            a: param(a, [rank, inputs]),
            b: param(b, [outputs, rank]),
            magnitude: magnitude.map(|magnitude| param(magnitude, [outputs, 1])),
            scale,
            dropout,
            site: site(path),
        }
    }

    /// Rank of the update.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.a.val().dims()[0]
    }

    /// What the update is multiplied with.
    #[must_use]
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// `[rank, in]`.
    #[must_use]
    pub fn a(&self) -> Tensor<B, 2> {
        self.a.val()
    }

    /// `[out, rank]`.
    #[must_use]
    pub fn b(&self) -> Tensor<B, 2> {
        self.b.val()
    }

    /// DoRA's norms of rows, `[out, 1]`.
    #[must_use]
    pub fn magnitude(&self) -> Option<Tensor<B, 2>> {
        self.magnitude.as_ref().map(Param::val)
    }

    /// Replaces the magnitude, if there is one, by what `update` makes of it, as a leaf of a new graph.
    pub fn update_magnitude(&mut self, update: impl FnOnce(Tensor<B, 2>) -> Tensor<B, 2>) {
        if let Some(magnitude) = &mut self.magnitude {
            update_param(magnitude, update);
        }
    }

    /// Replaces `A` by what `update` makes of it, as a leaf of a new graph.
    pub fn update_a(&mut self, update: impl FnOnce(Tensor<B, 2>) -> Tensor<B, 2>) {
        update_param(&mut self.a, update);
    }

    /// Replaces `B` by what `update` makes of it, as a leaf of a new graph.
    pub fn update_b(&mut self, update: impl FnOnce(Tensor<B, 2>) -> Tensor<B, 2>) {
        update_param(&mut self.b, update);
    }

    /// The factors, read back to the host.
    #[must_use]
    pub fn factors(&self) -> AdapterFactors {
        let (a, b) = (self.a.val(), self.b.val());
        let ([rank, inputs], [outputs, _]) = (a.dims(), b.dims());
        let values = |t: Tensor<B, 2>| t.into_data().iter::<f32>().collect();
        let magnitude = self.magnitude().map(values);
        AdapterFactors { a: values(a), b: values(b), rank, inputs, outputs, magnitude }
    }

    pub(crate) fn dropout(&self) -> f64 {
        self.dropout
    }

    pub(crate) fn site(&self) -> u64 {
        self.site
    }
}

impl<B: KernelBackend> LoraAdapter<B> {
    pub(crate) fn prepare_for_inference(&mut self, compute: Compute) {
        if self.magnitude.is_some() {
            // The norms of DoRA's rows are of factors in f32.
            return;
        }
        let (mut a, mut b) = (self.a.val().detach(), self.b.val().detach());
        let dtype = B::activation_dtype(compute);
        if dtype != DType::F32 {
            a = a.cast(dtype);
            b = (b * self.scale).cast(dtype);
            self.scale = 1.0;
        }
        let param = |id, value: Tensor<B, 2>| Param::initialized(id, value).set_require_grad(false);
        self.a = param(self.a.id, a);
        self.b = param(self.b.id, b);
    }

    pub(crate) fn operands(&self) -> LoraOperands<B> {
        LoraOperands { a: self.a.val(), b: self.b.val(), scale: self.scale as f32 }
    }
}

fn update_param<B: Backend>(
    param: &mut Param<Tensor<B, 2>>,
    update: impl FnOnce(Tensor<B, 2>) -> Tensor<B, 2>,
) {
    let id = param.id;
    // The old value is given away, so that an update in place has it to itself.
    let empty = Param::initialized(id, Tensor::empty([0, 0], &param.val().device()));
    let value = std::mem::replace(param, empty).into_value();
    *param = Param::initialized(id, update(value).detach().require_grad());
}

/// FNV-1a of the path: names a random stream.
fn site(path: &str) -> u64 {
    path.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
