//! What goes into each linear layer of a model on given tokens.

use std::collections::BTreeMap;
use std::sync::Arc;

use qlora_kernels::KernelBackend;
use qlora_lora::{InputSquares, Pass};

use crate::{Decoder, TokenBatch};

/// The inputs of one linear layer.
#[derive(Clone, Debug, PartialEq)]
pub struct InputStatistics {
    /// The sum of squares of each input feature over all tokens.
    pub squares: Vec<f64>,
    /// Tokens that went through the layer.
    pub tokens: usize,
}

impl<B: KernelBackend> Decoder<B> {
    /// Runs rows of tokens through the model and adds up the squares of what goes into each linear layer, by the
    /// layer's path. Layers that nothing went through are absent.
    ///
    /// # Panics
    /// When an id is outside of the vocabulary.
    pub fn input_statistics<'a>(
        &mut self,
        rows: impl IntoIterator<Item = &'a [u32]>,
    ) -> BTreeMap<String, InputStatistics> {
        let mut observers = Vec::new();
        for (path, linear) in self.linears_mut() {
            let observer = Arc::new(InputSquares::default());
            linear.observe_inputs(Some(observer.clone()));
            observers.push((path, observer));
        }
        for ids in rows {
            let batch = TokenBatch { ids, lengths: &[ids.len()] };
            // Waits for the device, so that work does not pile up there.
            let _ = self.hidden_states(batch, Pass::default()).into_data();
        }
        self.linears_mut().for_each(|(_, linear)| linear.observe_inputs(None));
        let statistics = observers.into_iter().filter_map(|(path, observer)| {
            let (squares, tokens) = observer.sums();
            (tokens > 0).then_some((path, InputStatistics { squares, tokens }))
        });
        statistics.collect()
    }
}
