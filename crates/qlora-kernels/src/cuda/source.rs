//! CUDA C++ launched through cubecl: on its stream, with its memory, in order with all other operations.
//!
//! A kernel's parameters arrive in this order: tensor maps by value, one pointer for each of them, one pointer for
//! each buffer, a struct of u64 by value. cubecl compiles the text with NVRTC for the very GPU, once a process.

use cubecl::prelude::*;
use cubecl::server::{Handle, KernelArguments, MetadataBindingInfo, TensorMapBinding, TensorMapMeta};
use cubecl::zspace::metadata::Metadata;
use cubecl::{CompilationError, Compiler, CubeTask};
use cubecl_cpp::shared::{Elem, Item, SharedMemory as CppSharedMemory};
use cubecl_cuda::{CudaCompiler, CudaRuntime};

/// A kernel: its text, and what makes it this one of the text's variants.
#[derive(Clone, Debug)]
pub(super) struct Kernel {
    /// Name of the function.
    pub(super) entry: &'static str,
    /// The file.
    pub(super) text: &'static str,
    /// `#define`s that are put before it.
    pub(super) defines: Vec<(&'static str, usize)>,
    /// Threads of a block.
    pub(super) threads: u32,
    /// Bytes of dynamic shared memory.
    pub(super) shared: usize,
}

/// A matrix `[rows, columns]` that the copy engine reads in boxes.
#[derive(Clone, Debug)]
pub(super) struct Map {
    pub(super) handle: Handle,
    pub(super) shape: [usize; 2],
    /// Rows and columns of a box; a row of a box is 128 bytes.
    pub(super) tile: [usize; 2],
    pub(super) element: StorageType,
}

impl Map {
    fn binding(self) -> TensorMapBinding {
        let [_, columns] = self.shape;
        TensorMapBinding {
            binding: self.handle.binding(),
            map: TensorMapMeta {
                format: TensorMapFormat::Tiled(TiledArgs { tile_size: self.tile.into() }),
                metadata: Metadata::new(self.shape, [columns, 1]),
                elem_stride: [1, 1].into(),
                interleave: TensorMapInterleave::None,
                swizzle: TensorMapSwizzle::B128,
                prefetch: TensorMapPrefetch::B256,
                oob_fill: OobFill::Zero,
                storage_ty: self.element,
            },
        }
    }
}

impl Kernel {
    /// Puts the kernel into the queue.
    pub(super) fn launch(
        self,
        client: &ComputeClient<CudaRuntime>,
        grid: (usize, usize, usize),
        maps: Vec<Map>,
        buffers: Vec<Handle>,
        info: Vec<u64>,
    ) {
        let constants = info.len();
        let arguments = KernelArguments {
            buffers: buffers.into_iter().map(Handle::binding).collect(),
            // All of it is passed by value.
            info: MetadataBindingInfo::new(info, constants),
            tensor_maps: maps.into_iter().map(Map::binding).collect(),
        };
        let count = CubeCount::Static(grid.0 as u32, grid.1 as u32, grid.2 as u32);
        client.launch(Box::new(self), count, arguments);
    }

    fn cube_dim(&self) -> CubeDim {
        CubeDim::new_1d(self.threads)
    }
}

impl KernelMetadata for Kernel {
    fn name(&self) -> &'static str {
        self.entry
    }

    fn id(&self) -> KernelId {
        KernelId::new::<Self>().info((self.entry, self.defines.clone())).cube_dim(self.cube_dim())
    }

    fn address_type(&self) -> StorageType {
        u32::as_type_native_unchecked().storage_type()
    }
}

impl CubeTask<CudaCompiler> for Kernel {
    fn compile(
        &self,
        compiler: &mut CudaCompiler,
        options: &<CudaCompiler as Compiler>::CompilationOptions,
        mode: ExecutionMode,
        address_type: StorageType,
    ) -> Result<CompiledKernel<CudaCompiler>, CompilationError> {
        // An empty kernel of cubecl's own carries what the launch needs to know; the text is ours.
        let definition = KernelDefinition {
            buffers: vec![],
            tensor_maps: vec![],
            scalars: vec![],
            cube_dim: self.cube_dim(),
            body: Scope::root(false),
            options: Default::default(),
        };
        let mut representation = compiler.compile(definition, options, mode, address_type)?;
        if self.shared > 0 {
            representation.body.shared_memories.push(CppSharedMemory::Array {
                index: 0,
                item: Item::scalar(Elem::U8, true),
                length: self.shared,
                align: 1024,
                offset: 0,
            });
        }
        let mut source: String =
            self.defines.iter().map(|(name, value)| format!("#define {name} {value}\n")).collect();
        source.push_str(self.text);
        Ok(CompiledKernel {
            entrypoint_name: self.entry.to_owned(),
            debug_name: Some(self.entry),
            source,
            repr: Some(representation),
            cube_dim: self.cube_dim(),
            debug_info: None,
        })
    }
}
