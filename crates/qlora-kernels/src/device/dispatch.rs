//! From the name of a backend to the type that computes.

use super::{DeviceError, DeviceInfo, compiled_in};
use crate::KernelBackend;

/// Work that runs on any backend.
pub trait OnDevice {
    /// What it gives.
    type Output;

    /// Does it.
    fn run<B: KernelBackend>(self, device: &B::Device, info: &DeviceInfo) -> Self::Output;
}

/// Runs `work` on the backend `cpu`, `cuda`, `vulkan`, `metal` or `webgpu`, on its device of that number or on the
/// best one. On a GPU a panic ends the program from here on ([`end_on_failure`](super::end_on_failure)).
///
/// # Errors
/// When there is no such backend in this build, or the device or something that it needs is missing.
pub fn on_device<W: OnDevice>(
    backend: &str,
    index: Option<usize>,
    work: W,
) -> Result<W::Output, DeviceError> {
    match backend {
        #[cfg(feature = "flex")]
        "cpu" => {
            let info = DeviceInfo { name: "the processor".to_owned(), memory: None };
            Ok(work.run::<crate::Flex>(&crate::FlexDevice, &info))
        }
        #[cfg(feature = "cuda")]
        "cuda" => {
            let (device, info) = super::cuda(index.unwrap_or(0))?;
            super::end_on_failure();
            Ok(work.run::<crate::Cuda>(&device, &info))
        }
        #[cfg(feature = "wgpu")]
        "vulkan" | "metal" | "webgpu" => {
            let api = match backend {
                "vulkan" => super::GraphicsApi::Vulkan,
                "metal" => super::GraphicsApi::Metal,
                _ => super::GraphicsApi::WebGpu,
            };
            let (device, info) = super::wgpu(api, index)?;
            super::end_on_failure();
            Ok(work.run::<crate::Wgpu>(&device, &info))
        }
        other => {
            let _ = (index, work);
            Err(DeviceError::NotCompiledIn { backend: other.to_owned(), built: compiled_in().join(", ") })
        }
    }
}
