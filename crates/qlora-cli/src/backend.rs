//! From `--backend` to the type that computes.

use qlora_core::kernels::{self, KernelBackend};

use crate::arguments::{BackendKind, GlobalOptions};
use crate::failure::Failure;

/// Work that runs on any backend.
pub(crate) trait OnBackend {
    /// Does it.
    fn run<B: KernelBackend>(self, device: &B::Device) -> Result<(), Failure>;
}

/// Makes as many threads as were asked for; once a program.
pub(crate) fn set_threads(global: &GlobalOptions) -> Result<(), Failure> {
    if let Some(threads) = global.threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads.into()).build_global()?;
    }
    Ok(())
}

/// Runs `work` on the backend and with the threads that were asked for.
pub(crate) fn on_backend(global: &GlobalOptions, work: impl OnBackend) -> Result<(), Failure> {
    set_threads(global)?;
    match global.backend {
        #[cfg(feature = "flex")]
        BackendKind::Cpu => work.run::<kernels::Flex>(&kernels::FlexDevice),
        #[cfg(feature = "cuda")]
        BackendKind::Cuda => work.run::<kernels::Cuda>(&kernels::CudaDevice::default()),
        // wgpu takes the native interface of the system: Metal on macOS, else Vulkan.
        #[cfg(all(feature = "wgpu", not(target_os = "macos")))]
        BackendKind::Vulkan | BackendKind::Webgpu => {
            work.run::<kernels::Wgpu>(&kernels::WgpuDevice::default())
        }
        #[cfg(all(feature = "wgpu", target_os = "macos"))]
        BackendKind::Metal | BackendKind::Webgpu => {
            work.run::<kernels::Wgpu>(&kernels::WgpuDevice::default())
        }
        absent => Err(Failure::usage(absent_backend(absent))),
    }
}

fn absent_backend(backend: BackendKind) -> String {
    let (name, feature) = match backend {
        BackendKind::Cpu => ("cpu", "flex"),
        BackendKind::Cuda => ("cuda", "cuda"),
        BackendKind::Vulkan => ("vulkan", "wgpu"),
        BackendKind::Webgpu => ("webgpu", "wgpu"),
        BackendKind::Metal => ("metal", "wgpu"),
    };
    if cfg!(feature = "wgpu") && feature == "wgpu" {
        return format!("there is no {name} on this system; use --backend webgpu for its own interface");
    }
    format!(
        "this build of qlora has no {name} backend; build it with `--features {feature}`, or leave out --backend"
    )
}
