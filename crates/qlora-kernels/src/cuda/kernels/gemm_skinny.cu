// Matrix products with one narrow side, as LoRA needs them. They are bound by reading the wide operand
// once, so each lane takes 16-byte pieces of it straight from global memory into tensor-core registers.
// That works without a trip through shared memory because the order in which a contraction sums is
// free: the hardware's fragment positions are simply assigned to whatever a lane has loaded, the same
// way for both operands. Results do not depend on timing: every sum has a fixed order, there are no
// atomics.
//
//   skinny_nt        C[M,R] = A[M,K] B[R,K]^T                      (x A^T)
//   skinny_tn        C = alpha X[M,P]^T Y[M,R], as [P,R] or [R,P]  (the gradients of A and of B)
//   reduce_partials  the second half of skinny_tn when it is split over M
//
// Every matrix is row-major and contiguous. Target: sm_80 or later. Nothing is included.
//
// Settings (each is #defined before this text by the host):
//   IS_BF16         1: the inputs are bf16, 0: f16. C of skinny_nt has that type; C of skinny_tn is f32.
//   R_TILE          16, 32, 64 or 128: the smallest that holds R. (R is a multiple of 8, up to 128.)
//   OUT_TRANSPOSED  skinny_tn and reduce_partials: 1: C is [R,P], 0: [P,R].
//
// skinny_nt: pointers A, B, C; info u64 M, K, R. K a multiple of 8. (From R = 64 on, a tiled product with
//   the contraction split in two, gemm_nt_sm90.cu, is faster where there is one.)
//   Block 512, grid ceil(M / 32),
//   dynamic shared memory R_TILE <= 32 ? 2048 * R_TILE : 65536 bytes (32768, 65536, 65536, 65536).
// skinny_tn: pointers X, Y, OUT; info u64 M, P, R, splits, alpha (f32 bits in the low half).
//   P a multiple of 8. Block 256, grid (tiles, splits) where
//     R_TILE <= 32: tiles = ceil(P / 64), dynamic shared memory 2048 * R_TILE bytes (32768 or 65536),
//     R_TILE >= 64: tiles = ceil(P / 128), dynamic shared memory 6 * (8192 + 64 * R_TILE) bytes.
//   splits == 1: OUT is C. Otherwise OUT is an f32 workspace of splits * R * P values that needs no
//   initialisation, and reduce_partials makes C of it.
//   A good choice is splits = max(1, min(2 * SMs / tiles, M / 256)), rounded down: two blocks for each
//   multiprocessor, and no second launch for few rows.
// reduce_partials: pointers WORKSPACE, C; info as for skinny_tn.
//   Block 256, grid ceil(P * R / 1024), no shared memory.

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short u16;

struct alignas(16) Vec16 {
  u32 x, y, z, w;
};
struct alignas(8) Vec8 {
  u32 x, y;
};
struct NtInfo {
  u64 M, K, R;
};
struct TnInfo {
  u64 M, P, R, splits, alpha;
};

#if IS_BF16
#define IN_TYPE "bf16"
#else
#define IN_TYPE "f16"
#endif

// The columns of R that one warp covers. Wider tiles are shared by several warps, which then read the
// same part of the wide operand at about the same time, from L1.
#define WARP_R (R_TILE < 32 ? R_TILE : 32)
#define R_WARPS (R_TILE / WARP_R)

