// Hopper matrix product C[M,N] = A[M,K] B[N,K]^T + A2[M,R] B2[N,R]^T + bias[N] + add[M,N].
//
// Every matrix is row-major and contiguous. The second product is a LoRA update: it rides along as
// ceil(R / 64) more blocks of the contraction loop, so it costs neither a launch nor a second pass
// over C. Tiles reach shared memory through the bulk tensor copy engine (TMA) in a ring of stages; one
// producer thread fills the ring, two warpgroups of 64 rows each consume it with wgmma. The grid is
// persistent: a block, or a cluster of two, walks over output tiles, and the copies for the next tile
// run while the previous one is written out.
//
// Target: sm_90a. Compiled at run time; nothing is included.
//
// Settings (each is #defined before this text by the host):
//   IS_BF16      1: A, B, A2, B2 are bf16, 0: f16.
//   OUT_F32      1: C and add are f32, 0: C and add have the type of A.
//   HAS_LORA     1: A2, B2 take part.
//   HAS_BIAS     1: bias (f32, N values) is added to every row.
//   HAS_ADD      1: add (a residual of C's shape and type) is added. It may be the same memory as C.
//   VEC_STORE    1: 16-byte accesses to C, add and bias. It needs N % 8 == 0, or N % 4 == 0 if OUT_F32.
//                0: scalar accesses, any N.
//   B_COLUMNS    0: B and B2 are [N,K] and [N,R], as above. 1: they are [K,N] and [R,N], and the product is
//                A B + A2 B2. wgmma reads such a tile transposed; it is loaded in boxes of 64 x 64.
//   BN           tile width: 64, 128 or 256. The tile height is BM = 128.
//   SPLIT_K      1: a block makes a whole tile. 2, 4 or 8: a cluster of that many blocks shares the
//                contraction of each tile. It pays for one or two narrow tile columns under a long K (x A^T
//                of a LoRA update with R >= 64), and only as 2. With more than 1, CLUSTER is 1, BN at most
//                128, and K at least 64 * SPLIT_K.
//   CLUSTER      1, or 2: two blocks work on vertically adjacent tiles, and each loads one half of the
//                B tile for both. 2 is a gain for BN = 128 with more than one wave of tiles and an even
//                ceil(M / 128), and no loss for BN = 256 then; 1 is better for a single wave.
//
// Parameters, in order:
//   tensor maps  A [M,K] box 128 x 64, B [N,K] box (BN / CLUSTER) x 64,
//                with HAS_LORA: A2 [M,R] box 128 x 64, B2 [N,R] box (BN / CLUSTER) x 64.
//                With B_COLUMNS: B [K,N] and B2 [R,N], box 64 x 64 (BN / CLUSTER is then at least 64).
//                All: 2-byte elements, 128-byte swizzle, no interleave, zero fill out of bounds.
//   one unused pointer for each tensor map,
//   C, with HAS_BIAS: bias, with HAS_ADD: add,
//   info         u64 M, N, K, R (R is ignored without HAS_LORA).
// K and R must be multiples of 8 (the copy engine wants rows on 16-byte boundaries), M and N any.
//
// Launch: block 384; grid CLUSTER * min(SMs / CLUSTER, ceil(ceil(M / 128) / CLUSTER) * ceil(N / BN)),
//   with SPLIT_K > 1: SPLIT_K * ceil(M / 128) * ceil(N / BN).
// Dynamic shared memory in bytes, whatever BN is:
//   1024 + 196608 + (OUT_F32 || HAS_ADD || !VEC_STORE ? 32768 : 16384) + 128.
//
// Choosing BN: the one with the least ceil(tiles / SMs) * cost, where tiles = ceil(M / 128) * ceil(N / BN)
// and cost is 1 for 256, 0.6 for 128 and 0.5 for 64 (a narrow tile makes fewer products of each byte that
// it loads).

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short u16;

struct alignas(64) TMap {
  u64 opaque[16];
};
struct Info {
  u64 M, N, K, R;
};
struct alignas(16) Vec16 {
  u32 x, y, z, w;
};

