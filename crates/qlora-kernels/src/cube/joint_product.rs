//! Decoding one token: layers that read the same row in one launch.
//!
//! A launch costs more time on the host than most of these products take on the device.

use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::elementwise::activate;
use super::nf4::load_table;
use super::nf4_product::{BlockScales, FEATURES, LANES, Operand, Variant, WORDS, element, vector_of, write};
use super::tables::Table;
use super::tensors::{array, dims, empty};
use crate::activation::Activation;

/// Three products with the same x: cubes of the first weight, then of the second, then of the third.
#[cube(launch_unchecked)]
fn three_kernel<T: Float, N: Size, M: Size>(
    x: &Array<Vector<T, N>>,
    table: &Array<f32>,
    codes0: &Array<Vector<u32, M>>,
    codes1: &Array<Vector<u32, M>>,
    codes2: &Array<Vector<u32, M>>,
    scales0: &BlockScales,
    scales1: &BlockScales,
    scales2: &BlockScales,
    bias0: &Array<f32>,
    bias1: &Array<f32>,
    bias2: &Array<f32>,
    a0: &Array<Vector<T, N>>,
    a1: &Array<Vector<T, N>>,
    a2: &Array<Vector<T, N>>,
    b0: &Array<T>,
    b1: &Array<T>,
    b2: &Array<T>,
    y0: &mut Array<T>,
    y1: &mut Array<T>,
    y2: &mut Array<T>,
    inputs: usize,
    outputs0: usize,
    outputs1: usize,
    outputs2: usize,
    block_size: usize,
    factor0: f32,
    factor1: f32,
    factor2: f32,
    #[comptime] variants: [Variant; 3],
    #[define(T)] _dtype: StorageType,
) {
    // Every layer multiplies with its A itself: in the place of `x Aᵀ`, which is not read, stands B.
    let table = load_table(table);
    let cube = CUBE_POS as usize;
    let first = (outputs0 + comptime!(FEATURES - 1)) / comptime!(FEATURES);
    let second = first + (outputs1 + comptime!(FEATURES - 1)) / comptime!(FEATURES);
    if cube < first {
        let value = element::<T, N, M>(
            cube,
            x,
            codes0,
            scales0,
            &table,
            bias0,
            a0,
            b0,
            b0,
            inputs,
            outputs0,
            block_size,
            factor0,
            comptime!(variants[0]),
        );
        write::<T>(cube, value, y0, outputs0, 1usize);
    } else if cube < second {
        let cube = cube - first;
        let value = element::<T, N, M>(
            cube,
            x,
            codes1,
            scales1,
            &table,
            bias1,
            a1,
            b1,
            b1,
            inputs,
            outputs1,
            block_size,
            factor1,
            comptime!(variants[1]),
        );
        write::<T>(cube, value, y1, outputs1, 1usize);
    } else {
        let cube = cube - second;
        let value = element::<T, N, M>(
            cube,
            x,
            codes2,
            scales2,
            &table,
            bias2,
            a2,
            b2,
            b2,
            inputs,
            outputs2,
            block_size,
            factor2,
            comptime!(variants[2]),
        );
        write::<T>(cube, value, y2, outputs2, 1usize);
    }
}

/// Products of one row with three weights of the same block size.
pub(super) fn three<R: CubeRuntime>(
    x: &CubeTensor<R>,
    operands: &[Operand<R>; 3],
    table: Table,
    block_size: usize,
) -> [CubeTensor<R>; 3] {
    let [_, inputs] = dims(x);
    let y = operands.each_ref().map(|operand| empty(x, [1, operand.outputs], x.dtype));
    let cubes: usize = operands.iter().map(|operand| operand.outputs.div_ceil(FEATURES)).sum();
    let vector = vector_of(x);
    let [o0, o1, o2] = operands;
    // SAFETY: a cube for eight features of one of the weights; units beyond the features do nothing.
    unsafe {
        three_kernel::launch_unchecked::<R>(
            &x.client,
            CubeCount::Static(cubes as u32, 1, 1),
            CubeDim::new_1d((LANES * FEATURES) as u32),
            vector,
            WORDS,
            array(x, vector),
            table.argument(x),
            array(&o0.codes, WORDS),
            array(&o1.codes, WORDS),
            array(&o2.codes, WORDS),
            o0.scales(),
            o1.scales(),
            o2.scales(),
            array(&o0.bias, 1),
            array(&o1.bias, 1),
            array(&o2.bias, 1),
            o0.a(x, vector),
            o1.a(x, vector),
            o2.a(x, vector),
            array(&o0.b, 1),
            array(&o1.b, 1),
            array(&o2.b, 1),
            array(&y[0], 1),
            array(&y[1], 1),
            array(&y[2], 1),
            inputs,
            o0.outputs,
            o1.outputs,
            o2.outputs,
            block_size,
            o0.factor,
            o1.factor,
            o2.factor,
            [o0.variant, o1.variant, o2.variant],
            x.dtype.into(),
        );
    }
    y
}

