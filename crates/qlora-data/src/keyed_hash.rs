//! Choices that follow from a seed and from what is chosen for, in any order and on any machine.

use sha2::{Digest, Sha256};

/// The first eight bytes, little endian, of the SHA-256 of the seed (little endian), the purpose, a zero byte,
/// and the key.
pub(crate) fn keyed_hash(seed: u64, purpose: &str, key: &[u8]) -> u64 {
    let digest = Sha256::new()
        .chain_update(seed.to_le_bytes())
        .chain_update(purpose)
        .chain_update([0])
        .chain_update(key)
        .finalize();
    digest.iter().take(8).rev().fold(0, |number, &byte| (number << 8) | u64::from(byte))
}

/// Whether a hash is among the given share of all hashes.
pub(crate) fn is_within(hash: u64, share: f64) -> bool {
    // 53 bits are what an `f64` tells apart.
    ((hash >> 11) as f64) < share * (1_u64 << 53) as f64
}