#define BM 128
#define BK 64
// Width of the piece of a tile that a warp rearranges at a time on the way out.
#define CHUNK 64
#define A_BYTES (BM * BK * 2)
#define B_BYTES (BN * BK * 2)
#define STAGE_BYTES (A_BYTES + B_BYTES)
// Bytes of a box of B where it comes by columns.
#define PANEL_BYTES (BK * 64 * 2)
// 196608 bytes of tiles: 4, 6 or 8 stages for BN 256, 128 or 64.
#define STAGES (196608 / STAGE_BYTES)
#define CONSUMER_WARPS 8
// Tiles are visited in bands of this many tile rows, so that blocks at work share operands in L2.
#define BAND (16 / CLUSTER)
// The output is staged in f32 where something is added after the product: it is then rounded once.
#define STAGE_F32 (OUT_F32 || HAS_ADD || !VEC_STORE)
#define CHUNK_ROW_BYTES (CHUNK * (STAGE_F32 ? 4 : 2))
#define CHUNK_BYTES (16 * CHUNK_ROW_BYTES)
#define ACCS (BN / 2)

#if IS_BF16
#define IN_TYPE "bf16"
#else
#define IN_TYPE "f16"
#endif
#if OUT_F32
typedef float Out;
#else
typedef u16 Out;
#endif
#define VEC_ELEMS (16 / (int)sizeof(Out))
#define VEC_LANES (CHUNK / VEC_ELEMS)
#define VEC_ROWS (32 / VEC_LANES)
#define VECS (16 / VEC_ROWS)

__device__ __forceinline__ u32 shared_address(const void* p) {
  return (u32)__cvta_generic_to_shared(p);
}
__device__ __forceinline__ void barrier_init(u32 barrier, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}
__device__ __forceinline__ void barrier_expect(u32 barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ void barrier_arrive(u32 barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void barrier_arrive_at(u32 barrier, u32 rank) {
  asm volatile(
      "{\n.reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}"
      ::"r"(barrier), "r"(rank) : "memory");
}
__device__ __forceinline__ void barrier_wait(u32 barrier, u32 parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "WAIT:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra READY;\n"
      "bra WAIT;\n"
      "READY:\n}"
      ::"r"(barrier), "r"(parity) : "memory");
}
__device__ __forceinline__ void prefetch_map(const TMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"((u64)map) : "memory");
}
__device__ __forceinline__ void load_tile(u32 to, const TMap* map, u32 barrier, int column, int row) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4}], [%2];"
      ::"r"(to), "l"((u64)map), "r"(barrier), "r"(column), "r"(row) : "memory");
}
// The same, into both blocks of the cluster; each block's own barrier counts what it receives.
__device__ __forceinline__ void load_tile_for_both(u32 to, const TMap* map, u32 barrier, int column, int row) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster"
      " [%0], [%1, {%3, %4}], [%2], %5;"
      ::"r"(to), "l"((u64)map), "r"(barrier), "r"(column), "r"(row), "h"((u16)3) : "memory");
}
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// wgmma's description of a K-major tile whose rows are 128 swizzled bytes.
__device__ __forceinline__ u64 tile_descriptor(u32 address) {
  return (u64)((address & 0x3FFFF) >> 4) | ((u64)1 << 16) | ((u64)64 << 32) | ((u64)1 << 62);
}

// The same for a tile of which the other dimension is contiguous: panels of 64 columns, 64 rows of 128
// swizzled bytes each.
__device__ __forceinline__ u64 column_tile_descriptor(u32 address) {
  return (u64)((address & 0x3FFFF) >> 4) | ((u64)(PANEL_BYTES >> 4) << 16) | ((u64)64 << 32) | ((u64)1 << 62);
}
#if B_COLUMNS
#define TRANSPOSE_B "1"
#define DESCRIBE_B column_tile_descriptor
// From 16 columns of the contraction to the next: 16 rows of a panel.
#define STEP_B 128
#else
#define TRANSPOSE_B "0"
#define DESCRIBE_B tile_descriptor
#define STEP_B 2
#endif

#define ACC8(i)                                                                                   \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]),     \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define ACC32(i) ACC8(i), ACC8(i + 8), ACC8(i + 16), ACC8(i + 24)

// d (+)= a b^T over 16 columns of a tile pair; `keep` 0 overwrites d.
__device__ __forceinline__ void wgmma(float (&d)[ACCS], u64 a, u64 b, int keep) {
#if BN == 256
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32." IN_TYPE "." IN_TYPE " {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
      "}, %128, %129, p, 1, 1, 0, " TRANSPOSE_B ";\n}"
      : ACC32(0), ACC32(32), ACC32(64), ACC32(96)
      : "l"(a), "l"(b), "r"(keep));
#elif BN == 128
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." IN_TYPE "." IN_TYPE " {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, %64, %65, p, 1, 1, 0, " TRANSPOSE_B ";\n}"
      : ACC32(0), ACC32(32)
      : "l"(a), "l"(b), "r"(keep));
