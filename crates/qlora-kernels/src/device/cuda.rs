//! NVIDIA GPUs: driver, compiler, headers, device.

use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

use cubecl_cuda::CudaDevice;
use cudarc::driver::result as driver;

use super::DeviceInfo;
use super::error::{DeviceError, listed};

/// The CUDA device of this number.
///
/// # Errors
/// When the driver, the compiler, the headers or the device is missing.
pub fn cuda(index: usize) -> Result<(CudaDevice, DeviceInfo), DeviceError> {
    // Libraries are loaded on the first call, which panics where there is none.
    static DRIVER: OnceLock<Result<(), String>> = OnceLock::new();
    let driver_ready = DRIVER.get_or_init(|| quietly(driver::init));
    driver_ready.clone().map_err(|reason| DeviceError::NoDriver { reason })?;
    let count =
        driver::device::get_count().map_err(|error| DeviceError::NoDriver { reason: told(&error) })?;
    let count = usize::try_from(count).unwrap_or(0);
    let name = |index: usize| {
        let device = driver::device::get(i32::try_from(index).unwrap_or(i32::MAX))?;
        // SAFETY: the device exists.
        let memory = unsafe { driver::device::total_mem(device) }?;
        Ok::<_, cudarc::driver::DriverError>(DeviceInfo {
            name: driver::device::get_name(device)?,
            memory: Some(memory as u64),
        })
    };
    if count == 0 {
        return Err(DeviceError::NoDriver { reason: "the driver knows no GPU".into() });
    }
    if index >= count {
        let names =
            (0..count).map(|index| name(index).map_or_else(|error| told(&error), |info| info.to_string()));
        return Err(DeviceError::NoSuchDevice { kind: "CUDA", index, count, names: listed(names) });
    }
    let info = name(index).map_err(|error| DeviceError::NoDriver { reason: told(&error) })?;

    static COMPILER: OnceLock<Result<(), String>> = OnceLock::new();
    let version = || {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both are written to.
        unsafe { cudarc::nvrtc::sys::nvrtcVersion(&mut major, &mut minor) }.result()
    };
    let compiler_ready = COMPILER.get_or_init(|| quietly(version).map(drop));
    compiler_ready.clone().map_err(|reason| DeviceError::NoCompiler { reason })?;
    match cubecl_cuda::install::cuda_path() {
        Some(path) if path.join("include").is_dir() => {}
        path => {
            let looked =
                path.as_deref().unwrap_or(Path::new("/usr/local/cuda, /opt/cuda")).display().to_string();
            return Err(DeviceError::NoHeaders { looked });
        }
    }
    Ok((CudaDevice::new(index), info))
}

fn told(error: &cudarc::driver::DriverError) -> String {
    format!("{error:?}")
}

/// Calls a function that may panic for lack of a library; the panic is not shown, but returned.
///
/// The hook is the process's: this is done once for each library, and one at a time.
fn quietly<T, E: std::fmt::Debug>(call: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let called = panic::catch_unwind(AssertUnwindSafe(call));
    panic::set_hook(hook);
    match called {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(format!("{error:?}")),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text =
                text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it could not be loaded");
            // The loader lists the thirty names that it tried.
            let first = text.lines().next().unwrap_or_default();
            Err(first.split(" - searched for").next().unwrap_or_default().to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_an_error() {
        match cuda(0) {
            Ok((_, info)) => assert!(!info.name.is_empty()),
            Err(error) => assert!(error.to_string().contains("install"), "{error}"),
        }
        assert!(cuda(10_000).is_err());
    }
}
