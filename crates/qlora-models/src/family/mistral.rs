//! Mistral: Llama with a window. In GGUF files it is called llama, and has none.

use serde_json::{Map, Value};

use super::json_keys::{Defaults, JsonKeys};
use super::{Family, Spec, json_write, llama};
use crate::config::LayerRope;
use crate::{DecoderConfig, ModelError};

pub(super) const SPEC: Spec =
    Spec { model_types: &["mistral"], class: "MistralForCausalLM", from_json, to_json, ..llama::SPEC };

fn from_json(keys: &JsonKeys<'_>) -> Result<DecoderConfig, ModelError> {
    let defaults = Defaults { context: 4096 * 32, ..Defaults::default() };
    let config = keys.decoder(Family::Mistral, defaults)?;
    let window = keys.opt_size("sliding_window")?;
    let rope = [LayerRope::Global; 2];
    let layer_attention = keys.layers(config.layers, window, |_| window.is_some(), rope)?;
    Ok(DecoderConfig { layer_attention, ..config })
}

/// transformers has one window for all layers, and no list of them.
fn to_json(config: &DecoderConfig, keys: &mut Map<String, Value>) {
    json_write::windows(config, keys);
    keys.remove("layer_types");
}