#else
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." IN_TYPE "." IN_TYPE " {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, %32, %33, p, 1, 1, 0, " TRANSPOSE_B ";\n}"
      : ACC32(0)
      : "l"(a), "l"(b), "r"(keep));
#endif
}
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int PENDING>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Two f32 as a pair of 2-byte values, the first in the low half.
__device__ __forceinline__ u32 pack(float low, float high) {
  u32 r;
  asm("cvt.rn." IN_TYPE "x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
__device__ __forceinline__ float unpack(u16 v) {
#if IS_BF16
  return __uint_as_float((u32)v << 16);
#else
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v));
  return r;
#endif
}
__device__ __forceinline__ void store_shared8(u32 at, float a, float b) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(at), "f"(a), "f"(b) : "memory");
}
__device__ __forceinline__ void store_matrices(u32 at, u32 a, u32 b, u32 c, u32 d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};"
               ::"r"(at), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}
__device__ __forceinline__ Vec16 load_shared16(u32 at) {
  Vec16 v;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at) : "memory");
  return v;
}
__device__ __forceinline__ float load_shared4(u32 at) {
  float v;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(at) : "memory");
  return v;
}

// Where a warp keeps the 16-byte piece `unit` of row `row` of its 16 x CHUNK staging area. Pieces are
// permuted within a row so that neither the fragment-wise writes nor the row-wise reads meet in a bank.
__device__ __forceinline__ u32 staged(int row, int unit) {
#if STAGE_F32
  return row * CHUNK_ROW_BYTES + ((unit ^ ((row & 3) << 1) ^ (unit >> 3)) << 4);
#else
  return row * CHUNK_ROW_BYTES + ((unit ^ (row & 7)) << 4);
#endif
}

#if SPLIT_K > 1
// Leaves a block's accumulators in its shared memory, where the ring of tiles was, and, in the warps
// whose turn it is, adds up those of the whole cluster, in the order of its blocks.
__device__ __forceinline__ void add_partials(float (&d)[ACCS], u32 at, int part, int warp, u32 thread) {
  asm volatile("bar.sync 1, 256;" ::: "memory");  // the other warpgroup has read the ring, too
  u32 mine = at + 4 * thread;
#pragma unroll
  for (int i = 0; i < ACCS; i++) asm volatile("st.shared.f32 [%0], %1;" ::"r"(mine + 1024 * i), "f"(d[i]) : "memory");
  cluster_sync();
  if (warp % SPLIT_K != part) return;
#pragma unroll
  for (u32 from = 0; from < SPLIT_K; from++) {
    u32 theirs;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(theirs) : "r"(mine), "r"(from));
#pragma unroll
    for (int i = 0; i < ACCS; i++) {
      float v;
      asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(v) : "r"(theirs + 1024 * i) : "memory");
      d[i] = from == 0 ? v : d[i] + v;
    }
  }
}
#endif

// The tile that a visit number stands for, as tile row (of a cluster's tiles) and tile column.
__device__ __forceinline__ void tile_at(int visit, int tile_rows, int tile_columns, int& tile_row, int& tile_column) {
  int per_band = BAND * tile_columns;
  int band = visit / per_band;
  int first = band * BAND;
  int rows = min(tile_rows - first, BAND);
  int within = visit - band * per_band;
  tile_row = first + within % rows;
  tile_column = within / rows;
}

