// Attention forward for Hopper (sm_90a): causal, ragged batch, grouped queries, optional sliding window and softcap.
//
// An item of work is 128 query rows of one head; a block stays on its multiprocessor and does several, one after the other.
// Warpgroup 0 is the producer: one thread feeds the Q tile and a two-stage ring of key and value tiles by TMA, and runs ahead into
// the next item while the last one is being finished. Warpgroups 1 and 2 are consumers of 64 query rows each: S = Q K^T by wgmma
// from shared memory, online softmax in registers, O += P V with P from registers. While the tensor cores do O += P V of one key
// tile and S of the next, the softmax of the other warpgroup runs: the two take turns at issuing (named barriers), and inside one
// warpgroup the softmax of a tile overlaps the P V product of the tile before it.
//
// Defines, put in front of this text by the host:
//   HEAD_DIM   64 or 128
//   IS_BF16    1: bf16, 0: f16 (q, k, v and out)
//   SOFTCAP    1: scores become cap * tanh(score / cap), 0: no cap
//
// Entry point `attention_forward`:
//   tensor maps   q [queries, heads * HEAD_DIM], k and v [keys, kv_heads * HEAD_DIM]; box 128 rows x 64 columns, 128-byte swizzle,
//                 zeros outside the tensor
//   dummies       three pointers, unused (one per tensor map)
//   buffers       out  [queries, heads * HEAD_DIM], as q
//                 lse  f32 [queries, heads], natural log-sum-exp of the masked scores
//                 tiles u32 [number of tiles][5]: q_start, q_len, k_start, k_len, tile (query rows tile*128 .. of this span)
//   Info          struct below, by value
//   grid          (min(number of multiprocessors, items)) with items = number of tiles * heads; block 384 threads.
//                 Tiles ordered longest first: they are dealt out to the blocks back and forth, which evens out their work.
//   shared        1024 + 128 * HEAD_DIM * 2 * 6 + 128 bytes
//                 (alignment, one Q tile, two stages of a K and a V tile, one tile of output, barriers)
//
// Query i of a span has position p = k_len - q_len + i (k_len >= q_len) and sees keys j <= p and, if window > 0, j > p - window.
// Rows read past a span's end belong to its neighbours: their scores are masked, and their values must be finite.

typedef unsigned int u32;
typedef unsigned long long u64;

struct alignas(64) TMap { u64 opaque[16]; };

// Floats travel as their bit patterns in the low 32 bits.
struct Info { u64 queries, keys, heads, kv_heads, scale, softcap, window, tiles; };

#define TILE 128                        // query rows and key rows of a tile
#define PANEL (TILE * 128)              // bytes of one TMA box: 128 rows of 64 two-byte columns
#define PANELS (HEAD_DIM / 64)
#define TILE_BYTES (PANEL * PANELS)
#define ACC (HEAD_DIM / 2)              // output accumulators per thread: 64 x HEAD_DIM over 128 threads
#define MASKED (-1e30f)                 // finite, so that a row with nothing seen yet gives no NaN (see `softmax`)
#define LOG2E 1.4426950408889634f
#define LN2 0.6931471805599453f

#if IS_BF16
#define TYPES "f32.bf16.bf16"
#define CVT_PACK "cvt.rn.bf16x2.f32"
#else
#define TYPES "f32.f16.f16"
#define CVT_PACK "cvt.rn.f16x2.f32"
#endif

#define REGS_32 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
                "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define REGS_64 REGS_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
                "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define OUT_4(a, i) "+f"(a[i]), "+f"(a[i + 1]), "+f"(a[i + 2]), "+f"(a[i + 3])
#define OUT_16(a, i) OUT_4(a, i), OUT_4(a, i + 4), OUT_4(a, i + 8), OUT_4(a, i + 12)
#define OUT_32(a) OUT_16(a, 0), OUT_16(a, 16)
#define OUT_64(a) OUT_16(a, 0), OUT_16(a, 16), OUT_16(a, 32), OUT_16(a, 48)

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

