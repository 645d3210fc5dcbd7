// The optimizer's passes over many small tensors at once. A model has hundreds of trained matrices; a launch for
// each of them costs more than the arithmetic.
//
//   adamw    p, m, v after a step with gradient g, in place (Loshchilov & Hutter 2019)
//   squares  partial sums of x^2
//
// All tensors are f32. A slot of the grid's y dimension is a tensor; slots past the last hold any pointer and a count
// of 0.
//
// adamw: pointers p, g, m, v for each of 16 slots; info: the u64 counts of the slots, then seven numbers, each the bits
//   of an f32 in the low half: beta1, beta2, eps, decay, rate, correction, grad_scale. Block 256, grid (any, slots).
// squares: pointers PARTIAL, then x for each of 32 slots; info: the u64 counts, then `first`. Block 256, grid
//   (blocks, slots). Block b of slot s writes PARTIAL[(first + s) * blocks + b]: every sum has a fixed order.

typedef unsigned long long u64;

#define ADAMW_SLOTS 16
#define SQUARES_SLOTS 32

struct AdamwInfo {
  u64 counts[ADAMW_SLOTS];
  u64 beta1, beta2, eps, decay, rate, correction, grad_scale;
};
struct SquaresInfo {
  u64 counts[SQUARES_SLOTS];
  u64 first;
};

__device__ __forceinline__ float number(u64 bits) {
  return __uint_as_float((unsigned)bits);
}

#define EACH16(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11) F(12) F(13) F(14) F(15)
#define EACH32(F) \
  EACH16(F) F(16) F(17) F(18) F(19) F(20) F(21) F(22) F(23) F(24) F(25) F(26) F(27) F(28) F(29) F(30) F(31)

#ifdef ADAMW
#define PARAMETERS(i) float *p##i, const float *g##i, float *m##i, float *v##i,
#define CHOOSE(i) \
  case i:         \
    p = p##i, g = g##i, m = m##i, v = v##i; \
    break;

extern "C" __global__ void __launch_bounds__(256) adamw(EACH16(PARAMETERS) const __grid_constant__ AdamwInfo info) {
  float *p, *m, *v;
  const float* g;
  switch (blockIdx.y) {
    EACH16(CHOOSE)
    default:
      return;
  }
  u64 count = info.counts[blockIdx.y];
  float beta1 = number(info.beta1), beta2 = number(info.beta2), eps = number(info.eps);
  float decay = number(info.decay), rate = number(info.rate), correction = number(info.correction);
  float grad_scale = number(info.grad_scale);
  for (u64 i = blockIdx.x * 256ull + threadIdx.x; i < count; i += gridDim.x * 256ull) {
    float grad = g[i] * grad_scale;
    float first = beta1 * m[i] + (1.0f - beta1) * grad;
    float second = beta2 * v[i] + (1.0f - beta2) * grad * grad;
    m[i] = first;
    v[i] = second;
    p[i] = p[i] * decay - rate * first / (sqrtf(second) * correction + eps);
  }
}
#else
#define PARAMETERS(i) const float *x##i,
#define CHOOSE(i) \
  case i:         \
    x = x##i;     \
    break;

extern "C" __global__ void __launch_bounds__(256)
squares(float* PARTIAL, EACH32(PARAMETERS) const __grid_constant__ SquaresInfo info) {
  const float* x;
  switch (blockIdx.y) {
    EACH32(CHOOSE)
    default:
      return;
  }
  u64 count = info.counts[blockIdx.y];
  float sum = 0.0f;
  for (u64 i = blockIdx.x * 256ull + threadIdx.x; i < count; i += gridDim.x * 256ull) sum += x[i] * x[i];
  __shared__ float sums[256];
  sums[threadIdx.x] = sum;
  for (int half = 128; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0) PARTIAL[(info.first + blockIdx.y) * gridDim.x + blockIdx.x] = sums[0];
}
#endif
