//! Keys and values of tokens that were computed before, in pages.

mod pages;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use qlora_kernels::device::persistent;
use qlora_kernels::{
    AttentionSpan, AttentionSpec, CacheRows, KernelBackend, PageTable, append_to_cache, attention,
    gather_rows, paged_attention, rotate_and_append,
};

use self::pages::{Page, PagePool, Parent};
use crate::layer::RopeTable;
use crate::{DecoderConfig, RopeScaling};

/// Tokens of a page.
pub(crate) const PAGE_SIZE: usize = 16;

/// Keys and values of every layer for any number of sequences, which share what they have in common.
#[derive(Debug)]
pub struct KvCache<B: Backend> {
    layers: Vec<LayerCache<B>>,
    pool: PagePool,
    sequences: Vec<Option<Sequence>>,
    /// Rows that forked sequences lack, from and to.
    copies: Vec<(u32, u32)>,
    pass: Option<CachePass<B>>,
    /// Decides whose keys are alike.
    scaling: RopeScaling,
    device: B::Device,
}

/// Keys and values of a layer, `[pages · page size, kv_heads · head_dim]`; `None` while rows are written.
#[derive(Debug)]
struct LayerCache<B: Backend> {
    keys: Option<Tensor<B, 2>>,
    values: Option<Tensor<B, 2>>,
}

#[derive(Debug)]
struct Sequence {
    pages: Vec<Page>,
    /// Tokens whose keys are in the pages.
    length: usize,
    /// How its first tokens were rotated, and how many were so: the keys of those that follow are nobody else's.
    regime: usize,
    alike: usize,
    /// How many pages, from the first, can be found by their tokens, and the content of the last of these.
    registered: (usize, Parent),
}

/// Where the tokens of the pass under way are written, and what they see.
#[derive(Debug)]
struct CachePass<B: Backend> {
    rows: CacheRows<B>,
    /// `None`: they see the tokens of the pass alone.
    seen: Option<Seen<B>>,
}

/// What is read of the cache.
#[derive(Debug)]
enum Seen<B: Backend> {
    /// The tokens of the pass and earlier ones, in these rows.
    Rows(CacheRows<B>),
    /// One new token a sequence, and the pages of its earlier ones.
    Pages(PageTable<B>),
}

/// A sequence as it was admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Admitted {
    /// Its number.
    pub(crate) sequence: usize,
    /// Tokens of the prompt whose keys were there already.
    pub(crate) known: usize,
}

/// Pages that so many tokens need.
pub(crate) fn pages_for(tokens: usize) -> usize {
    tokens.div_ceil(PAGE_SIZE)
}

impl<B: KernelBackend> KvCache<B> {
    /// An empty cache of so many pages of 16 tokens, in the given type.
    #[must_use]
    pub fn new(config: &DecoderConfig, pages: usize, dtype: DType, device: &B::Device) -> Self {
        let shape = [pages * PAGE_SIZE, config.kv_heads * config.head_dim];
        let empty =
            || Some(persistent::<B, _, _>(device, shape, |shape| Tensor::zeros(shape, (device, dtype))));
        Self {
            layers: (0..config.layers).map(|_| LayerCache { keys: empty(), values: empty() }).collect(),
            pool: PagePool::new(pages),
            sequences: Vec::new(),
            copies: Vec::new(),
            pass: None,
            scaling: config.rope_scaling.clone(),
            device: device.clone(),
        }
    }