__device__ __forceinline__ void barrier_init(u32 bar, u32 count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(bar), "r"(count));
}
__device__ __forceinline__ void barrier_expect(u32 bar, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(bar), "r"(bytes) : "memory");
}
__device__ __forceinline__ void barrier_arrive(u32 bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(bar) : "memory");
}
__device__ __forceinline__ void barrier_wait(u32 bar, u32 phase) {
  asm volatile("{\n.reg .pred p;\nWAIT:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra DONE;\nbra WAIT;\nDONE:\n}"
               :: "r"(bar), "r"(phase) : "memory");
}
// Named barriers: `sync` waits for, `arrive` only announces, out of `threads` taking part.
__device__ __forceinline__ void named_sync(int id, int threads) { asm volatile("bar.sync %0, %1;" :: "r"(id), "r"(threads) : "memory"); }
__device__ __forceinline__ void named_arrive(int id, int threads) { asm volatile("bar.arrive %0, %1;" :: "r"(id), "r"(threads) : "memory"); }

__device__ __forceinline__ void load_box(u32 dst, const TMap* map, u32 bar, int column, int row) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
               :: "r"(dst), "l"((u64)map), "r"(bar), "r"(column), "r"(row) : "memory");
}
__device__ __forceinline__ void load_tile(u32 dst, const TMap* map, u32 bar, int head, int row) {
  barrier_expect(bar, TILE_BYTES);
  #pragma unroll
  for (int i = 0; i < PANELS; i++) load_box(dst + i * PANEL, map, bar, head * HEAD_DIM + i * 64, row);
}

// Shared-memory descriptors, 128-byte swizzle, 1024 bytes from one group of eight rows to the next. `by_row`: the contiguous axis
// is the one summed over (Q, K). `by_column`: it is the output axis (V), whose next 64 columns lie one panel further.
__device__ __forceinline__ u64 by_row(u32 a) { return (u64)((a & 0x3FFFF) >> 4) | ((u64)1 << 16) | ((u64)64 << 32) | ((u64)1 << 62); }
__device__ __forceinline__ u64 by_column(u32 a) { return (u64)((a & 0x3FFFF) >> 4) | ((u64)(PANEL >> 4) << 16) | ((u64)64 << 32) | ((u64)1 << 62); }

__device__ __forceinline__ void mma_qk(float (&d)[64], u64 q, u64 k, int accumulate) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n128k16." TYPES " {" REGS_64 "}, %64, %65, p, 1, 1, 0, 0;\n}\n"
               : OUT_64(d) : "l"(q), "l"(k), "r"(accumulate));
}
__device__ __forceinline__ void mma_pv(float (&d)[ACC], const u32* p, u64 v) {
#if HEAD_DIM == 128
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16." TYPES " {" REGS_64 "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;\n"
               : OUT_64(d) : "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]), "l"(v));
#else
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16." TYPES " {" REGS_32 "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;\n"
               : OUT_32(d) : "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]), "l"(v));
#endif
}
__device__ __forceinline__ void mma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void mma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> __device__ __forceinline__ void mma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(PENDING) : "memory"); }
// Keeps the compiler from moving reads and writes of a product's registers across its start and the wait for its end.
template <int N> __device__ __forceinline__ void pin(float (&d)[N]) {
  #pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i]) :: "memory");
}
template <int N> __device__ __forceinline__ void pin(u32 (&d)[N]) {
  #pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+r"(d[i]) :: "memory");
}

