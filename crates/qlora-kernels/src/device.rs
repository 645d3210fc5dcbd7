//! Devices: found before they are used, so that what is missing is an error that says what to install.
//!
//! The runtimes underneath panic, some of them on a thread of their own, where there is no driver, no compiler or
//! no adapter. These functions ask first.

#[cfg(feature = "cuda")]
mod cuda;
mod dispatch;
mod error;
mod failure;
mod memory;
#[cfg(feature = "wgpu")]
mod wgpu;

#[cfg(feature = "cuda")]
pub use cuda::cuda;
pub use dispatch::{OnDevice, on_device};
pub use error::DeviceError;
pub use failure::end_on_failure;
pub use memory::{ActivationSizes, DeviceMemory, enter, explain_panic, persistent};
#[cfg(feature = "wgpu")]
pub use wgpu::{GraphicsApi, wgpu};

/// A device that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its name, as the driver tells it.
    pub name: String,
    /// Bytes of memory that it has, where the driver tells.
    pub memory: Option<u64>,
}

impl std::fmt::Display for DeviceInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)?;
        match self.memory {
            Some(bytes) => write!(f, " ({:.1} GiB)", bytes as f64 / f64::from(1 << 30)),
            None => Ok(()),
        }
    }
}

/// The backends that this build has, by the names of the cargo features that brought them.
#[must_use]
pub fn compiled_in() -> Vec<&'static str> {
    let features = [
        ("flex", cfg!(feature = "flex")),
        ("cuda", cfg!(feature = "cuda")),
        ("wgpu", cfg!(feature = "wgpu")),
    ];
    features.into_iter().filter(|(_, present)| *present).map(|(name, _)| name).collect()
}
