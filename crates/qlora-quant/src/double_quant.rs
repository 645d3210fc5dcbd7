//! The scales of an NF4 tensor, quantized themselves.

use crate::{BlockSize, QuantError, dynamic_map};

/// f32 scales stored in eight bits (QLoRA, <https://arxiv.org/abs/2305.14314>, §3, "double quantization"):
/// `scaleᵢ = map[codesᵢ] · nested_absmax[i / nested_block] + offset`.
///
/// The offset is the mean of the scales, so that the signed map has both halves of its range in use.
/// With blocks of 64 this takes 4.127 bits a weight in all, against 4.5.
#[derive(Clone, Debug, PartialEq)]
pub struct DoubleQuantized {
    codes: Vec<u8>,
    nested_absmax: Vec<f32>,
    offset: f32,
    nested_block: BlockSize,
    /// The checkpoint's own map, when it is not the signed dynamic map.
    own_map: Option<Box<[f32; 256]>>,
}

impl DoubleQuantized {
    /// Quantizes scales in blocks of 256, with the signed dynamic map.
    ///
    /// The mean is taken in f64, and so differs by at most one unit in the last place from that of
    /// torch, which sums f32 in an order of its own.
    ///
    /// # Errors
    /// [`QuantError::NonFinite`] when a scale is NaN or infinite.
    pub fn quantize(scales: &[f32]) -> Result<Self, QuantError> {
        if !scales.iter().all(|scale| scale.is_finite()) {
            return Err(QuantError::first_non_finite(scales));
        }
        let sum: f64 = scales.iter().map(|&scale| f64::from(scale)).sum();
        let offset = (sum / scales.len().max(1) as f64) as f32;
        let centred: Vec<f32> = scales.iter().map(|scale| scale - offset).collect();

        let map = dynamic_map::signed();
        let nested_block = BlockSize::EIGHT_BIT;
        let mut codes = vec![0; scales.len()];
        let mut nested_absmax = vec![0.0; nested_block.count(scales.len())];
        map.quantize_into(&centred, nested_block, &mut codes, &mut nested_absmax)?;
        Ok(Self { codes, nested_absmax, offset, nested_block, own_map: None })
    }

    /// Puts together what a checkpoint stores. `map` is its own table of values, in any order; one equal
    /// to the signed dynamic map is not kept twice.
    ///
    /// # Errors
    /// [`QuantError::Length`] when `nested_absmax` is not one per block of `codes`.
    pub fn from_parts(
        codes: Vec<u8>,
        nested_absmax: Vec<f32>,
        offset: f32,
        nested_block: BlockSize,
        map: &[f32; 256],
    ) -> Result<Self, QuantError> {
        let expected = nested_block.count(codes.len());
        if nested_absmax.len() != expected {
            return Err(QuantError::Length {
                part: "nested_absmax",
                expected,
                found: nested_absmax.len(),
                shape: vec![codes.len()],
                block_size: nested_block,
            });
        }
        let own_map = (map != dynamic_map::signed().values()).then(|| Box::new(*map));
        Ok(Self { codes, nested_absmax, offset, nested_block, own_map })
    }

    /// Scales stored.
    #[must_use]
    pub fn len(&self) -> usize {
        self.codes.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.codes.is_empty()
    }

    /// One code per scale.
    #[must_use]
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// The scale of each block of codes.
    #[must_use]
    pub fn nested_absmax(&self) -> &[f32] {
        &self.nested_absmax
    }

    /// What is added to every scale: the mean of the original ones.
    #[must_use]
    pub fn offset(&self) -> f32 {
        self.offset
    }

    /// Codes that share an entry of `nested_absmax`.
    #[must_use]
    pub fn nested_block(&self) -> BlockSize {
        self.nested_block
    }

    /// The value of each code.
    #[must_use]
    pub fn map(&self) -> &[f32; 256] {
        self.own_map.as_deref().unwrap_or_else(|| dynamic_map::signed().values())
    }

    /// Whether the map is another than the signed dynamic map: a kernel that knows that one only must
    /// take the scales in f32 then.
    #[must_use]
    pub fn has_own_map(&self) -> bool {
        self.own_map.is_some()
    }

    /// Writes scales `start..start + out.len()`.
    ///
    /// # Panics
    /// When there are fewer scales.
    pub fn dequantize_into(&self, start: usize, out: &mut [f32]) {
        let codes = &self.codes[start..start + out.len()];
        let map = self.map();
        for (i, (scale, &code)) in (start..).zip(out.iter_mut().zip(codes)) {
            let nested = self.nested_absmax[i / self.nested_block.get()];
            *scale = map[usize::from(code)] * nested + self.offset;
        }
    }

    /// All scales.
    #[must_use]
    pub fn dequantize(&self) -> Vec<f32> {
        let mut scales = vec![0.0; self.len()];
        self.dequantize_into(0, &mut scales);
        scales
    }

    /// Bytes of the codes, their scales and the offset.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.codes.len() + size_of_val(self.nested_absmax.as_slice()) + size_of::<f32>()
    }
}