__device__ __forceinline__ u32 pack(float low, float high) { u32 r; asm(CVT_PACK " %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low)); return r; }
__device__ __forceinline__ float exp2_fast(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
__device__ __forceinline__ float log2_fast(float x) { float y; asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
__device__ __forceinline__ float reciprocal(float x) { float y; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }

// Thread's part of a 64 x 128 score tile: value 4j + 2h + e is row (lane / 4) + 8h of the warp's 16, column 8j + 2 (lane % 4) + e.
struct Rows {
  float max[2], sum[2];  // running maximum (in units of the scores) and this thread's part of the sum
};

__device__ __forceinline__ void cap(float (&s)[64], float scale_over_cap, float softcap) {
  // tanh(x) = 1 - 2 / (1 + e^2x); the absolute error, all that matters here, stays near 1e-7.
  float c = 2.f * LOG2E * scale_over_cap;
  #pragma unroll
  for (int i = 0; i < 64; i++) s[i] = softcap - 2.f * softcap * reciprocal(1.f + exp2_fast(s[i] * c));
}

// `position`: of this thread's first row; `key`: of this thread's first column.
__device__ __forceinline__ void mask(float (&s)[64], int position, int key, int window) {
  #pragma unroll
  for (int i = 0; i < 64; i++) {
    int p = position + (i & 2) * 4, j = key + (i / 4) * 8 + (i & 1);
    if (j > p || j <= p - window) s[i] = MASKED;
  }
}

// Turns scores into exp2((s - max) c) and returns by which factors the rows' earlier sums and outputs shrink. A row that has seen
// only masked scores has max = MASKED: the base is then 0, for MASKED * c minus its own rounded value may be a huge number of
// either sign.
__device__ __forceinline__ void softmax(float (&s)[64], Rows& rows, float (&shrink)[2], float c) {
  #pragma unroll
  for (int h = 0; h < 2; h++) {
    float m = rows.max[h];
    #pragma unroll
    for (int j = 0; j < 16; j++) m = fmaxf(m, fmaxf(s[4 * j + 2 * h], s[4 * j + 2 * h + 1]));
    m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
    m = fmaxf(m, __shfl_xor_sync(~0u, m, 2));
    shrink[h] = exp2_fast((rows.max[h] - m) * c);
    rows.max[h] = m;
    float base = m == MASKED ? 0.f : m * c, sum = rows.sum[h] * shrink[h];
    #pragma unroll
    for (int j = 0; j < 16; j++) {
      float a = exp2_fast(s[4 * j + 2 * h] * c - base), b = exp2_fast(s[4 * j + 2 * h + 1] * c - base);
      s[4 * j + 2 * h] = a;
      s[4 * j + 2 * h + 1] = b;
      sum += a + b;
    }
    rows.sum[h] = sum;
  }
}

// One item of work, or, with `count` 0, the end of them.
struct Item {
  int head, kv_head, q_start, q_len, k_start, row0, position0;
  int first, count;  // key tiles
};

// Item `turn` of this block. Turns are dealt out back and forth. Heads vary fastest, so the long tiles of all heads come first and
// blocks at work on the heads of one group share keys in L2.
__device__ __forceinline__ Item get_item(u32 turn, const u32* tiles, const Info& info, int window) {
  Item item;
  u32 heads = (u32)info.heads, index = turn * gridDim.x + (turn & 1 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
  item.count = 0;
  if (index >= heads * (u32)info.tiles) return item;
  const u32* work = tiles + (index / heads) * 5;
  int k_len = work[3];
  item.head = index % heads;
  item.kv_head = item.head / (heads / (u32)info.kv_heads);
  item.q_start = work[0];
  item.q_len = work[1];
  item.k_start = work[2];
  item.row0 = work[4] * TILE;
  item.position0 = k_len - item.q_len + item.row0;
  item.first = max(0, item.position0 - window + 1) / TILE;
  item.count = (min(item.position0 + TILE, k_len) - 1) / TILE - item.first + 1;
  return item;
}

extern "C" __global__ void __launch_bounds__(384, 1)
attention_forward(const __grid_constant__ TMap q_map, const __grid_constant__ TMap k_map, const __grid_constant__ TMap v_map,
                  const void*, const void*, const void*, u32* out, float* lse, const u32* tiles, const __grid_constant__ Info info) {
  extern __shared__ unsigned char raw[];
  u32 base = (shared_address(raw) + 1023) & ~1023u;
  u32 q_tile = base, out_tile = base + TILE_BYTES, ring = out_tile + TILE_BYTES;  // stage s: K at ring + 2s tiles, V one tile further
  u32 bars = ring + 4 * TILE_BYTES;
  u32 q_full = bars, q_free = bars + 8, k_full = bars + 16, v_full = bars + 32, k_free = bars + 48, v_free = bars + 64;  // K and V: two each
  int window = info.window ? (int)info.window : 0x40000000;
  int warpgroup = threadIdx.x / 128;

  if (threadIdx.x == 0) {
    barrier_init(q_full, 1);
    barrier_init(q_free, 8);  // one arrival from each consumer warp
    for (int i = 0; i < 2; i++) {
      barrier_init(k_full + 8 * i, 1);
      barrier_init(v_full + 8 * i, 1);
      barrier_init(k_free + 8 * i, 8);
      barrier_init(v_free + 8 * i, 8);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async;" ::: "memory");
  }
  __syncthreads();

  // Key tiles are walked from the last one back, so the masked ones come first. `n` counts them over all items: tile n is in stage
  // n % 2, and its barriers are in phase n / 2 % 2.
  if (warpgroup == 0) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
    if (threadIdx.x == 0) {
      u32 n = 0;
      for (u32 turn = 0;; turn++) {
        Item item = get_item(turn, tiles, info, window);
        if (item.count == 0) break;
        barrier_wait(q_free, (turn & 1) ^ 1);
        load_tile(q_tile, &q_map, q_full, item.head, item.q_start + item.row0);
        // K runs one tile ahead of V, as the consumers use them.
        int row = item.k_start + (item.first + item.count - 1) * TILE;
        for (int t = 0; t <= item.count; t++, row -= TILE) {
          if (t < item.count) {
            u32 s = (n + t) & 1, phase = ((n + t) >> 1) & 1;
            barrier_wait(k_free + 8 * s, phase ^ 1);
            load_tile(ring + s * 2 * TILE_BYTES, &k_map, k_full + 8 * s, item.kv_head, row);
          }
          if (t > 0) {
            u32 s = (n + t - 1) & 1, phase = ((n + t - 1) >> 1) & 1;
            barrier_wait(v_free + 8 * s, phase ^ 1);
            load_tile(ring + (s * 2 + 1) * TILE_BYTES, &v_map, v_full + 8 * s, item.kv_head, row + TILE);
          }
        }
        n += item.count;
      }
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
    int wg = warpgroup - 1, thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
    int my_turn = 1 + wg, other_turn = 2 - wg;
    u32 q_mine = q_tile + wg * 64 * 128, heads = (u32)info.heads;
    int row_in_tile = wg * 64 + warp * 16 + lane / 4;

    float scale = __uint_as_float((u32)info.scale);
#if SOFTCAP
    float softcap = __uint_as_float((u32)info.softcap), scale_over_cap = scale / softcap, c = LOG2E;
#else
    float c = scale * LOG2E;
#endif
    if (wg == 1) named_arrive(other_turn, 256);  // the first turn is the other's

    u32 n = 0;
    for (u32 turn = 0;; turn++) {
      Item item = get_item(turn, tiles, info, window);
      int count = item.count;
      if (count == 0) break;
      int position = item.position0 + row_in_tile;
      int low = item.position0 + wg * 64, high = low + 63;  // positions of the warpgroup's rows

      float s[64], acc[ACC], shrink[2];
      u32 p[32];
      Rows rows;
      #pragma unroll
      for (int i = 0; i < ACC; i++) acc[i] = 0.f;
      #pragma unroll
      for (int h = 0; h < 2; h++) { rows.max[h] = MASKED; rows.sum[h] = 0.f; }

      auto issue_qk = [&](u32 stage) {
        u32 k_tile = ring + stage * 2 * TILE_BYTES;
        #pragma unroll
        for (int k = 0; k < HEAD_DIM / 16; k++)
          mma_qk(s, by_row(q_mine + (k / 4) * PANEL) + 2 * (k % 4), by_row(k_tile + (k / 4) * PANEL) + 2 * (k % 4), k != 0);
        mma_commit();
      };
      auto issue_pv = [&](u32 stage) {
        u32 v_tile = ring + (stage * 2 + 1) * TILE_BYTES;
        #pragma unroll
        for (int k = 0; k < TILE / 16; k++) mma_pv(acc, p + 4 * k, by_column(v_tile + k * 16 * 128));
        mma_commit();
      };
      auto scores_to_weights = [&](int t) {
        int key0 = (item.first + count - 1 - t) * TILE;
#if SOFTCAP
        cap(s, scale_over_cap, softcap);
#endif
        if (key0 + TILE - 1 > low || key0 <= high - window) mask(s, position, key0 + (lane % 4) * 2, window);
        softmax(s, rows, shrink, c);
      };
      auto pack_weights = [&]() {
        #pragma unroll
        for (int i = 0; i < 32; i++) p[i] = pack(s[2 * i], s[2 * i + 1]);
      };

      u32 stage = n & 1;
      barrier_wait(q_full, turn & 1);
      barrier_wait(k_full + 8 * stage, (n >> 1) & 1);
      named_sync(my_turn, 256);
      pin(s);
      mma_begin();
      issue_qk(stage);
      named_arrive(other_turn, 256);
      mma_wait<0>();
      pin(s);
      if (lane == 0) barrier_arrive(k_free + 8 * stage);
      if (lane == 0 && count == 1) barrier_arrive(q_free);
      scores_to_weights(0);
      pack_weights();

      for (int t = 1; t < count; t++) {
        u32 before = stage, before_phase = (n >> 1) & 1;
        n++;
        stage = n & 1;
        barrier_wait(k_full + 8 * stage, (n >> 1) & 1);
        named_sync(my_turn, 256);
        pin(s);
        pin(acc);
        pin(p);
        mma_begin();
        issue_qk(stage);
        barrier_wait(v_full + 8 * before, before_phase);
        mma_begin();
        issue_pv(before);
        named_arrive(other_turn, 256);
        mma_wait<1>();
        pin(s);
        if (lane == 0) barrier_arrive(k_free + 8 * stage);
        if (lane == 0 && t == count - 1) barrier_arrive(q_free);
        scores_to_weights(t);
        mma_wait<0>();
        pin(acc);
        if (lane == 0) barrier_arrive(v_free + 8 * before);
        #pragma unroll
        for (int i = 0; i < ACC; i++) acc[i] *= shrink[(i / 2) & 1];
        pack_weights();
      }

      barrier_wait(v_full + 8 * stage, (n >> 1) & 1);
      pin(acc);
      pin(p);
      mma_begin();
      issue_pv(stage);
      mma_wait<0>();
      pin(acc);
      if (lane == 0) barrier_arrive(v_free + 8 * stage);
      n++;

      float inverse[2];
      #pragma unroll
      for (int h = 0; h < 2; h++) {
        float sum = rows.sum[h];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        inverse[h] = 1.f / sum;
        int row = item.row0 + row_in_tile + 8 * h;
        if (lane % 4 == 0 && row < item.q_len) lse[(u64)(item.q_start + row) * heads + item.head] = (rows.max[h] * c + log2_fast(sum)) * LN2;
      }
      // Through this warp's rows of the output tile, so that rows leave in 16-byte pieces; the pieces of a row are swizzled against
      // bank conflicts.
      constexpr int PIECES = HEAD_DIM / 8;
      u32 staging = out_tile + (wg * 64 + warp * 16) * 128;
      auto slot = [&](int r, int piece) { return staging + (piece / 8) * PANEL + r * 128 + ((piece % 8) ^ (r % 8)) * 16; };
      __syncwarp();
      #pragma unroll
      for (int i = 0; i < ACC; i += 2) {
        int h = (i / 2) & 1;
        u32 value = pack(acc[i] * inverse[h], acc[i + 1] * inverse[h]);
        asm volatile("st.shared.b32 [%0], %1;" :: "r"(slot(lane / 4 + 8 * h, i / 4) + (lane % 4) * 4), "r"(value) : "memory");
      }
      __syncwarp();
      #pragma unroll
      for (int i = 0; i < 16 * PIECES / 32; i++) {
        int r = (i * 32 + lane) / PIECES, piece = (i * 32 + lane) % PIECES, row = item.row0 + wg * 64 + warp * 16 + r;
        u32 x, y, z, w;
        asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(x), "=r"(y), "=r"(z), "=r"(w) : "r"(slot(r, piece)) : "memory");
        if (row < item.q_len)
          asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
                       :: "l"(out + ((u64)(item.q_start + row) * heads + item.head) * (HEAD_DIM / 2) + piece * 4), "r"(x), "r"(y), "r"(z), "r"(w)
                       : "memory");
      }
    }
    // Takes the last turn handed over, so that no barrier is left half full.
    if (wg == 0) named_sync(my_turn, 256);
  }
}
