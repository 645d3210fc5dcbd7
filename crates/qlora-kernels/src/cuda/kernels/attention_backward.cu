// Attention backward (sm_80 and newer): causal, ragged batch, grouped queries, optional sliding window and softcap. Deterministic:
// every output element has one writer, which adds in a fixed order.
//
// With s the scaled and capped scores, P = exp(s - lse) and delta = rowsum(dout * out):
//   dV = P^T dO,  dP = dO V^T,  dS = P * (dP - delta) * (1 - (s / cap)^2) * scale,  dQ = dS K,  dK = dS^T Q.
//
// Three entry points, in launch order: `attention_delta`, then `attention_backward_kv` and `attention_backward_q` in any order.
// Every warp owns 16 rows of the output (keys or queries) at full head size, in registers. It computes scores with those rows as
// the left operand, so P and dS, once rounded, are already laid out as the left operand of the next product and never pass through
// shared memory. The products come in two forms with the same operands and register layouts: `mma.sync` for any of these chips, and
// `wgmma` for Hopper, where the four warps of the block multiply together in the background.
//
// Defines, put in front of this text by the host:
//   HEAD_DIM   32, 64, 96 or 128
//   IS_BF16    1: bf16, 0: f16 (all inputs and outputs but lse and delta)
//   SOFTCAP    1: scores became cap * tanh(score / cap), 0: no cap
//   WGMMA      1: Hopper's products (compile for sm_90a), 0: the portable ones
//
// Shapes: q, out, dout, dq [queries, heads * HEAD_DIM]; k, v, dk, dv [keys, kv_heads * HEAD_DIM]; lse, delta f32 [queries, heads].
// A tile list is u32 [number of tiles][5]: q_start, q_len, k_start, k_len, tile; the rows of a tile are tile*64 .. of its span.
// Every key (query) row has to be in one tile of the key (query) list: rows that are in none stay unwritten.
//
// `attention_delta`        buffers out, dout, delta;                              Info; grid (ceil(queries * heads / DELTA_ROWS))
//                          with DELTA_ROWS = 64, 32, 16, 16 for HEAD_DIM 32, 64, 96, 128; block 256; no shared memory
// `attention_backward_kv`  buffers q, k, v, dout, lse, delta, dk, dv, key tiles;  Info; grid (number of key tiles, kv_heads)
// `attention_backward_q`   buffers q, k, v, dout, lse, delta, dq, query tiles;    Info; grid (number of query tiles, heads)
//                          both: block 128, shared 6 * 8192 * ceil(HEAD_DIM / 64) + 2048 bytes, tiles ordered longest first (key
//                          tiles: the most queries see the first ones; query tiles: the last ones see the most keys)
//
// Query i of a span has position p = k_len - q_len + i (k_len >= q_len) and sees keys j <= p and, if window > 0, j > p - window.

typedef unsigned int u32;
typedef unsigned long long u64;

// Floats travel as their bit patterns in the low 32 bits.
struct Info { u64 queries, keys, heads, kv_heads, scale, softcap, window; };
struct alignas(16) Piece { u32 x, y, z, w; };  // eight elements, the unit of every copy

#define ROWS 64                             // query and key rows of a tile
#define THREADS 128
#define PIECES (HEAD_DIM / 8)               // per row
#define PANEL (ROWS * 128)                  // bytes of 64 rows of 64 columns
#define TILE_BYTES (PANEL * ((HEAD_DIM + 63) / 64))
#define SCORES (ROWS / 2)                   // scores per thread: 64 x 64 over 128 threads
#define ACC (HEAD_DIM / 2)                  // output accumulators per thread: 64 x HEAD_DIM over 128 threads
#define LOG2E 1.4426950408889634f

#if HEAD_DIM >= 96
#define BLOCKS_PER_SM 2
#else
#define BLOCKS_PER_SM 3
#endif

#if HEAD_DIM == 32
#define DELTA_LANES 4
#elif HEAD_DIM == 64
#define DELTA_LANES 8
#else
#define DELTA_LANES 16
#endif