// Writes 16 rows x CHUNK columns of C from a warp's staging area.
__device__ __forceinline__ void write_chunk(u32 stage, Out* C, const Out* add, const Vec16* residual, int row0,
                                            int column0, int M, int N, int lane) {
#if VEC_STORE
  int vec = lane % VEC_LANES;
  int column = column0 + vec * VEC_ELEMS;
#pragma unroll
  for (int i = 0; i < VECS; i++) {
    int r = i * VEC_ROWS + lane / VEC_LANES;
    Vec16 out;
#if !STAGE_F32
    out = load_shared16(stage + staged(r, vec));
#else
    float v[VEC_ELEMS];
#pragma unroll
    for (int e = 0; e < VEC_ELEMS; e += 4) {
      Vec16 s = load_shared16(stage + staged(r, (vec * VEC_ELEMS + e) / 4));
      v[e] = __uint_as_float(s.x), v[e + 1] = __uint_as_float(s.y);
      v[e + 2] = __uint_as_float(s.z), v[e + 3] = __uint_as_float(s.w);
    }
#if HAS_ADD
    u32 words[4] = {residual[i].x, residual[i].y, residual[i].z, residual[i].w};
#pragma unroll
    for (int e = 0; e < VEC_ELEMS; e++) {
#if OUT_F32
      v[e] += __uint_as_float(words[e]);
#else
      v[e] += unpack((u16)(words[e / 2] >> (16 * (e & 1))));
#endif
    }
#endif
#if OUT_F32
    out.x = __float_as_uint(v[0]), out.y = __float_as_uint(v[1]);
    out.z = __float_as_uint(v[2]), out.w = __float_as_uint(v[3]);
#else
    out.x = pack(v[0], v[1]), out.y = pack(v[2], v[3]), out.z = pack(v[4], v[5]), out.w = pack(v[6], v[7]);
#endif
#endif
    if (row0 + r < M && column < N) *(Vec16*)(C + (u64)(row0 + r) * N + column) = out;
  }
#else
  for (int r = 0; r < 16 && row0 + r < M; r++) {
#pragma unroll
    for (int c = lane; c < CHUNK; c += 32) {
      int column = column0 + c;
      if (column < N) {
        u64 at = (u64)(row0 + r) * N + column;
        float v = load_shared4(stage + staged(r, c / 4) + (c & 3) * 4);
#if OUT_F32
#if HAS_ADD
        v += add[at];
#endif
        C[at] = v;
#else
#if HAS_ADD
        v += unpack(add[at]);
#endif
        C[at] = (u16)pack(v, 0.f);
#endif
      }
    }
  }
#endif
}

#if HAS_BIAS
// Adds to a chunk's accumulators; `column` is that of the first one.
__device__ __forceinline__ void add_bias(float* f, const float* bias, int column, int N) {
#pragma unroll
  for (int j = 0; j < CHUNK / 8; j++, column += 8) {
    float2 b = make_float2(0.f, 0.f);
#if VEC_STORE
    if (column < N) b = *(const float2*)(bias + column);
#else
    if (column < N) b.x = bias[column];
    if (column + 1 < N) b.y = bias[column + 1];
#endif
    f[4 * j] += b.x, f[4 * j + 1] += b.y, f[4 * j + 2] += b.x, f[4 * j + 3] += b.y;
  }
}
#endif

#if HAS_ADD
// Brings a warp's part of the residual into L2 while the tile is being computed.
__device__ __forceinline__ void prefetch_residual(const Out* add, int row0, int column0, int M, int N, int lane) {
  const int line = 128 / (int)sizeof(Out);
#pragma unroll
  for (int i = lane; i < 16 * (BN / line); i += 32) {
    int row = row0 + i / (BN / line), column = column0 + i % (BN / line) * line;
    if (row < M && column < N) asm volatile("prefetch.global.L2 [%0];" ::"l"(add + (u64)row * N + column));
  }
}
#endif

// The residual's share of a chunk, in the order in which write_chunk adds it.
__device__ __forceinline__ void load_residual(Vec16* residual, const Out* add, int row0, int column0, int M, int N,
                                              int lane) {
  int column = column0 + lane % VEC_LANES * VEC_ELEMS;
#pragma unroll
  for (int i = 0; i < VECS; i++) {
    int row = row0 + i * VEC_ROWS + lane / VEC_LANES;
    residual[i] = Vec16{0, 0, 0, 0};
    if (row < M && column < N) residual[i] = *(const Vec16*)(add + (u64)row * N + column);
  }
}