    /// Pages in all.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.pool.len()
    }

    /// Pages that no sequence holds.
    #[must_use]
    pub fn available_pages(&self) -> usize {
        self.pool.available()
    }

    /// A sequence with room for `tokens` tokens, which begins with `prompt`: earlier sequences' keys of its first tokens
    /// are shared, all but that of the last one, if they had the same adapters and are rotated as the prompt is. `None`
    /// where there are not enough pages.
    pub(crate) fn admit(
        &mut self,
        prompt: &[u32],
        tokens: usize,
        adapter: Option<usize>,
    ) -> Option<Admitted> {
        let regime = self.scaling.regime(prompt.len());
        let mut parent = Parent::Start { adapter, regime };
        let mut shared: Vec<Page> = Vec::new();
        // The last token has to be computed: its hidden state chooses the next one.
        for chunk in prompt[..prompt.len().saturating_sub(1)].chunks_exact(PAGE_SIZE) {
            let Some((page, content)) = self.pool.find(parent, chunk) else { break };
            shared.push(page);
            parent = Parent::Page(content);
        }
        // Held first, so that they are not taken for the rest.
        shared.iter().for_each(|page| self.pool.hold(*page));
        let Some(rest) = self.pool.take(pages_for(tokens).saturating_sub(shared.len())) else {
            shared.iter().for_each(|page| self.pool.release(*page));
            return None;
        };
        let known = shared.len() * PAGE_SIZE;
        let registered = (shared.len(), parent);
        let pages = [shared, rest].concat();
        let sequence = self.place(Sequence { pages, length: known, regime, alike: known, registered });
        Some(Admitted { sequence, known })
    }

    /// Another sequence that begins with the first `length` tokens of this one, all that it holds or will after the pass
    /// under way, with room for `tokens`: full pages are shared, the rest of the keys is copied by
    /// [`complete_forks`](Self::complete_forks). `None` where there are not enough pages.
    pub(crate) fn fork(&mut self, sequence: usize, length: usize, tokens: usize) -> Option<usize> {
        let full = length / PAGE_SIZE;
        let own = self.pool.take(pages_for(tokens).saturating_sub(full))?;
        let original = self.sequences[sequence].as_ref()?;
        let Sequence { regime, registered, .. } = *original;
        assert!(registered.0 <= full, "forked where it was not yet registered");
        let shared = original.pages[..full].to_vec();
        let row = |page: Page, token: usize| page * PAGE_SIZE as u32 + (token % PAGE_SIZE) as u32;
        if let (Some(&from), Some(&to)) = (original.pages.get(full), own.first()) {
            let partial = full * PAGE_SIZE..length;
            self.copies.extend(partial.map(|token| (row(from, token), row(to, token))));
        }
        shared.iter().for_each(|page| self.pool.hold(*page));
        let pages = [shared, own].concat();
        Some(self.place(Sequence { pages, length, regime, alike: length, registered }))
    }

    fn place(&mut self, sequence: Sequence) -> usize {
        let free = self.sequences.iter().position(Option::is_none);
        let at = free.unwrap_or_else(|| {
            self.sequences.push(None);
            self.sequences.len() - 1
        });
        self.sequences[at] = Some(sequence);
        at
    }

    fn sequence(&self, sequence: usize) -> &Sequence {
        self.sequences[sequence].as_ref().expect("a sequence that was admitted and not released")
    }

    /// Makes the full pages of a sequence findable for others. `tokens` are those whose keys it holds.
    pub(crate) fn register(&mut self, sequence: usize, tokens: &[u32]) {
        let Some(held) = &mut self.sequences[sequence] else { return };
        let (mut count, mut parent) = held.registered;
        let alike = &tokens[..held.alike.min(tokens.len())];
        for chunk in alike.chunks_exact(PAGE_SIZE).skip(count) {
            parent = Parent::Page(self.pool.register(held.pages[count], parent, chunk));
            count += 1;
        }
        held.registered = (count, parent);
    }

    /// Gives the pages of a sequence back.
    pub(crate) fn release(&mut self, sequence: usize) {
        if let Some(held) = self.sequences[sequence].take() {
            // The last page first: of those that stay findable, beginnings are of more use.
            held.pages.iter().rev().for_each(|page| self.pool.release(*page));
        }
    }

    /// Prepares a pass of `lengths[i]` new tokens of sequence `sequences[i]`: their positions and spans.
    ///
    /// # Panics
    /// When a sequence would outgrow its pages.
    pub(crate) fn begin_pass(
        &mut self,
        sequences: &[usize],
        lengths: &[usize],
    ) -> (Vec<u32>, Vec<AttentionSpan>) {
        let (mut positions, mut rows, mut spans) = (Vec::new(), Vec::new(), Vec::new());
        let (mut visible, mut q_start) = (Vec::new(), 0);
        let row = |pages: &[Page], token: usize| {
            pages[token / PAGE_SIZE] * PAGE_SIZE as u32 + (token % PAGE_SIZE) as u32
        };
        let decoding = lengths.iter().all(|length| *length == 1);
        let fresh = sequences.iter().all(|sequence| self.sequence(*sequence).length == 0);
        for (&sequence, &new) in sequences.iter().zip(lengths) {
            let held = self.sequences[sequence].as_mut().expect("a sequence that was admitted");
            let old = held.length;
            let k_len = old + new;
            assert!(pages_for(k_len) <= held.pages.len(), "{k_len} tokens in {} pages", held.pages.len());
            positions.extend((old..k_len).map(|position| position as u32));
            rows.extend((old..k_len).map(|token| row(&held.pages, token)));
            let k_start = if fresh { q_start } else { visible.len() };
            spans.push(AttentionSpan { q_start, q_len: new, k_start, k_len });
            if !decoding && !fresh {
                visible.extend((0..k_len).map(|token| row(&held.pages, token)));
            }
            held.length = k_len;
            if held.alike == old && self.scaling.regime(k_len) == held.regime {
                held.alike = k_len;
            }
            q_start += new;
        }
        let seen = if decoding {
            let table: Vec<(usize, &[Page])> = (sequences.iter())
                .map(|sequence| self.sequence(*sequence))
                .map(|held| (held.length, held.pages.as_slice()))
                .collect();
            Some(Seen::Pages(PageTable::new(&table, PAGE_SIZE, &self.device)))
        } else if fresh {
            None
        } else {
            Some(Seen::Rows(CacheRows::new(visible, &self.device)))
        };
        self.pass = Some(CachePass { rows: CacheRows::new(rows, &self.device), seen });
        (positions, spans)
    }

    /// Copies the last, partly filled pages of forked sequences, once the pass that fills them is done.
    pub(crate) fn complete_forks(&mut self) {
        if self.copies.is_empty() {
            return;
        }
        let (from, to): (Vec<u32>, Vec<u32>) = self.copies.drain(..).unzip();
        let (from, to) = (CacheRows::new(from, &self.device), CacheRows::new(to, &self.device));
        for layer in &mut self.layers {
            let (keys, values) = layer.take();
            let copied = (gather_rows(&keys, &from), gather_rows(&values, &from));
            layer.put(append_to_cache((keys, values), copied, &to));
        }
    }

    /// Writes the keys and values of the tokens of the pass, and attends to all that they see: `[tokens, heads · d]`.
    pub(crate) fn attend(
        &mut self,
        layer: usize,
        q: Tensor<B, 2>,
        k: Tensor<B, 2>,
        v: Tensor<B, 2>,
        spec: &AttentionSpec,
    ) -> Tensor<B, 2> {
        let pass = self.pass.as_ref().expect("a pass that was begun");
        let layer = &mut self.layers[layer];
        let (keys, values) = append_to_cache(layer.take(), (k.clone(), v.clone()), &pass.rows);
        let out = match &pass.seen {
            None => attention(q, k, v, spec),
            Some(seen) => seen.attend(q, &keys, &values, spec),
        };
        layer.put((keys, values));
        out
    }

    /// Whether the pass under way reads keys from the cache, and not its own alone.
    pub(crate) fn is_read(&self) -> bool {
        self.pass.as_ref().is_some_and(|pass| pass.seen.is_some())
    }

    /// As [`attend`](Self::attend), of queries and keys that are not rotated yet, in a pass that
    /// [reads the cache](Self::is_read).
    pub(crate) fn attend_rotated(
        &mut self,
        layer: usize,
        q: Tensor<B, 2>,
        k: Tensor<B, 2>,
        v: Tensor<B, 2>,
        table: &RopeTable<B>,
        spec: &AttentionSpec,
    ) -> Tensor<B, 2> {
        let pass = self.pass.as_ref().expect("a pass that was begun");
        let layer = &mut self.layers[layer];
        let angles = (table.cos.clone(), table.sin.clone());
        let (q, (keys, values)) = rotate_and_append(q, (k, v), angles, layer.take(), &pass.rows);
        let seen = pass.seen.as_ref().expect("a pass that reads the cache");
        let out = seen.attend(q, &keys, &values, spec);
        layer.put((keys, values));
        out
    }
}

