//! What can be missing.

/// A device that can't be used, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The NVIDIA driver is not there, or does not start.
    #[error(
        "no NVIDIA driver: {reason}\n  install the driver (nvidia-smi then lists the GPU), or use --backend cpu or vulkan"
    )]
    NoDriver {
        /// What the system said.
        reason: String,
    },
    /// The run-time compiler of CUDA is not there.
    #[error(
        "the CUDA compiler library (NVRTC) was not found: {reason}\n  \
         install the CUDA toolkit 12 or later, or put libnvrtc on LD_LIBRARY_PATH"
    )]
    NoCompiler {
        /// What the system said.
        reason: String,
    },
    /// The headers that kernels include are not there.
    #[error(
        "the CUDA headers were not found in {looked}\n  install the CUDA toolkit, or set CUDA_PATH to its folder"
    )]
    NoHeaders {
        /// Where they were looked for.
        looked: String,
    },
    /// There is no adapter of the graphics API.
    #[error(
        "no {api} adapter was found\n  \
         install the {api} driver of the GPU (on Debian without a GPU: mesa-vulkan-drivers), or use --backend cpu"
    )]
    NoAdapter {
        /// The API.
        api: &'static str,
    },
    /// A backend that this build does not have.
    #[error(
        "this build has no backend `{backend}`, it has the features {built}\n  \
         build with `--features cuda` or `--features wgpu` (Vulkan, Metal, WebGPU), or use the backend cpu"
    )]
    NotCompiledIn {
        /// What was asked for.
        backend: String,
        /// The features that were compiled in.
        built: String,
    },
    /// A device of that number does not exist.
    #[error("there is no {kind} device {index}; there are {count}:{names}")]
    NoSuchDevice {
        /// CUDA, Vulkan, ...
        kind: &'static str,
        /// What was asked for, from 0.
        index: usize,
        /// How many there are.
        count: usize,
        /// Their names, a line each.
        names: String,
    },
}

/// Names as the end of [`DeviceError::NoSuchDevice`].
#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub(super) fn listed(names: impl IntoIterator<Item = String>) -> String {
    names.into_iter().enumerate().map(|(index, name)| format!("\n  {index}: {name}")).collect()
}
