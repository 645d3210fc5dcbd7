//! CubeCL backends (CUDA, Vulkan, Metal, WebGPU): the reference bodies.

impl<R, F, I, BT> crate::KernelBackend for burn_cubecl::CubeBackend<R, F, I, BT>
where
    R: burn_cubecl::CubeRuntime,
    F: burn_cubecl::FloatElement,
    I: burn_cubecl::IntElement,
    BT: burn_cubecl::BoolElement,
{
}
