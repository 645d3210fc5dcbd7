//! Lookup tables on the device: uploaded once, not with each launch.

use std::any::TypeId;
use std::cell::RefCell;

use burn::tensor::backend::DeviceOps;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;
use cubecl::server::Handle;

/// The tables that kernels look values up in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Table {
    /// Values of these NF4 codes, then the signed dynamic map of doubly quantized scales.
    Nf4([f32; 16]),
    /// The signed and the unsigned dynamic map of 8-bit moments.
    Moments,
    /// The limits between NF4 codes.
    Nf4Thresholds,
}

impl Table {
    fn values(self) -> Vec<f32> {
        use qlora_quant::dynamic_map::{signed, unsigned};
        match self {
            Self::Nf4(codebook) => [&codebook[..], signed().values()].concat(),
            Self::Moments => [signed(), unsigned()].iter().flat_map(|map| *map.values()).collect(),
            Self::Nf4Thresholds => qlora_quant::nf4::THRESHOLDS.to_vec(),
        }
    }

    /// The table on the device of `like`, as an argument of a kernel.
    pub(super) fn argument<R: CubeRuntime>(self, like: &CubeTensor<R>) -> ArrayArg<R> {
        /// Runtime and device, the table, where it is and how long.
        type Uploaded = ((TypeId, u16), Table, Handle, usize);
        thread_local! {
            // Of each thread, as its stream is.
            static UPLOADED: RefCell<Vec<Uploaded>> = const { RefCell::new(Vec::new()) };
        }
        let place = (TypeId::of::<R>(), like.device.id().index_id);
        UPLOADED.with_borrow_mut(|uploaded| {
            let known = uploaded.iter().position(|known| (known.0, known.1) == (place, self));
            let known = known.unwrap_or_else(|| {
                let values = self.values();
                let handle = like.client.create_from_slice(f32::as_bytes(&values));
                uploaded.push((place, self, handle, values.len()));
                uploaded.len() - 1
            });
            let (.., handle, length) = &uploaded[known];
            // SAFETY: the handle holds that many values.
            unsafe { ArrayArg::from_raw_parts(handle.clone(), *length) }
        })
    }
}
