//! The `README.md` of an adapter.

use super::PeftConfig;

/// A short model card in the form that model hubs read: a header of YAML, then text.
pub(super) fn model_card(config: &PeftConfig) -> String {
    let mut header = String::from("library_name: peft\ntags:\n- lora\n");
    let base = config.base_model.as_deref();
    if let Some(base) = base.filter(|base| is_hub_id(base)) {
        header = format!("base_model: {base}\n{header}");
    }
    let of_base = base.map_or_else(String::new, |base| format!(" of `{base}`"));
    let base = base.unwrap_or("path/to/the/base/model");
    let PeftConfig { rank, alpha, use_rslora, .. } = config;
    let scale = if *use_rslora { "alpha / √rank" } else { "alpha / rank" };
    format!(
        "---\n{header}---\n\n# LoRA adapter\n\n\
         A LoRA adapter{of_base}: rank {rank}, alpha {alpha}, updates scaled by {scale}.\n\n\
         ```python\n\
         from peft import PeftModel\n\
         from transformers import AutoModelForCausalLM\n\n\
         model = AutoModelForCausalLM.from_pretrained({base:?})\n\
         model = PeftModel.from_pretrained(model, \"path/to/this/directory\")\n\
         ```\n"
    )
}

/// `owner/name` in the characters that a hub allows; hubs refuse a card whose `base_model` is anything else.
fn is_hub_id(name: &str) -> bool {
    let allowed = |part: &str| {
        !part.is_empty()
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            && !part.starts_with(['.', '-'])
    };
    name.split_once('/').is_some_and(|(owner, name)| allowed(owner) && allowed(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peft::TargetModules;

    #[test]
    fn only_a_hub_id_goes_into_the_header() {
        let card = |base: &str| {
            let config = PeftConfig::new(8, 16.0, TargetModules::Names(Vec::new()));
            model_card(&PeftConfig { base_model: Some(base.to_owned()), ..config })
        };
        assert!(card("org/model-1.5").starts_with("---\nbase_model: org/model-1.5\nlibrary_name"));
        for path in ["/models/x", "../x/y", "org/model/file.gguf", "x", "org/a\nb: c", "./model"] {
            assert!(card(path).starts_with("---\nlibrary_name"), "{path}");
        }
    }
}
