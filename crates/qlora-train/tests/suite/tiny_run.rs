//! A run on a checkpoint of a few thousand weights, in milliseconds.

use std::path::Path;

use burn::backend::Autodiff;
use qlora_data::{Dataset, Sample};
use qlora_kernels::{Flex, FlexDevice};
use qlora_models::{Checkpoint, Decoder, LoadOptions, load};
use qlora_train::config::{AdapterConfig, RunConfig};
use qlora_train::{Engine, EngineOptions, RunDirectory, SupervisedFineTuning};

pub(crate) type Backend = Autodiff<Flex>;
pub(crate) type Model = Decoder<Backend>;
pub(crate) type TinyEngine<'a> = Engine<'a, Backend, Model>;

const VOCABULARY: u32 = 97;

/// A configuration with these overrides; `None` without the checkpoint.
pub(crate) fn config(directory: &Path, overrides: &[&str]) -> Option<RunConfig> {
    let model = qlora_testing::golden("tiny/llama")?;
    let text = format!(
        "model.path = {:?}\nmodel.quant = \"none\"\ndata.train = \"-\"\ntrain.steps = 6\ntrain.batch_size = 2\n\
         train.learning_rate = 1e-2\nlora.rank = 4\noutput.dir = {directory:?}\n",
        model
    );
    Some(RunConfig::from_toml_str("tiny.toml", &text, overrides).unwrap())
}

/// Rows of different lengths and masks: the longer, the more of it is trained, with uneven weights.
pub(crate) fn rows(count: u32) -> Dataset {
    let row = |row: u32| {
        let length = 4 + (row * 7) % 9;
        let ids = (0..length).map(|i| 3 + (row * 31 + i * i * 5) % (VOCABULARY - 3)).collect();
        let weights = (0..length).map(|i| if i < 2 { 0.0 } else { 0.5 + (i % 3) as f32 * 0.25 }).collect();
        Sample::new(ids, weights, row as usize + 1)
    };
    Dataset::from_samples((0..count).map(row).collect()).unwrap()
}

/// The model with a fresh adapter.
pub(crate) fn model(config: &RunConfig) -> Model {
    let checkpoint = Checkpoint::open(&config.model.path).unwrap();
    let mut model =
        load::<Backend>(&checkpoint, LoadOptions::default(), &FlexDevice, &mut |_, _| {}).unwrap();
    let AdapterConfig::Fresh(lora) = &config.lora else { panic!("no adapter to continue from is used here") };
    model.attach(lora, config.train.seed).unwrap();
    model
}

pub(crate) fn objective(config: &RunConfig, train: Dataset) -> SupervisedFineTuning {
    let seed = config.data.shuffle.then_some(config.data.seed);
    let objective = SupervisedFineTuning::new(train, config.train.batch_size, config.train.accumulate, seed)
        .unwrap()
        .with_checkpointing(config.train.checkpointing);
    match config.train.tokens_per_batch {
        None => objective,
        Some(tokens) => objective.with_token_budget(tokens, config.data.packing.unwrap_or_default()).unwrap(),
    }
}

/// An engine without files.
pub(crate) fn engine(config: &RunConfig, objective: &SupervisedFineTuning) -> TinyEngine<'static> {
    Engine::new(EngineOptions::new(&config.train, objective.steps_per_epoch()))
}

/// An engine that writes the run's directory.
pub(crate) fn engine_on_disk(
    config: &RunConfig,
    objective: &SupervisedFineTuning,
    resume: bool,
) -> TinyEngine<'static> {
    engine(config, objective).with_directory(RunDirectory::new(config, resume))
}

/// All trained numbers, in order.
pub(crate) fn parameters(model: &Model) -> Vec<f32> {
    let mut all = Vec::new();
    model.visit_parameters(&mut |_, parameter| all.extend(parameter.to_data().iter::<f32>()));
    all
}
