/* Passes over memory that PyTorch makes one operator at a time, joined. Arithmetic is fp32 throughout; numbers are kept
   in memory as bf16 or as fp32. Compiled by build.py, without -ffast-math: sums are reordered only where a pragma says so.

   Rows are divided among threads in equal shares, and no sum crosses a share but where that is told: the same numbers
   come out however many threads there are. */
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

typedef uint16_t bf16;
typedef float fp32;

static inline float bf16_load(bf16 x) {
  uint32_t bits = (uint32_t)x << 16;
  float y;
  memcpy(&y, &bits, 4);
  return y;
}

/* To the nearest, ties to even; NaN stays NaN. */
static inline bf16 bf16_store(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return x == x ? rounded : 0x7fc0;
}

static inline float fp32_load(float x) { return x; }
static inline float fp32_store(float x) { return x; }

/* e^x to 2 ulp: 2^n e^r with |r| <= ln 2 / 2, and a polynomial for e^r (Cephes, expf.c). Zero below e^-87; NaN stays. */
static inline float fast_exp(float x) {
  float y = x > 89.0f ? 89.0f : x; /* infinite from 88.4 on */
  y = y < -87.0f ? -87.0f : y;
  /* Adding 1.5 2^23 rounds to a whole number, n + 127, which then stands in the last bits: an exponent as fp32 has it. */
  float shifted = y * 1.44269504f + 12583039.0f;
  float n = shifted - 12583039.0f;
  float r = y - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  uint32_t bits;
  float power;
  memcpy(&bits, &shifted, 4);
  bits <<= 23;
  memcpy(&power, &bits, 4);
  return x < -87.0f ? 0.0f : p * power;
}

static inline float sigmoid(float x) { return 1.0f / (1.0f + fast_exp(-x)); }

/* x sigmoid(2 u) with u = sqrt(2 / pi) (x + 0.044715 x^3): the tanh approximation of GELU (Hendrycks and Gimpel 2016). */
#define GELU_A 0.7978845608f
#define GELU_B 0.044715f

static inline float gelu_of(float x) { return x * sigmoid(2 * GELU_A * x * (1 + GELU_B * x * x)); }

/* Near zero, where 1 - 2 sigmoid would cancel, its series. */
static inline float fast_tanh(float x) {
  float wide = 2.0f * sigmoid(2.0f * x) - 1.0f, square = x * x;
  float near = x * (1.0f + square * (-0.33333333f + square * (0.13333333f - square * 0.053968254f)));
  return square < 0.01f ? near : wide;
}

/* Numbers that one thread takes at a time, where a pass is over single numbers. */
#define STRETCH 16384

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* The statement that follows, for each i below n. */
#define EACH(i, n)                                                  \
  _Pragma("omp parallel for")                                       \
  for (int64_t from = 0; from < n; from += STRETCH)                 \
    _Pragma("omp simd")                                             \
    for (int64_t i = from; i < least(from + STRETCH, n); i++)
/* Keys of a row of attention, which stand in fp32 on the stack. */
#define MOST_KEYS 4096
/* Below any logit but minus infinity. */
#define LOWEST -1e30f

/* Rows whose gradients of a norm's weights are added by one thread. */
#define STRETCH_ROWS 64

/* `seen` rounded up to whole vectors, where there are so many: the rest of one, number by number, would cost more. */
static inline int64_t whole_vectors(int64_t seen, int64_t all) {
  int64_t up = (seen + 15) / 16 * 16;
  return up < all ? up : all;
}

/* A permutation of 32 bits that leaves no trace of its argument's order (Wellons 2018, lowbias32). */
static inline uint32_t mixed(uint32_t x) {
  x ^= x >> 16;
  x *= 0x21f0aaad;
  x ^= x >> 15;
  x *= 0xd35a2d97;
  return x ^ x >> 15;
}

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define NAME(function) JOIN(function, T)
#define LOAD JOIN(T, load)
#define STORE JOIN(T, store)

#define T bf16
#include "passes.h"
#undef T
#define T fp32
#include "passes.h"
#undef T

#include "step.h"
#define T bf16
#include "step_blocks.h"
#undef T
#define T fp32
#include "step_blocks.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__)
#include "tiles.h"
#include "tiles_head.h"
#include "tiles_linear.h"
#include "tiles_lstm.h"
#else
int64_t tiles_are_there(void) { return 0; }
#endif