/// `act(gate(x)) ⊙ up(x)`: a cube computes the same features of both.
#[cube(launch_unchecked)]
fn gated_kernel<T: Float, N: Size, M: Size>(
    x: &Array<Vector<T, N>>,
    table: &Array<f32>,
    gate_codes: &Array<Vector<u32, M>>,
    up_codes: &Array<Vector<u32, M>>,
    gate_scales: &BlockScales,
    up_scales: &BlockScales,
    gate_bias: &Array<f32>,
    up_bias: &Array<f32>,
    gate_a: &Array<Vector<T, N>>,
    up_a: &Array<Vector<T, N>>,
    gate_b: &Array<T>,
    up_b: &Array<T>,
    y: &mut Array<T>,
    inputs: usize,
    outputs: usize,
    block_size: usize,
    gate_factor: f32,
    up_factor: f32,
    #[comptime] variants: [Variant; 2],
    #[comptime] activation: Activation,
    #[define(T)] _dtype: StorageType,
) {
    // As above, B stands in the place of `x Aᵀ`.
    let table = load_table(table);
    let cube = CUBE_POS as usize;
    let gate = element::<T, N, M>(
        cube,
        x,
        gate_codes,
        gate_scales,
        &table,
        gate_bias,
        gate_a,
        gate_b,
        gate_b,
        inputs,
        outputs,
        block_size,
        gate_factor,
        comptime!(variants[0]),
    );
    let up = element::<T, N, M>(
        cube,
        x,
        up_codes,
        up_scales,
        &table,
        up_bias,
        up_a,
        up_b,
        up_b,
        inputs,
        outputs,
        block_size,
        up_factor,
        comptime!(variants[1]),
    );
    // Rounded as numbers that are written and read again.
    let gate = Vector::<f32, N>::new(f32::cast_from(T::cast_from(gate)));
    let up = f32::cast_from(T::cast_from(up));
    let activated = activate::<N>(gate, activation);
    write::<T>(cube, activated[0] * up, y, outputs, 1usize);
}

/// `act(gate(x)) ⊙ up(x)` of one row, with weights of the same shape and block size.
pub(super) fn gated<R: CubeRuntime>(
    activation: Activation,
    x: &CubeTensor<R>,
    gate: &Operand<R>,
    up: &Operand<R>,
    table: Table,
    block_size: usize,
) -> CubeTensor<R> {
    let [_, inputs] = dims(x);
    let y = empty(x, [1, gate.outputs], x.dtype);
    let vector = vector_of(x);
    // SAFETY: a cube for eight features; units beyond the features do nothing.
    unsafe {
        gated_kernel::launch_unchecked::<R>(
            &x.client,
            CubeCount::Static(gate.outputs.div_ceil(FEATURES) as u32, 1, 1),
            CubeDim::new_1d((LANES * FEATURES) as u32),
            vector,
            WORDS,
            array(x, vector),
            table.argument(x),
            array(&gate.codes, WORDS),
            array(&up.codes, WORDS),
            gate.scales(),
            up.scales(),
            array(&gate.bias, 1),
            array(&up.bias, 1),
            gate.a(x, vector),
            up.a(x, vector),
            array(&gate.b, 1),
            array(&up.b, 1),
            array(&y, 1),
            inputs,
            gate.outputs,
            block_size,
            gate.factor,
            up.factor,
            [gate.variant, up.variant],
            activation,
            x.dtype.into(),
        );
    }
    y
}