#if IS_BF16
#define TYPES "f32.bf16.bf16.f32"
#define WGMMA_TYPES "f32.bf16.bf16"
#define CVT_PACK "cvt.rn.bf16x2.f32"
#else
#define TYPES "f32.f16.f16.f32"
#define WGMMA_TYPES "f32.f16.f16"
#define CVT_PACK "cvt.rn.f16x2.f32"
#endif

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// Copies `BYTES` to shared memory in the background, or writes zeros if not `valid`.
template <int BYTES> __device__ __forceinline__ void copy_async(u32 dst, const void* src, bool valid) {
  u32 n = valid ? BYTES : 0;
  if (BYTES == 16) asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(dst), "l"(src), "r"(n) : "memory");
  else asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" :: "r"(dst), "l"(src), "r"(n) : "memory");
}
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING> __device__ __forceinline__ void copy_wait() { asm volatile("cp.async.wait_group %0;" :: "n"(PENDING) : "memory"); }

// Four 8x8 matrices; lane i gives the address of row i % 8 of matrix i / 8.
__device__ __forceinline__ void load_matrices(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}
__device__ __forceinline__ void mma(float* d, const u32* a, u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col." TYPES " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ u32 pack(float low, float high) { u32 r; asm(CVT_PACK " %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low)); return r; }
__device__ __forceinline__ float unpack_low(u32 v) {
#if IS_BF16
  return __uint_as_float(v << 16);
#else
  float f; asm("{\n.reg .b16 l, h;\nmov.b32 {l, h}, %1;\ncvt.f32.f16 %0, l;\n}" : "=f"(f) : "r"(v)); return f;
#endif
}
__device__ __forceinline__ float unpack_high(u32 v) {
#if IS_BF16
  return __uint_as_float(v & 0xFFFF0000u);
#else
  float f; asm("{\n.reg .b16 l, h;\nmov.b32 {l, h}, %1;\ncvt.f32.f16 %0, h;\n}" : "=f"(f) : "r"(v)); return f;
#endif
}
__device__ __forceinline__ float exp2_fast(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
__device__ __forceinline__ float reciprocal(float x) { float y; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
__device__ __forceinline__ float2 load_pair(u32 address) {
  float2 r; asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(r.x), "=f"(r.y) : "r"(address) : "memory"); return r;
}

// Tiles are kept as panels of 64 columns, 128 bytes to a row, whose 16-byte pieces are swizzled: eight rows of one column then lie
// in different banks, and it is the layout `wgmma` calls 128-byte swizzle. Panels begin at multiples of 1024 bytes.
__device__ __forceinline__ u32 slot(u32 tile, int row, int piece) {
  return tile + (piece / 8) * PANEL + row * 128 + ((piece % 8) ^ (row % 8)) * 16;
}

// Starts copying rows first .. first + 63 of one head. `head_base` points at row 0 of the span; rows from `limit` on become zeros.
__device__ __forceinline__ void copy_tile(u32 tile, const char* head_base, long long row_bytes, int first, int limit) {
  #pragma unroll
  for (int i = 0; i < ROWS * PIECES / THREADS; i++) {
    int n = i * THREADS + threadIdx.x, r = n / PIECES, piece = n % PIECES, row = first + r;
    bool valid = row < limit;
    copy_async<16>(slot(tile, r, piece), head_base + (valid ? row : 0) * row_bytes + piece * 16, valid);
  }
}

// A thread's accumulators, of both forms: value 4n + 2h + e is row (lane / 4) + 8h of the warp's 16, column 8n + 2 (lane % 4) + e.
//
// `scores`: acc (64 x 64) = the tile `left` times the transpose of the tile `right`.
// `accumulate`: acc (64 x HEAD_DIM) += left (64 x 64, packed in registers) times the tile `right`.
// Both start a product; `finish<N>` waits until all but the last N started are done, and hands over the accumulators it names.
#if WGMMA
#define REGS_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define REGS_32 REGS_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define REGS_48 REGS_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define REGS_64 REGS_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define OUT_4(a, i) "+f"(a[i]), "+f"(a[i + 1]), "+f"(a[i + 2]), "+f"(a[i + 3])
#define OUT_16(a, i) OUT_4(a, i), OUT_4(a, i + 4), OUT_4(a, i + 8), OUT_4(a, i + 12)

// Shared-memory descriptors, 1024 bytes from one group of eight rows to the next. `by_row`: the contiguous axis is the one summed
// over. `by_column`: it is the output axis, whose next 64 columns lie one panel further.
__device__ __forceinline__ u64 by_row(u32 a) { return (u64)((a & 0x3FFFF) >> 4) | ((u64)1 << 16) | ((u64)64 << 32) | ((u64)1 << 62); }
__device__ __forceinline__ u64 by_column(u32 a) { return (u64)((a & 0x3FFFF) >> 4) | ((u64)(PANEL >> 4) << 16) | ((u64)64 << 32) | ((u64)1 << 62); }

// Keeps the compiler from moving reads and writes of accumulators across the wait for the product that owns them.
template <int N> __device__ __forceinline__ void pin(float (&d)[N]) {
  #pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i]) :: "memory");
}
__device__ __forceinline__ void scores(float (&acc)[SCORES], u32 left, u32 right) {
  pin(acc);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
  #pragma unroll
  for (int k = 0; k < HEAD_DIM / 16; k++) {
    u64 a = by_row(left + (k / 4) * PANEL) + 2 * (k % 4), b = by_row(right + (k / 4) * PANEL) + 2 * (k % 4);
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16." WGMMA_TYPES " {" REGS_32 "}, %32, %33, p, 1, 1, 0, 0;\n}\n"
                 : OUT_16(acc, 0), OUT_16(acc, 16) : "l"(a), "l"(b), "r"((int)(k != 0)));
  }
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void accumulate(float (&acc)[ACC], const u32 (&left)[16], u32 right) {
  pin(acc);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
  #pragma unroll
  for (int k = 0; k < 4; k++) {
    const u32* p = left + 4 * k;
    u64 b = by_column(right + k * 16 * 128);
#if HEAD_DIM == 128
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16." WGMMA_TYPES " {" REGS_64 "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;\n"
                 : OUT_16(acc, 0), OUT_16(acc, 16), OUT_16(acc, 32), OUT_16(acc, 48) : "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]), "l"(b));
#elif HEAD_DIM == 96
    asm volatile("wgmma.mma_async.sync.aligned.m64n96k16." WGMMA_TYPES " {" REGS_48 "}, {%48, %49, %50, %51}, %52, 1, 1, 1, 1;\n"
                 : OUT_16(acc, 0), OUT_16(acc, 16), OUT_16(acc, 32) : "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]), "l"(b));
#elif HEAD_DIM == 64
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16." WGMMA_TYPES " {" REGS_32 "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;\n"
                 : OUT_16(acc, 0), OUT_16(acc, 16) : "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]), "l"(b));
#else
    asm volatile("wgmma.mma_async.sync.aligned.m64n32k16." WGMMA_TYPES " {" REGS_16 "}, {%16, %17, %18, %19}, %20, 1, 1, 1, 1;\n"
                 : OUT_16(acc, 0) : "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]), "l"(b));
#endif
  }
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int PENDING, int N> __device__ __forceinline__ void finish(float (&acc)[N]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(PENDING) : "memory");
  pin(acc);
}
// Copies written by threads become visible to `wgmma`; a barrier has to follow.
__device__ __forceinline__ void publish_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
#else
__device__ __forceinline__ void scores(float (&acc)[SCORES], u32 left, u32 right) {
  int lane = threadIdx.x % 32, swizzle = lane % 8;
  u32 a_row = left + (threadIdx.x / 32 * 16 + lane % 16) * 128, a_piece = ((lane / 16) ^ swizzle) * 16;
  u32 b_row = right + ((lane / 16) * 8 + lane % 8) * 128, b_piece = ((lane / 8 % 2) ^ swizzle) * 16;
  #pragma unroll
  for (int i = 0; i < SCORES; i++) acc[i] = 0.f;
  #pragma unroll
  for (int k = 0; k < HEAD_DIM / 16; k++) {
    u32 a[4], b[4], step = k % 4 * 32;
    load_matrices(a, a_row + (k / 4) * PANEL + (a_piece ^ step));
    #pragma unroll
    for (int n = 0; n < 4; n++) {
      load_matrices(b, b_row + (k / 4) * PANEL + n * 16 * 128 + (b_piece ^ step));
      mma(acc + 8 * n, a, b[0], b[1]);
      mma(acc + 8 * n + 4, a, b[2], b[3]);
    }
  }
}
__device__ __forceinline__ void accumulate(float (&acc)[ACC], const u32 (&left)[16], u32 right) {
  int lane = threadIdx.x % 32;
  u32 row = right + (lane % 16) * 128, piece = ((lane / 16) ^ (lane % 8)) * 16;
  #pragma unroll
  for (int k = 0; k < 4; k++) {
    #pragma unroll
    for (int n = 0; n < HEAD_DIM / 16; n++) {
      u32 b[4];
      load_matrices_transposed(b, row + (n / 4) * PANEL + k * 16 * 128 + (piece ^ (n % 4 * 32)));
      mma(acc + 8 * n, left + 4 * k, b[0], b[1]);
      mma(acc + 8 * n + 4, left + 4 * k, b[2], b[3]);
    }
  }
}
template <int PENDING, int N> __device__ __forceinline__ void finish(float (&)[N]) {}
__device__ __forceinline__ void publish_copies() {}
#endif

// Writes the block's 64 rows of one head, scaled, through a tile nobody reads any more (each warp uses its own rows of it); rows from
// `limit` on are left out.
__device__ __forceinline__ void store_rows(char* head_base, long long row_bytes, int first, int limit, float (&acc)[ACC], float scale, u32 staging) {
  int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16;
  #pragma unroll
  for (int i = 0; i < ACC; i += 2)
    asm volatile("st.shared.b32 [%0], %1;" :: "r"(slot(staging, warp_row + lane / 4 + (i & 2) * 4, i / 4) + (lane % 4) * 4),
                 "r"(pack(acc[i] * scale, acc[i + 1] * scale)) : "memory");
  __syncwarp();
  #pragma unroll
  for (int i = 0; i < 16 * PIECES / 32; i++) {
    int n = i * 32 + lane, r = warp_row + n / PIECES, piece = n % PIECES, row = first + r;
    Piece v;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(slot(staging, r, piece)) : "memory");
    if (row < limit) *(Piece*)(head_base + row * row_bytes + piece * 16) = v;
  }
}

// Scores as the kernels hold them become weights: exp2(raw * c - lse2), with `slope` what the cap multiplies a score's gradient by.
struct Cap { float c, twice, cap2; };
__device__ __forceinline__ Cap make_cap(const Info& info) {
  float scale = __uint_as_float((u32)info.scale);
  Cap r;
  r.c = scale * LOG2E;
#if SOFTCAP
  float cap = __uint_as_float((u32)info.softcap);
  r.twice = 2.f * LOG2E * scale / cap;
  r.cap2 = cap * LOG2E;
#else
  r.twice = r.cap2 = 0.f;
#endif
  return r;
}
__device__ __forceinline__ float weight(float raw, float lse2, const Cap& cap, float& slope) {
#if SOFTCAP
  float t = 1.f - 2.f * reciprocal(1.f + exp2_fast(raw * cap.twice));  // tanh
  slope = 1.f - t * t;
  return exp2_fast(t * cap.cap2 - lse2);
#else
  slope = 1.f;
  return exp2_fast(raw * cap.c - lse2);
#endif
}

// delta[query, head] = sum over the head of dout * out, DELTA_LANES threads to a row.
extern "C" __global__ void __launch_bounds__(256)
attention_delta(const Piece* out, const Piece* dout, float* delta, const __grid_constant__ Info info) {
  u64 row = ((u64)blockIdx.x * 256 + threadIdx.x) / DELTA_LANES;
  int piece = threadIdx.x % DELTA_LANES;
  bool inside = row < info.queries * info.heads;
  float sum = 0.f;
  if (inside && piece < PIECES) {
    Piece a = out[row * PIECES + piece], b = dout[row * PIECES + piece];
    sum = unpack_low(a.x) * unpack_low(b.x) + unpack_high(a.x) * unpack_high(b.x) + unpack_low(a.y) * unpack_low(b.y) + unpack_high(a.y) * unpack_high(b.y)
        + unpack_low(a.z) * unpack_low(b.z) + unpack_high(a.z) * unpack_high(b.z) + unpack_low(a.w) * unpack_low(b.w) + unpack_high(a.w) * unpack_high(b.w);
  }
  #pragma unroll
  for (int i = DELTA_LANES / 2; i; i /= 2) sum += __shfl_xor_sync(~0u, sum, i);
  if (inside && piece == 0) delta[row] = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM)
attention_backward_kv(const char* q, const char* k, const char* v, const char* dout, const float* lse, const float* delta, char* dk, char* dv,
                      const u32* tiles, const __grid_constant__ Info info) {
  extern __shared__ unsigned char raw[];
  u32 k_tile = (shared_address(raw) + 1023) & ~1023u, v_tile = k_tile + TILE_BYTES, ring = v_tile + TILE_BYTES;  // stage s: Q at ring + 2s tiles, dO after it
  u32 statistics = ring + 4 * TILE_BYTES;                                                       // stage s: 64 lse, 64 delta at 512 s

  // Heads vary fastest, so the long tiles of all heads start first.
  u32 heads = (u32)info.heads, kv_heads = (u32)info.kv_heads, block = blockIdx.y * gridDim.x + blockIdx.x;
  int kv_head = block % kv_heads, group = heads / kv_heads;
  const u32* work = tiles + (block / kv_heads) * 5;
  int q_start = work[0], q_len = work[1], k_start = work[2], k_len = work[3], key0 = work[4] * ROWS;
  int window = info.window ? (int)info.window : 0x40000000, offset = k_len - q_len;
  long long q_row = (long long)heads * HEAD_DIM * 2, kv_row = (long long)kv_heads * HEAD_DIM * 2;

  // Queries that see any of these keys.
  int query0 = max(0, key0 - offset), query_end = min(q_len, min(key0 + ROWS, k_len) - 1 + window - offset);
  int per_head = max(0, (query_end - query0 + ROWS - 1) / ROWS), count = per_head * group;

  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int key = key0 + warp * 16 + lane / 4;  // this thread's first row; the other is 8 further
  Cap cap = make_cap(info);

  float dk_acc[ACC], dv_acc[ACC];
  #pragma unroll
  for (int i = 0; i < ACC; i++) dk_acc[i] = dv_acc[i] = 0.f;

  const char* k_base = k + k_start * kv_row + kv_head * HEAD_DIM * 2;
  const char* v_base = v + k_start * kv_row + kv_head * HEAD_DIM * 2;
  copy_tile(k_tile, k_base, kv_row, key0, k_len);
  copy_tile(v_tile, v_base, kv_row, key0, k_len);

  // Queries past the span's end are zeros in Q, dO, lse and delta, and add nothing.
  int fetch_head = kv_head * group, fetch_query = query0;
  auto fetch = [&](int stage) {
    const long long column = (long long)q_start * q_row + fetch_head * HEAD_DIM * 2;
    copy_tile(ring + stage * 2 * TILE_BYTES, q + column, q_row, fetch_query, q_len);
    copy_tile(ring + (stage * 2 + 1) * TILE_BYTES, dout + column, q_row, fetch_query, q_len);
    int row = fetch_query + threadIdx.x % 64;
    bool valid = row < q_len;
    const float* from = threadIdx.x < 64 ? lse : delta;
    copy_async<4>(statistics + stage * 512 + threadIdx.x * 4, from + (long long)(q_start + (valid ? row : 0)) * heads + fetch_head, valid);
    fetch_query += ROWS;
    if (fetch_query >= query_end) { fetch_query = query0; fetch_head++; }
  };

  if (count) fetch(0);
  copy_commit();
  int first_query = query0;
  for (int t = 0; t < count; t++) {
    int stage = t & 1;
    if (t + 1 < count) fetch(stage ^ 1);
    copy_commit();
    copy_wait<1>();
    publish_copies();
    __syncthreads();
    u32 q_tile = ring + stage * 2 * TILE_BYTES, dout_tile = q_tile + TILE_BYTES, lse_row = statistics + stage * 512 + (lane % 4) * 8;

    float s[SCORES], dp[SCORES];
    u32 p[16], ds[16];  // P and dS (before that, P times the cap's slope), packed
    scores(s, k_tile, q_tile);
#if WGMMA
    scores(dp, v_tile, dout_tile);  // in the background; the portable form does it later, when fewer registers are in use
#endif
    finish<1>(s);
    int position0 = first_query + offset;
    bool masked = position0 < key0 + ROWS - 1 || position0 + ROWS - 1 >= key0 + window;
    #pragma unroll
    for (int n = 0; n < 8; n++) {
      float2 l = load_pair(lse_row + n * 32);
      float w[4], slope[4];
      #pragma unroll
      for (int i = 0; i < 4; i++) w[i] = weight(s[4 * n + i], (i & 1 ? l.y : l.x) * LOG2E, cap, slope[i]);
      if (masked) {
        #pragma unroll
        for (int i = 0; i < 4; i++) {
          int position = position0 + n * 8 + (lane % 4) * 2 + (i & 1), j = key + (i / 2) * 8;
          if (j > position || j <= position - window) w[i] = 0.f;
        }
      }
      p[2 * n] = pack(w[0], w[1]);
      p[2 * n + 1] = pack(w[2], w[3]);
#if SOFTCAP
      ds[2 * n] = pack(w[0] * slope[0], w[1] * slope[1]);
      ds[2 * n + 1] = pack(w[2] * slope[2], w[3] * slope[3]);
#else
      ds[2 * n] = p[2 * n];
      ds[2 * n + 1] = p[2 * n + 1];
#endif
    }
    accumulate(dv_acc, p, dout_tile);

#if !WGMMA
    scores(dp, v_tile, dout_tile);
#endif
    finish<1>(dp);
    #pragma unroll
    for (int n = 0; n < 8; n++) {
      float2 d = load_pair(lse_row + 256 + n * 32);
      u32 a = ds[2 * n], b = ds[2 * n + 1];
      ds[2 * n] = pack(unpack_low(a) * (dp[4 * n] - d.x), unpack_high(a) * (dp[4 * n + 1] - d.y));
      ds[2 * n + 1] = pack(unpack_low(b) * (dp[4 * n + 2] - d.x), unpack_high(b) * (dp[4 * n + 3] - d.y));
    }
    accumulate(dk_acc, ds, q_tile);
    finish<0>(dv_acc);
    finish<0>(dk_acc);

    first_query += ROWS;
    if (first_query >= query_end) first_query = query0;
    __syncthreads();
  }
  copy_wait<0>();
  __syncthreads();
  store_rows(dk + k_start * kv_row + kv_head * HEAD_DIM * 2, kv_row, key0, k_len, dk_acc, __uint_as_float((u32)info.scale), k_tile);
  store_rows(dv + k_start * kv_row + kv_head * HEAD_DIM * 2, kv_row, key0, k_len, dv_acc, 1.f, v_tile);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM)
attention_backward_q(const char* q, const char* k, const char* v, const char* dout, const float* lse, const float* delta, char* dq,
                     const u32* tiles, const __grid_constant__ Info info) {
  extern __shared__ unsigned char raw[];
  u32 q_tile = (shared_address(raw) + 1023) & ~1023u, dout_tile = q_tile + TILE_BYTES, ring = dout_tile + TILE_BYTES;  // stage s: K at ring + 2s tiles, V after it

  u32 heads = (u32)info.heads, kv_heads = (u32)info.kv_heads, block = blockIdx.y * gridDim.x + blockIdx.x;
  int head = block % heads, kv_head = head / (heads / kv_heads);
  const u32* work = tiles + (block / heads) * 5;
  int q_start = work[0], q_len = work[1], k_start = work[2], k_len = work[3], query0 = work[4] * ROWS;
  int window = info.window ? (int)info.window : 0x40000000;
  int position0 = k_len - q_len + query0;
  int first = max(0, position0 - window + 1) / ROWS, last = (min(position0 + ROWS, k_len) - 1) / ROWS;
  long long q_row = (long long)heads * HEAD_DIM * 2, kv_row = (long long)kv_heads * HEAD_DIM * 2;
  long long column = (long long)q_start * q_row + head * HEAD_DIM * 2;

  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int position = position0 + warp * 16 + lane / 4;
  Cap cap = make_cap(info);

  float acc[ACC], lse2[2], row_delta[2];
  #pragma unroll
  for (int i = 0; i < ACC; i++) acc[i] = 0.f;

  copy_tile(q_tile, q + column, q_row, query0, q_len);
  copy_tile(dout_tile, dout + column, q_row, query0, q_len);
  const char* k_base = k + k_start * kv_row + kv_head * HEAD_DIM * 2;
  const char* v_base = v + k_start * kv_row + kv_head * HEAD_DIM * 2;
  auto fetch = [&](int stage, int tile) {
    copy_tile(ring + stage * 2 * TILE_BYTES, k_base, kv_row, tile * ROWS, k_len);
    copy_tile(ring + (stage * 2 + 1) * TILE_BYTES, v_base, kv_row, tile * ROWS, k_len);
  };
  fetch(0, first);
  copy_commit();
  #pragma unroll
  for (int h = 0; h < 2; h++) {
    int row = query0 + warp * 16 + lane / 4 + 8 * h;
    long long at = (long long)(q_start + row) * heads + head;
    lse2[h] = row < q_len ? lse[at] * LOG2E : 0.f;
    row_delta[h] = row < q_len ? delta[at] : 0.f;
  }

  for (int tile = first; tile <= last; tile++) {
    int stage = (tile - first) & 1;
    if (tile < last) fetch(stage ^ 1, tile + 1);
    copy_commit();
    copy_wait<1>();
    publish_copies();
    __syncthreads();
    u32 k_tile = ring + stage * 2 * TILE_BYTES, v_tile = k_tile + TILE_BYTES;

    float s[SCORES], dp[SCORES];
    u32 ds[16];
    scores(s, q_tile, k_tile);
    scores(dp, dout_tile, v_tile);
    finish<1>(s);
    int key0 = tile * ROWS;
    bool masked = position0 < key0 + ROWS - 1 || position0 + ROWS - 1 >= key0 + window;
    #pragma unroll
    for (int i = 0; i < SCORES; i++) {
      float slope, w = weight(s[i], lse2[i / 2 % 2], cap, slope);
      s[i] = w * slope;
    }
    if (masked) {
      #pragma unroll
      for (int i = 0; i < SCORES; i++) {
        int j = key0 + (i / 4) * 8 + (lane % 4) * 2 + (i & 1), p = position + (i & 2) * 4;
        if (j > p || j <= p - window) s[i] = 0.f;
      }
    }
    finish<0>(dp);
    #pragma unroll
    for (int i = 0; i < SCORES; i += 2) ds[i / 2] = pack(s[i] * (dp[i] - row_delta[i / 2 % 2]), s[i + 1] * (dp[i + 1] - row_delta[i / 2 % 2]));
    accumulate(acc, ds, k_tile);
    finish<0>(acc);
    __syncthreads();
  }
  store_rows(dq + column, q_row, query0, q_len, acc, __uint_as_float((u32)info.scale), q_tile);
}
