//! GPUs through Vulkan, Metal or WebGPU.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use burn_wgpu::{RuntimeOptions, WgpuDevice, graphics, init_setup};
use wgpu::{Adapter, Backends, DeviceType, Instance, InstanceDescriptor};

use super::DeviceInfo;
use super::error::{DeviceError, listed};

/// The interface to a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GraphicsApi {
    /// Linux, Windows, Android.
    Vulkan,
    /// macOS, iOS.
    Metal,
    /// The native one of this system, by the rules of WebGPU.
    WebGpu,
}

impl GraphicsApi {
    fn backends(self) -> Backends {
        match self {
            Self::Vulkan => Backends::VULKAN,
            Self::Metal => Backends::METAL,
            Self::WebGpu if cfg!(target_os = "macos") => Backends::METAL,
            Self::WebGpu => Backends::VULKAN,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Vulkan => "Vulkan",
            Self::Metal => "Metal",
            Self::WebGpu => "WebGPU",
        }
    }
}

/// The adapter of this number, or without one the best: a GPU before a software renderer.
///
/// The runtime is set up for it: the device is ready to be used.
///
/// # Errors
/// When there is none.
pub fn wgpu(api: GraphicsApi, index: Option<usize>) -> Result<(WgpuDevice, DeviceInfo), DeviceError> {
    // A device can be set up once a process.
    static READY: Mutex<Option<HashMap<(GraphicsApi, Option<usize>), (WgpuDevice, DeviceInfo)>>> =
        Mutex::new(None);
    let mut ready = READY.lock().unwrap_or_else(PoisonError::into_inner);
    let ready = ready.get_or_insert_default();
    if let Some(found) = ready.get(&(api, index)) {
        return Ok(found.clone());
    }
    let found = find(api, index)?;
    if ready.values().all(|(device, _)| *device != found.0) {
        match api {
            GraphicsApi::Metal => init_setup::<graphics::Metal>(&found.0, RuntimeOptions::default()),
            GraphicsApi::Vulkan => init_setup::<graphics::Vulkan>(&found.0, RuntimeOptions::default()),
            GraphicsApi::WebGpu => {
                init_setup::<graphics::AutoGraphicsApi>(&found.0, RuntimeOptions::default())
            }
        };
    }
    ready.insert((api, index), found.clone());
    Ok(found)
}

fn find(api: GraphicsApi, index: Option<usize>) -> Result<(WgpuDevice, DeviceInfo), DeviceError> {
    let instance = Instance::new(InstanceDescriptor {
        backends: api.backends(),
        ..InstanceDescriptor::new_without_display_handle()
    });
    let adapters = cubecl::future::block_on(instance.enumerate_adapters(api.backends()));
    if adapters.is_empty() {
        return Err(DeviceError::NoAdapter { api: api.name() });
    }
    let describe = |adapter: &Adapter| {
        let info = adapter.get_info();
        DeviceInfo { name: format!("{} ({:?})", info.name, info.device_type), memory: None }
    };
    match index {
        None => {
            let rank = |adapter: &Adapter| match adapter.get_info().device_type {
                DeviceType::DiscreteGpu => 0,
                DeviceType::IntegratedGpu => 1,
                DeviceType::VirtualGpu => 2,
                DeviceType::Other => 3,
                DeviceType::Cpu => 4,
            };
            let best = (0..adapters.len()).min_by_key(|index| rank(&adapters[*index])).unwrap_or(0);
            Ok((device_of(&adapters, best), describe(&adapters[best])))
        }
        Some(index) if index < adapters.len() => {
            Ok((device_of(&adapters, index), describe(&adapters[index])))
        }
        Some(index) => Err(DeviceError::NoSuchDevice {
            kind: api.name(),
            index,
            count: adapters.len(),
            names: listed(adapters.iter().map(|adapter| describe(adapter).to_string())),
        }),
    }
}

/// How the runtime numbers adapters: each type on its own.
fn device_of(adapters: &[Adapter], index: usize) -> WgpuDevice {
    let kind = |adapter: &Adapter| adapter.get_info().device_type;
    let of = kind(&adapters[index]);
    let number = adapters[..index].iter().filter(|adapter| kind(adapter) == of).count();
    match of {
        DeviceType::DiscreteGpu => WgpuDevice::DiscreteGpu(number),
        DeviceType::IntegratedGpu => WgpuDevice::IntegratedGpu(number),
        DeviceType::VirtualGpu => WgpuDevice::VirtualGpu(number),
        DeviceType::Cpu => WgpuDevice::Cpu,
        DeviceType::Other => WgpuDevice::DefaultDevice,
    }
}
