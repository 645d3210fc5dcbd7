//! What a CUDA device can do.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use cubecl::Runtime;
use cubecl_cuda::{CudaDevice, CudaRuntime};
use cudarc::driver::result::device;
use cudarc::driver::sys::CUdevice_attribute::{
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
};

/// Compute capability, as in `sm_90`.
pub(super) fn architecture(device: &CudaDevice) -> u32 {
    facts(device).0
}

/// Multiprocessors.
pub(super) fn multiprocessors(device: &CudaDevice) -> usize {
    facts(device).1
}

/// Asked of the driver once a device.
fn facts(device: &CudaDevice) -> (u32, usize) {
    static FACTS: Mutex<Option<HashMap<usize, (u32, usize)>>> = Mutex::new(None);
    let mut facts = FACTS.lock().unwrap_or_else(PoisonError::into_inner);
    *facts.get_or_insert_default().entry(device.index).or_insert_with(|| {
        // The client is loaded first: it starts the driver.
        let properties = CudaRuntime::client(device).properties().clone();
        let sms = properties.hardware.num_streaming_multiprocessors.unwrap_or(1) as usize;
        (capability(device.index).unwrap_or(0), sms)
    })
}

fn capability(index: usize) -> Option<u32> {
    let found = device::get(i32::try_from(index).ok()?).ok()?;
    // SAFETY: the device exists.
    let attribute = |attribute| unsafe { device::get_attribute(found, attribute) }.ok();
    let major = attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    u32::try_from(major * 10 + minor).ok()
}