impl<B: KernelBackend> Seen<B> {
    /// Attention to the keys and values of a layer that are seen.
    fn attend(
        &self,
        q: Tensor<B, 2>,
        keys: &Tensor<B, 2>,
        values: &Tensor<B, 2>,
        spec: &AttentionSpec,
    ) -> Tensor<B, 2> {
        match self {
            Self::Rows(rows) => attention(q, gather_rows(keys, rows), gather_rows(values, rows), spec),
            Self::Pages(table) => paged_attention(q, keys.clone(), values.clone(), table, spec),
        }
    }
}

impl<B: Backend> LayerCache<B> {
    /// Taken out, so that a backend sees one owner and writes in place.
    fn take(&mut self) -> (Tensor<B, 2>, Tensor<B, 2>) {
        let taken = self.keys.take().zip(self.values.take());
        taken.expect("a cache between two writes")
    }

    fn put(&mut self, (keys, values): (Tensor<B, 2>, Tensor<B, 2>)) {
        (self.keys, self.values) = (Some(keys), Some(values));
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use qlora_kernels::{Flex, FlexDevice};

    use super::*;

    fn cache(rope_scaling: RopeScaling) -> KvCache<Flex> {
        let config =
            DecoderConfig { layers: 1, kv_heads: 1, head_dim: 2, rope_scaling, ..DecoderConfig::default() };
        KvCache::new(&config, 32, DType::F32, &FlexDevice)
    }

    /// Serves a prompt and as many more tokens, one at a time. How many of the prompt were known.
    fn serve(cache: &mut KvCache<Flex>, prompt: usize, more: usize) -> usize {
        let tokens: Vec<u32> = (0..(prompt + more) as u32).collect();
        let Admitted { sequence, known } = cache.admit(&tokens[..prompt], tokens.len(), None).unwrap();
        cache.begin_pass(&[sequence], &[prompt - known]);
        (0..more).for_each(|_| drop(cache.begin_pass(&[sequence], &[1])));
        cache.register(sequence, &tokens);
        cache.release(sequence);
        known
    }

    #[test]
    fn pages_are_found_by_sequences_that_are_rotated_alike() {
        let mut plain = cache(RopeScaling::None);
        assert_eq!(serve(&mut plain, 40, 60), 0);
        assert_eq!(serve(&mut plain, 100, 0), 96);

        let original_max_position_embeddings = 64;
        let mut long = cache(RopeScaling::LongRope {
            short_factor: vec![1.0],
            long_factor: vec![2.0],
            original_max_position_embeddings,
            attention_factor: 1.0,
        });
        assert_eq!(serve(&mut long, 100, 20), 0);
        assert_eq!(serve(&mut long, 40, 0), 0);
        assert_eq!(serve(&mut long, 64, 0), 32, "those of the short one");
        assert_eq!(serve(&mut long, 65, 0), 64, "those of the long one");
        assert_eq!(serve(&mut long, 130, 0), 112);

        let mut dynamic = cache(RopeScaling::Dynamic { factor: 2.0, original_max_position_embeddings });
        assert_eq!(serve(&mut dynamic, 40, 60), 0);
        assert_eq!(serve(&mut dynamic, 64, 0), 48);
        assert_eq!(serve(&mut dynamic, 100, 10), 0);
        assert_eq!(serve(&mut dynamic, 100, 0), 96, "of the same length");
        assert_eq!(serve(&mut dynamic, 110, 0), 0);
    }
}
