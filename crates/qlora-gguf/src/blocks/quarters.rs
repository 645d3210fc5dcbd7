//! Codes of two bits in super-blocks: 128 values lie in 32 bytes, 32 values at each of four bit positions.

/// Packs the lower two bits of `codes` into `bytes`.
#[inline(always)]
pub(super) fn pack(codes: &[u8; 256], bytes: &mut [u8]) {
    for (codes, bytes) in codes.as_chunks::<128>().0.iter().zip(bytes.as_chunks_mut::<32>().0) {
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte =
                codes[i] & 3 | (codes[i + 32] & 3) << 2 | (codes[i + 64] & 3) << 4 | (codes[i + 96] & 3) << 6;
        }
    }
}
