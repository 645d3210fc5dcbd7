//! From `--backend` to the type that computes.

use std::sync::{LazyLock, OnceLock};

use qlora_core::kernels::{self, KernelBackend};

use crate::arguments::{BackendKind, GlobalOptions};
use crate::failure::{Failure, computing_on};

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
    let backend = global.backend.unwrap_or_default();
    computing_on(backend);
    match backend {
        #[cfg(feature = "flex")]
        BackendKind::Cpu => match global.device {
            None | Some(0) => work.run::<kernels::Flex>(&kernels::FlexDevice),
            Some(index) => Err(Failure::usage(format!("--device {index}: all processors are one device, 0"))),
        },
        #[cfg(feature = "cuda")]
        BackendKind::Cuda => {
            let (device, info) = kernels::device::cuda(global.device.unwrap_or(0))?;
            name_device(&info);
            work.run::<kernels::Cuda>(&device)
        }
        // wgpu takes the native interface of the system: Metal on macOS, else Vulkan.
        #[cfg(all(feature = "wgpu", not(target_os = "macos")))]
        BackendKind::Vulkan | BackendKind::Webgpu => {
            work.run::<kernels::Wgpu>(&wgpu_device(backend, global)?)
        }
        #[cfg(all(feature = "wgpu", target_os = "macos"))]
        BackendKind::Metal | BackendKind::Webgpu => work.run::<kernels::Wgpu>(&wgpu_device(backend, global)?),
        absent => Err(Failure::usage(absent_backend(absent))),
    }
}

#[cfg(feature = "wgpu")]
fn wgpu_device(backend: BackendKind, global: &GlobalOptions) -> Result<kernels::WgpuDevice, Failure> {
    use kernels::device::GraphicsApi;
    let api = match backend {
        BackendKind::Metal => GraphicsApi::Metal,
        BackendKind::Webgpu => GraphicsApi::WebGpu,
        _ => GraphicsApi::Vulkan,
    };
    let (device, info) = kernels::device::wgpu(api, global.device)?;
    name_device(&info);
    Ok(device)
}

/// The name of the GPU that is computed on, once it is known.
static DEVICE_NAME: OnceLock<String> = OnceLock::new();
/// Bytes of memory that it has, where its driver tells.
static DEVICE_MEMORY: OnceLock<u64> = OnceLock::new();

#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn name_device(info: &kernels::device::DeviceInfo) {
    DEVICE_NAME.get_or_init(|| info.to_string());
    if let Some(memory) = info.memory {
        DEVICE_MEMORY.get_or_init(|| memory);
    }
}

/// The name of the GPU that is computed on; `None` on the processor.
pub(crate) fn device_name() -> Option<&'static str> {
    DEVICE_NAME.get().map(String::as_str)
}

/// Bytes of memory of the GPU that is computed on; `None` on the processor, and where the driver does not tell.
pub(crate) fn device_memory() -> Option<u64> {
    DEVICE_MEMORY.get().copied()
}

/// The backends that this program was built with.
fn compiled() -> Vec<&'static str> {
    let native = if cfg!(target_os = "macos") { BackendKind::Metal } else { BackendKind::Vulkan };
    let backends = [
        (cfg!(feature = "flex"), BackendKind::Cpu),
        (cfg!(feature = "cuda"), BackendKind::Cuda),
        (cfg!(feature = "wgpu"), native),
        (cfg!(feature = "wgpu"), BackendKind::Webgpu),
    ];
    backends.into_iter().filter(|(built, _)| *built).map(|(_, backend)| backend.name()).collect()
}

/// What `--version` says: the version, and the backends that this program was built with.
pub(crate) fn version() -> &'static str {
    static VERSION: LazyLock<String> =
        LazyLock::new(|| format!("{} (backends: {})", env!("CARGO_PKG_VERSION"), compiled().join(", ")));
    &VERSION
}

fn absent_backend(backend: BackendKind) -> String {
    let (name, built) = (backend.name(), compiled().join(", "));
    let feature = match backend {
        BackendKind::Cpu => "flex",
        BackendKind::Cuda => "cuda",
        BackendKind::Vulkan | BackendKind::Webgpu | BackendKind::Metal => "wgpu",
    };
    if cfg!(feature = "wgpu") && feature == "wgpu" {
        return format!("there is no {name} on this system; this build of qlora has the backends {built}");
    }
    format!(
        "this build of qlora has no {name} backend, it has {built}; build it with `--features {feature}`, or choose \
         another by --backend or device.backend"
    )
}
