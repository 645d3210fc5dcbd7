//! Memory of a device: how much is used, and what to say when there is no more.

use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};

use burn::tensor::backend::Backend;

use crate::weight::Compute;

/// What a process holds of a device's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Bytes of live tensors.
    pub in_use: u64,
    /// Bytes taken from the driver: live tensors, and what is kept for the next ones. Does not shrink by itself,
    /// so that at the end it is the most that was ever taken.
    pub reserved: u64,
}

/// What a pass through a model makes, as [`KernelBackend::reserve_activations`](crate::KernelBackend::reserve_activations)
/// wants to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActivationSizes {
    /// Rows of all activations.
    pub tokens: usize,
    /// Features of hidden states.
    pub hidden: usize,
    /// Features of the other activations.
    pub widths: Vec<usize>,
    /// Query heads.
    pub heads: usize,
    /// Elements of each linear layer's weight.
    pub weights: Vec<usize>,
    /// Rows of the head.
    pub vocabulary: usize,
    /// In what type products are computed.
    pub compute: Compute,
}

/// Runs `make`, whose allocations are large and live long, as those of a model or a cache: a device gives them memory of
/// their very size.
pub fn persistent<B: Backend, I: Send, O: Send>(
    device: &B::Device,
    input: I,
    make: impl Fn(I) -> O + Send,
) -> O {
    B::memory_persistent_allocations(device, input, make)
}

static DOING: Mutex<Cow<'static, str>> = Mutex::new(Cow::Borrowed(""));

/// Says what the program is about to do ("the forward pass of step 3"), for the message when memory runs out.
pub fn enter(doing: impl Into<Cow<'static, str>>) {
    *DOING.lock().unwrap_or_else(PoisonError::into_inner) = doing.into();
}

/// The message of a panic of a GPU runtime, if it is one of memory: what was being allocated, in what part of the
/// work, and what to lower.
///
/// The runtimes allocate on a thread of their own and panic there; a program's panic hook is the one place that
/// hears of it.
#[must_use]
pub fn explain_panic(message: &str) -> Option<String> {
    let size = buffer_too_big(message)?;
    let doing = DOING.lock().unwrap_or_else(PoisonError::into_inner);
    let place = if doing.is_empty() { String::new() } else { format!(" in {doing}") };
    let size = match size {
        Some(bytes) => format!("a buffer of {:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        None => "a buffer".to_owned(),
    };
    Some(format!(
        "out of device memory: {size} could not be allocated{place}\n  \
         lower train.batch_size (and raise train.accumulate), data.max_length or lora.rank, set \
         train.checkpointing = \"layers\" or \"offload\", or hold the base in 4 bits (model.quant = \"nf4\")"
    ))
}

/// The bytes of an allocation that failed, if the message is about one.
fn buffer_too_big(message: &str) -> Option<Option<u64>> {
    if !["BufferTooBig", "can't allocate buffer", "OUT_OF_MEMORY", "Out of memory", "out of memory"]
        .iter()
        .any(|words| message.contains(words))
    {
        return None;
    }
    let digits = |after: &str| {
        let rest = &message[message.find(after)? + after.len()..];
        let number: String =
            rest.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
        number.parse().ok()
    };
    Some(digits("size"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_out_of_memory_is_explained() {
        enter("the backward pass of step 3");
        let raw =
            "called `Result::unwrap()` on an `Err` value: BufferTooBig { size: 1073741824, backtrace: .. }";
        let text = explain_panic(raw).unwrap();
        assert!(text.contains("1024.0 MiB") && text.contains("the backward pass of step 3"), "{text}");
        assert!(text.contains("train.batch_size") && text.contains("checkpointing"), "{text}");
        assert_eq!(explain_panic("index out of bounds"), None);
    }
}
