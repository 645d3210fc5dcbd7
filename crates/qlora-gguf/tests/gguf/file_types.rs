use qlora_gguf::{FileType, GgmlType, ModelFacts};
use serde_json::Value;

/// Thirteen shapes of models, all file types, with and without importance matrix, against llama.cpp's quantizer.
#[test]
fn tensors_get_the_formats_that_llama_cpp_gives_them() {
    let golden: Value = serde_json::from_str(include_str!("../golden/mixes.json")).unwrap();
    let count = |value: &Value| value.as_u64().unwrap() as usize;
    let mut compared = 0;
    for (key, model) in golden.as_object().unwrap() {
        let facts = ModelFacts {
            architecture: model["architecture"].as_str().unwrap(),
            layers: count(&model["layers"]),
            heads: count(&model["heads"]),
            kv_heads: count(&model["kv_heads"]),
            experts: count(&model["experts"]),
        };
        let mut names = Vec::new();
        for (name, entry) in model["tensors"].as_object().unwrap() {
            let shape: Vec<usize> = entry[0].as_array().unwrap().iter().map(count).collect();
            for layer in 0..entry[1].as_u64().unwrap_or(1) {
                names.push((name.replace("{}", &layer.to_string()), shape.clone()));
            }
        }
        let tensors: Vec<(&str, &[usize])> =
            names.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
        for file_type in FileType::ALL {
            for weighted in [false, true] {
                let same = &model["types"][file_type.name()];
                let other = &model["types"][format!("{file_type}+")];
                let expected = if weighted && !other.is_null() { other } else { same };
                let runs =
                    expected.as_array().unwrap().iter().flat_map(|runs| runs.as_str().unwrap().split(' '));
                let expected = runs.flat_map(|run| {
                    let (name, length) = run.split_once('*').unwrap();
                    std::iter::repeat_n(name, length.parse().unwrap())
                });
                let found = file_type.tensor_types(&facts, weighted, &tensors);
                for (((name, _), found), expected) in tensors.iter().zip(&found).zip(expected) {
                    // What is kept is F32 in the models that llama.cpp was given.
                    let found = found.unwrap_or(GgmlType::F32).name();
                    assert_eq!(found, expected, "{key}, {file_type}, importance: {weighted}, {name}");
                    compared += 1;
                }
            }
        }
    }
    assert_eq!(compared, 134_178);
}

#[test]
fn names_round_trip() {
    for file_type in FileType::ALL {
        assert_eq!(file_type.name().to_lowercase().parse(), Ok(file_type));
    }
    assert_eq!("Q4_K".parse(), Ok(FileType::Q4KM));
    let message = "q4_k_xl".parse::<FileType>().unwrap_err().to_string();
    assert!(message.contains("\"q4_k_xl\"") && message.contains("Q4_K_M, Q5_K_S"), "{message}");
    assert_eq!(FileType::Q4KM.id(), 15);
}