extern "C" __global__ void __launch_bounds__(384, 1)
#if CLUSTER * SPLIT_K > 1
__cluster_dims__(CLUSTER * SPLIT_K, 1, 1)
#endif
gemm_nt(const __grid_constant__ TMap map_a, const __grid_constant__ TMap map_b,
#if HAS_LORA
        const __grid_constant__ TMap map_a2, const __grid_constant__ TMap map_b2,
#endif
        const void* unused_a, const void* unused_b,
#if HAS_LORA
        const void* unused_a2, const void* unused_b2,
#endif
        Out* C,
#if HAS_BIAS
        const float* bias,
#endif
#if HAS_ADD
        const Out* add,
#endif
        const __grid_constant__ Info info) {
#if !HAS_ADD
  const Out* add = 0;
#endif
  extern __shared__ unsigned char dynamic_shared[];
  // Swizzled tiles must start at multiples of 1024 bytes.
  u32 tiles = (shared_address(dynamic_shared) + 1023) & ~1023u;
  u32 staging = tiles + STAGES * STAGE_BYTES;
  u32 full = staging + CONSUMER_WARPS * CHUNK_BYTES;
  u32 empty = full + 64;
  int M = (int)info.M, N = (int)info.N;
  int k_blocks = ((int)info.K + BK - 1) / BK;
  u32 cluster_rank = 0;
#if CLUSTER * SPLIT_K > 1
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(cluster_rank));
#endif
  // The tile of the cluster's, and the part of the contraction, that this block does.
  int rank = CLUSTER > 1 ? cluster_rank : 0;
  int part = SPLIT_K > 1 ? cluster_rank : 0;
  int first_k = k_blocks * part / SPLIT_K, end_k = k_blocks * (part + 1) / SPLIT_K;
#if HAS_LORA
  int lora_blocks = part == 0 ? ((int)info.R + BK - 1) / BK : 0;
#endif
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; s++) {
      barrier_init(full + 8 * s, 1);
      barrier_init(empty + 8 * s, CONSUMER_WARPS * CLUSTER);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async;" ::: "memory");
  }
#if CLUSTER * SPLIT_K > 1
  cluster_sync();
#else
  __syncthreads();
#endif
  int tile_rows = ((M + BM - 1) / BM + CLUSTER - 1) / CLUSTER;
  int tile_columns = (N + BN - 1) / BN;
  int visits = tile_rows * tile_columns;
  int first_visit = blockIdx.x / (CLUSTER * SPLIT_K), stride = gridDim.x / (CLUSTER * SPLIT_K);
  int warpgroup = threadIdx.x / 128;

  if (warpgroup == 0) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == 0) {
      prefetch_map(&map_a);
      prefetch_map(&map_b);
#if HAS_LORA
      prefetch_map(&map_a2);
      prefetch_map(&map_b2);
#endif
      int stage = 0;
      u32 parity = 1;  // an untouched ring counts as emptied
      for (int visit = first_visit; visit < visits; visit += stride) {
        int tile_row, tile_column;
        tile_at(visit, tile_rows, tile_columns, tile_row, tile_column);
        int row_a = (tile_row * CLUSTER + rank) * BM;
        int row_b = tile_column * BN + rank * (BN / CLUSTER);
        auto load_block = [&](const TMap* a, const TMap* b, int column) {
          barrier_wait(empty + 8 * stage, parity);
          u32 ready = full + 8 * stage;
          u32 to_a = tiles + stage * STAGE_BYTES;
          u32 to_b = to_a + A_BYTES + rank * (B_BYTES / CLUSTER);
          barrier_expect(ready, STAGE_BYTES);
          load_tile(to_a, a, ready, column, row_a);
#if B_COLUMNS
#pragma unroll
          for (int panel = 0; panel < BN / 64 / CLUSTER; panel++) {
#if CLUSTER == 2
            load_tile_for_both(to_b + panel * PANEL_BYTES, b, ready, row_b + 64 * panel, column);
#else
            load_tile(to_b + panel * PANEL_BYTES, b, ready, row_b + 64 * panel, column);
#endif
          }
#elif CLUSTER == 2
          load_tile_for_both(to_b, b, ready, column, row_b);
#else
          load_tile(to_b, b, ready, column, row_b);
#endif
          if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
          }
        };
#if HAS_LORA
        // Narrow tiles come in slowly; put first, they do so while the previous tile is written out.
        for (int k = 0; k < lora_blocks; k++) load_block(&map_a2, &map_b2, k * BK);
#endif
        for (int k = first_k; k < end_k; k++) load_block(&map_a, &map_b, k * BK);
      }
    }
#if SPLIT_K > 1
    __syncwarp();
    cluster_sync();  // the one in add_partials