__device__ __forceinline__ u32 pack(float low, float high) {
  u32 r;
  asm("cvt.rn." IN_TYPE "x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
__device__ __forceinline__ Vec16 load16(const u16* p) {
  Vec16 v;
  asm volatile("ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}
// d += a b, on a 16 x 8 tile over 16 terms.
__device__ __forceinline__ void mma(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." IN_TYPE "." IN_TYPE ".f32"
               " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
// The low, or the high, halves of a pair of words.
__device__ __forceinline__ u32 low_halves(u32 first, u32 second) {
  return __byte_perm(first, second, 0x5410);
}
__device__ __forceinline__ u32 high_halves(u32 first, u32 second) {
  return __byte_perm(first, second, 0x7632);
}

#define NT_ROWS 32
#define NT_WARPS 16
#define NT_K_WARPS (NT_WARPS / R_WARPS)
#define NT_STEP 64

// A block makes 32 rows of C; its warps share out the contraction in steps of 64.
extern "C" __global__ void __launch_bounds__(512, 1)
skinny_nt(const u16* __restrict__ A, const u16* __restrict__ B, u16* __restrict__ C,
          const __grid_constant__ NtInfo info) {
  extern __shared__ float shared[];
  int M = (int)info.M, K = (int)info.K, R = (int)info.R;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int k_warp = warp / R_WARPS, r0 = warp % R_WARPS * WARP_R;
  int g = lane / 4, t = lane % 4;
  int row0 = blockIdx.x * NT_ROWS;

  // Rows past the end repeat the last one: they are computed, but not stored.
  const u16* a_rows[4];
#pragma unroll
  for (int i = 0; i < 4; i++) a_rows[i] = A + (u64)min(row0 + 8 * i + g, M - 1) * K + 8 * t;
  const u16* b_rows = B + (u64)(r0 + g) * K + 8 * t;

  float d[2][WARP_R / 8][4] = {};
  for (int k0 = k_warp * NT_STEP; k0 < K; k0 += NT_K_WARPS * NT_STEP) {
    // Lane (g, t) holds terms 8t .. 8t+7 of each 32 for row g: one piece feeds two products.
    Vec16 a[2][4], b[2][WARP_R / 8];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      int k = k0 + 32 * h;
      bool inside = k + 8 * t < K;
#pragma unroll
      for (int i = 0; i < 4; i++) {
        a[h][i] = Vec16{0, 0, 0, 0};
        if (inside) a[h][i] = load16(a_rows[i] + k);
      }
#pragma unroll
      for (int n = 0; n < WARP_R / 8; n++) {
        b[h][n] = Vec16{0, 0, 0, 0};
        if (inside && r0 + 8 * n < R) b[h][n] = load16(b_rows + (u64)(8 * n) * K + k);
      }
    }
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
      for (int m = 0; m < 2; m++)
#pragma unroll
        for (int n = 0; n < WARP_R / 8; n++) {
          const Vec16 &u = a[h][2 * m], &v = a[h][2 * m + 1], &w = b[h][n];
          mma(d[m][n], u.x, v.x, u.y, v.y, w.x, w.y);
          mma(d[m][n], u.z, v.z, u.w, v.w, w.z, w.w);
        }
  }

  // Add up what the warps made, in the order of the warps.
  float* mine = shared + k_warp * (NT_ROWS * R_TILE) + r0;
#pragma unroll
  for (int m = 0; m < 2; m++)
#pragma unroll
    for (int n = 0; n < WARP_R / 8; n++) {
      float* at = mine + (16 * m + g) * R_TILE + 8 * n + 2 * t;
      at[0] = d[m][n][0];
      at[1] = d[m][n][1];
      at[8 * R_TILE] = d[m][n][2];
      at[8 * R_TILE + 1] = d[m][n][3];
    }
  __syncthreads();
  for (int pair = threadIdx.x; pair < NT_ROWS * R_TILE / 2; pair += NT_WARPS * 32) {
    int row = pair / (R_TILE / 2), r = pair % (R_TILE / 2) * 2;
    float low = 0.f, high = 0.f;
#pragma unroll
    for (int w = 0; w < NT_K_WARPS; w++) {
      low += shared[w * (NT_ROWS * R_TILE) + 2 * pair];
      high += shared[w * (NT_ROWS * R_TILE) + 2 * pair + 1];
    }
    if (row0 + row < M && r < R) *(u32*)(C + (u64)(row0 + row) * R + r) = pack(low, high);
  }
}

#if R_TILE <= 32

#define TN_WARPS 8
#define TN_M_WARPS (TN_WARPS / R_WARPS)
#define TN_COLUMNS 64
// Tokens that a warp takes at a time.
#define TN_STEP 32

// A block makes 64 columns of X by R values from its share of the tokens; its warps take turns at
// steps of 32 tokens.
extern "C" __global__ void __launch_bounds__(256, 2)
skinny_tn(const u16* __restrict__ X, const u16* __restrict__ Y, float* __restrict__ OUT,
          const __grid_constant__ TnInfo info) {
  extern __shared__ float shared[];
  int M = (int)info.M, P = (int)info.P, R = (int)info.R, splits = (int)info.splits;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int m_warp = warp / R_WARPS, r0 = warp % R_WARPS * WARP_R;
  int g = lane / 4, t = lane % 4;
  int p0 = blockIdx.x * TN_COLUMNS;

  int steps = (M + TN_STEP - 1) / TN_STEP;
  int first = (int)((u64)steps * blockIdx.y / splits), end = (int)((u64)steps * (blockIdx.y + 1) / splits);

  // Lane (g, t) loads columns 8g .. 8g+7 of X for the tokens 4t .. 4t+3 of each 16, and of Y the
  // WARP_R / 8 neighbouring columns from r on. So row i (or i + 8) of the product's m-th 16-row tile
  // stands for column r0 + i * WARP_R / 8 + 2m (or + 1) of Y, and column c of its n-th 8-column tile
  // for column p0 + 8c + n of X.
  int p = p0 + 8 * g, r = r0 + g * (WARP_R / 8);
  bool p_inside = p < P, r_inside = r < R;
  float d[WARP_R / 16][8][4] = {};
  for (int step = first + m_warp; step < end; step += TN_M_WARPS) {
    Vec16 x[TN_STEP / 16][4];
    u32 y[TN_STEP / 16][4][WARP_R / 16];
#pragma unroll
    for (int h = 0; h < TN_STEP / 16; h++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        int token = step * TN_STEP + 16 * h + 4 * t + i;
        x[h][i] = Vec16{0, 0, 0, 0};
        if (p_inside && token < M) x[h][i] = load16(X + (u64)token * P + p);
        bool inside = r_inside && token < M;
        const u16* from = Y + (u64)token * R + r;
#if R_TILE == 16
        y[h][i][0] = inside ? *(const u32*)from : 0;
#else
        Vec8 v = inside ? *(const Vec8*)from : Vec8{0, 0};
        y[h][i][0] = v.x;
        y[h][i][1] = v.y;
#endif
      }
#pragma unroll
    for (int h = 0; h < TN_STEP / 16; h++) {
      u32 b[4][4];  // the words of the four tokens' pieces
#pragma unroll
      for (int i = 0; i < 4; i++) b[i][0] = x[h][i].x, b[i][1] = x[h][i].y, b[i][2] = x[h][i].z, b[i][3] = x[h][i].w;
#pragma unroll
      for (int m = 0; m < WARP_R / 16; m++) {
        u32 a0 = low_halves(y[h][0][m], y[h][1][m]), a1 = high_halves(y[h][0][m], y[h][1][m]);
        u32 a2 = low_halves(y[h][2][m], y[h][3][m]), a3 = high_halves(y[h][2][m], y[h][3][m]);
#pragma unroll
        for (int n = 0; n < 8; n += 2) {
          mma(d[m][n], a0, a1, a2, a3, low_halves(b[0][n / 2], b[1][n / 2]), low_halves(b[2][n / 2], b[3][n / 2]));
          mma(d[m][n + 1], a0, a1, a2, a3, high_halves(b[0][n / 2], b[1][n / 2]),
              high_halves(b[2][n / 2], b[3][n / 2]));
        }
      }
    }
  }

  // Add up what the warps made, in the order of the warps.
  float* mine = shared + m_warp * (R_TILE * TN_COLUMNS);
#pragma unroll
  for (int m = 0; m < WARP_R / 16; m++)
#pragma unroll
    for (int n = 0; n < 8; n++) {
      float* at = mine + (r + 2 * m) * TN_COLUMNS + 16 * t + n;
      at[0] = d[m][n][0];
      at[8] = d[m][n][1];
      at[TN_COLUMNS] = d[m][n][2];
      at[TN_COLUMNS + 8] = d[m][n][3];
    }
  __syncthreads();
  float alpha = __uint_as_float((u32)info.alpha);
  for (int i = threadIdx.x; i < R_TILE * TN_COLUMNS; i += TN_WARPS * 32) {
    float sum = 0.f;
    int row, column;
    if (OUT_TRANSPOSED || splits > 1) {
      row = i / TN_COLUMNS;
      column = i % TN_COLUMNS;
    } else {
      row = i % R_TILE;
      column = i / R_TILE;
    }
#pragma unroll
    for (int w = 0; w < TN_M_WARPS; w++) sum += shared[w * (R_TILE * TN_COLUMNS) + row * TN_COLUMNS + column];
    if (row < R && p0 + column < P) {
      if (splits > 1)
        OUT[((u64)blockIdx.y * R + row) * P + p0 + column] = sum;
      else if (OUT_TRANSPOSED)
        OUT[(u64)row * P + p0 + column] = alpha * sum;
      else
        OUT[(u64)(p0 + column) * R + row] = alpha * sum;
    }
  }
}

#else  // R_TILE 64 or 128: both operands are worth sharing between warps

#define TN_STEP 32
#define TN_COLUMNS 128
#define TN_STAGES 6
#define TN_X_BYTES (TN_STEP * TN_COLUMNS * 2)
#define TN_Y_BYTES (TN_STEP * R_TILE * 2)
// Eight warps tile R_TILE x 128 as 4 x 2 or 2 x 4, each 32 x TN_WARP_COLUMNS.
#define TN_R_WARPS (R_TILE / 32)
#define TN_WARP_COLUMNS (TN_COLUMNS * TN_R_WARPS / 8)

// A 16-byte copy to shared memory that completes later; zeros instead if not `inside`.
__device__ __forceinline__ void copy_async(u32 to, const u16* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(inside ? 16 : 0) : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(u32 (&v)[4], u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3]) : "r"(at) : "memory");
}
// The place of the 16-byte piece `unit` of a token's row of `row_bytes`, permuted so that eight tokens'
// pieces lie in different banks.
__device__ __forceinline__ u32 piece(int token, int unit, int row_bytes) {
  return token * row_bytes + ((unit ^ (token & 7)) << 4);
}

// A block makes 128 columns of X by R values from its share of the tokens, which pass through a ring
// of shared-memory stages.
extern "C" __global__ void __launch_bounds__(256)
skinny_tn(const u16* __restrict__ X, const u16* __restrict__ Y, float* __restrict__ OUT,
          const __grid_constant__ TnInfo info) {
  extern __shared__ __align__(128) unsigned char ring[];
  u32 base = (u32)__cvta_generic_to_shared(ring);
  int M = (int)info.M, P = (int)info.P, R = (int)info.R, splits = (int)info.splits;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int r0 = warp % TN_R_WARPS * 32, c0 = warp / TN_R_WARPS * TN_WARP_COLUMNS;
  int p0 = blockIdx.x * TN_COLUMNS;
  int all_steps = (M + TN_STEP - 1) / TN_STEP;
  int first = (int)((u64)all_steps * blockIdx.y / splits);
  int steps = (int)((u64)all_steps * (blockIdx.y + 1) / splits) - first;

  auto fetch = [&](int step) {
    if (step < steps) {
      u32 x = base + step % TN_STAGES * (TN_X_BYTES + TN_Y_BYTES), y = x + TN_X_BYTES;
      int token0 = (first + step) * TN_STEP;
#pragma unroll
      for (int i = threadIdx.x; i < TN_X_BYTES / 16; i += 256) {
        int token = i / (TN_COLUMNS / 8), unit = i % (TN_COLUMNS / 8), p = p0 + 8 * unit;
        bool inside = token0 + token < M && p < P;
        copy_async(x + piece(token, unit, TN_COLUMNS * 2), inside ? X + (u64)(token0 + token) * P + p : X, inside);
      }
#pragma unroll
      for (int i = threadIdx.x; i < TN_Y_BYTES / 16; i += 256) {
        int token = i / (R_TILE / 8), unit = i % (R_TILE / 8), r = 8 * unit;
        bool inside = token0 + token < M && r < R;
        copy_async(y + piece(token, unit, R_TILE * 2), inside ? Y + (u64)(token0 + token) * R + r : Y, inside);
      }
    }
    asm volatile("cp.async.commit_group;" ::: "memory");  // empty ones keep the count
  };

  float d[2][TN_WARP_COLUMNS / 8][4] = {};
  for (int step = 0; step < TN_STAGES - 1; step++) fetch(step);
  int row = lane % 8, low = lane / 8 % 2, high = lane / 16;
  for (int step = 0; step < steps; step++) {
    asm volatile("cp.async.wait_group %0;" ::"n"(TN_STAGES - 2) : "memory");
    __syncthreads();  // the stage has arrived for all, and all have left the one to be refilled
    fetch(step + TN_STAGES - 1);
    u32 x = base + step % TN_STAGES * (TN_X_BYTES + TN_Y_BYTES), y = x + TN_X_BYTES;
#pragma unroll
    for (int k = 0; k < TN_STEP; k += 16) {
      u32 a[2][4], b[TN_WARP_COLUMNS / 16][4];
#pragma unroll
      for (int m = 0; m < 2; m++)
        load_matrices_transposed(a[m], y + piece(k + row + 8 * high, r0 / 8 + 2 * m + low, R_TILE * 2));
#pragma unroll
      for (int n = 0; n < TN_WARP_COLUMNS / 16; n++)
        load_matrices_transposed(b[n], x + piece(k + row + 8 * low, c0 / 8 + 2 * n + high, TN_COLUMNS * 2));
#pragma unroll
      for (int m = 0; m < 2; m++)
#pragma unroll
        for (int n = 0; n < TN_WARP_COLUMNS / 8; n++)
          mma(d[m][n], a[m][0], a[m][1], a[m][2], a[m][3], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
    }
  }

  float alpha = __uint_as_float((u32)info.alpha);
#pragma unroll
  for (int m = 0; m < 2; m++)
#pragma unroll
    for (int n = 0; n < TN_WARP_COLUMNS / 8; n++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        int r = r0 + 16 * m + 8 * half + lane / 4, p = p0 + c0 + 8 * n + lane % 4 * 2;
        float v = d[m][n][2 * half], w = d[m][n][2 * half + 1];
        if (r < R && p < P) {
          if (splits > 1) {
            *(float2*)(OUT + ((u64)blockIdx.y * R + r) * P + p) = make_float2(v, w);
          } else if (OUT_TRANSPOSED) {
            *(float2*)(OUT + (u64)r * P + p) = make_float2(alpha * v, alpha * w);
          } else {
            OUT[(u64)p * R + r] = alpha * v;
            OUT[(u64)(p + 1) * R + r] = alpha * w;
          }
        }
      }
}

#endif

// C = alpha * the sum of `splits` partial results, each [R,P], in order. A thread makes four values.
extern "C" __global__ void __launch_bounds__(256)
reduce_partials(const float* __restrict__ WORKSPACE, float* __restrict__ C, const __grid_constant__ TnInfo info) {
  int P = (int)info.P, R = (int)info.R, splits = (int)info.splits;
  int quad = blockIdx.x * 256 + threadIdx.x;
  if (quad >= P * R / 4) return;
  u64 partial = (u64)R * P;
  float alpha = __uint_as_float((u32)info.alpha);
  float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#if OUT_TRANSPOSED
  const float* from = WORKSPACE + 4 * (u64)quad;
#pragma unroll 4
  for (int s = 0; s < splits; s++) {
    float4 v = *(const float4*)(from + s * partial);
    sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
  }
  u64 to = 4 * (u64)quad;
#else
  // Neighbouring threads read neighbouring columns; each writes four neighbouring values of a row.
  int column = quad % P, row = quad / P * 4;
  const float* from = WORKSPACE + (u64)row * P + column;
#pragma unroll 4
  for (int s = 0; s < splits; s++) {
    const float* at = from + s * partial;
    sum.x += at[0], sum.y += at[P], sum.z += at[2 * (u64)P], sum.w += at[3 * (u64)P];
  }
  u64 to = (u64)column * R + row;
#endif
  *(float4*)(C + to) = make_float4(alpha * sum.x, alpha * sum.y, alpha * sum.z, alpha * sum.w);
}