#endif
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    int group = warpgroup - 1;
    int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    u32 my_staging = staging + (group * 4 + warp) * CHUNK_BYTES;
    int stage = 0, previous = 0;
    u32 parity = 0;
    float d[ACCS];
    auto release = [&](int s) {
      if (lane < CLUSTER) {
        if (CLUSTER == 1)
          barrier_arrive(empty + 8 * s);
        else
          barrier_arrive_at(empty + 8 * s, lane);
      }
    };
    for (int visit = first_visit; visit < visits; visit += stride) {
      int tile_row, tile_column;
      tile_at(visit, tile_rows, tile_columns, tile_row, tile_column);
      int row0 = (tile_row * CLUSTER + rank) * BM + group * 64 + warp * 16;
#if HAS_ADD
      prefetch_residual(add, row0, tile_column * BN, M, N, lane);
#endif
      bool started = false;
      u64 a, b;
      auto begin_block = [&]() {
        barrier_wait(full + 8 * stage, parity);
        u32 at = tiles + stage * STAGE_BYTES;
        a = tile_descriptor(at + group * (A_BYTES / 2));
        b = DESCRIBE_B(at + A_BYTES);
        wgmma_fence();
      };
      auto end_block = [&]() {
        wgmma_commit();
        if (started) {
          // The block before this one has been read: hand its stage back while this one multiplies.
          wgmma_wait<1>();
          release(previous);
        }
        started = true;
        previous = stage;
        if (++stage == STAGES) {
          stage = 0;
          parity ^= 1;
        }
      };
#if HAS_LORA
      for (int k = 0; k < lora_blocks; k++) {
        begin_block();
        wgmma(d, a, b, started);
        int steps = (min((int)info.R - k * BK, BK) + 15) / 16;
#pragma unroll 1
        for (int step = 1; step < steps; step++) wgmma(d, a + 2 * step, b + STEP_B * step, 1);
        end_block();
      }
#endif
      for (int k = first_k; k < end_k; k++) {
        begin_block();
#pragma unroll
        for (int step = 0; step < BK / 16; step++) wgmma(d, a + 2 * step, b + STEP_B * step, started | step);
        end_block();
      }
#if HAS_ADD && VEC_STORE
      Vec16 residual[VECS];
      load_residual(residual, add, row0, tile_column * BN, M, N, lane);
#else
      const Vec16* residual = 0;
#endif
      wgmma_wait<0>();
      release(previous);
#if SPLIT_K > 1
      add_partials(d, tiles, part, group * 4 + warp, threadIdx.x - 128);
      if ((group * 4 + warp) % SPLIT_K != part) break;
#endif
#pragma unroll
      for (int c = 0; c < BN / CHUNK; c++) {
        int column0 = tile_column * BN + c * CHUNK;
        float* f = d + c * (CHUNK / 2);
#if HAS_BIAS
        add_bias(f, bias, column0 + lane % 4 * 2, N);
#endif
#if STAGE_F32
#pragma unroll
        for (int j = 0; j < CHUNK / 8; j++) {
          int unit = 2 * j + (lane & 3) / 2;
          u32 half = (lane & 1) * 8;
          store_shared8(my_staging + staged(lane / 4, unit) + half, f[4 * j], f[4 * j + 1]);
          store_shared8(my_staging + staged(lane / 4 + 8, unit) + half, f[4 * j + 2], f[4 * j + 3]);
        }
#else
#pragma unroll
        for (int j = 0; j < CHUNK / 8; j += 2)
          store_matrices(my_staging + staged(lane & 15, j + (lane >> 4)), pack(f[4 * j], f[4 * j + 1]),
                         pack(f[4 * j + 2], f[4 * j + 3]), pack(f[4 * j + 4], f[4 * j + 5]),
                         pack(f[4 * j + 6], f[4 * j + 7]));
#endif
        __syncwarp();
#if HAS_ADD && VEC_STORE
        // Fetch the next chunk's residual while this one is written.
        Vec16 next[VECS];
        if (c + 1 < BN / CHUNK) load_residual(next, add, row0, column0 + CHUNK, M, N, lane);
#endif
        if (row0 < M && column0 < N) write_chunk(my_staging, C, add, residual, row0, column0, M, N, lane);
#if HAS_ADD && VEC_STORE
#pragma unroll
        for (int i = 0; i < VECS; i++)
          if (c + 1 < BN / CHUNK) residual[i] = next[i];
#endif
        __syncwarp();
      }
      if (SPLIT_K > 1) break;  // a cluster makes a single tile
    }
  }
#if CLUSTER * SPLIT_K > 1
  // Another block may still signal this one's barriers or read its partial sums: stay until it is done.
  __syncwarp();
  cluster_sync();
#endif
}
