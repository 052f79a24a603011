/* One token of each row through all blocks of a Transformer: what does not depend on the type of the weights.

   Vectors are as wide as the processor's, in C's own operators; where it has none so wide, in halves. */
#ifdef __AVX512F__
#define LANES 16
#define STRIP_VECTORS 4
#else
#define LANES 8
#define STRIP_VECTORS 2
#endif
/* Outputs of a linear layer whose sums stand in registers together, for up to ROWS rows. */
#define STRIP (STRIP_VECTORS * LANES)
#define ROWS 4
/* Inputs that are brought into strips at a time. */
#define PIECE 16

typedef float vector __attribute__((vector_size(LANES * 4)));
typedef uint32_t vector_bits __attribute__((vector_size(LANES * 4)));
typedef uint16_t halves __attribute__((vector_size(LANES * 2)));

static inline vector fp32_load_vector(const fp32 *x) {
  vector y;
  memcpy(&y, x, sizeof y);
  return y;
}

static inline vector bf16_load_vector(const bf16 *x) {
  halves h;
  memcpy(&h, x, sizeof h);
  vector_bits b = __builtin_convertvector(h, vector_bits) << 16;
  vector y;
  memcpy(&y, &b, sizeof y);
  return y;
}

/* What all blocks of a step have in common. cos, sin: (d_head,), of the token's position, or NULL; sin is signed as
   `rotate` in attention.py has it. mask: (heads, used), added to the scores, or NULL. Python knows it, too. */
typedef struct {
  int64_t rows, width, heads, kv_heads, d_head, d_ff, activation, centred;
  /* Of the ring: how many there are, how many the token sees, and its own. */
  int64_t slots, used, slot;
  double eps;
  const float *cos, *sin, *mask;
  float *scratch;
} Step;

enum { GELU, RELU2, SWIGLU };

int64_t strip_width(void) { return STRIP; }

/* New memory comes by pages, each of which costs more than what is written to it: by 2 MB at a time, if the system will. */
void want_large_pages(void *memory, int64_t bytes) {
  uintptr_t page = 1 << 21, from = ((uintptr_t)memory + page - 1) & -page, to = ((uintptr_t)memory + bytes) & -page;
  if (from < to) madvise((void *)from, to - from, MADV_HUGEPAGE);
}

/* One row of a norm, in place too. */
static void norm_of(const Step *step, const float *x, int64_t width, const float *weight, const float *bias, float *y) {
  float mean = 0, square = 0;
  if (step->centred) {
#pragma omp simd reduction(+ : mean)
    for (int64_t i = 0; i < width; i++) mean += x[i];
    mean /= width;
  }
#pragma omp simd reduction(+ : square)
  for (int64_t i = 0; i < width; i++) square += (x[i] - mean) * (x[i] - mean);
  float inverse = 1 / sqrtf(square / width + (float)step->eps);
#pragma omp simd
  for (int64_t i = 0; i < width; i++) y[i] = (x[i] - mean) * inverse * weight[i] + (bias ? bias[i] : 0);
}

static void normalise(const Step *step, const float *x, const float *weight, const float *bias, float *y) {
#pragma omp for
  for (int64_t row = 0; row < step->rows; row++)
    norm_of(step, x + row * step->width, step->width, weight, bias, y + row * step->width);
}

/* A head's query or key: its norm, where it has one, and its rotation. */
static void turn(const Step *step, float *x, const float *norm) {
  int64_t width = step->d_head, half = width / 2;
  if (norm) norm_of(step, x, width, norm, 0, x);
  if (!step->cos) return;
#pragma omp simd
  for (int64_t i = 0; i < half; i++) {
    float a = x[i], b = x[i + half];
    x[i] = a * step->cos[i] + b * step->sin[i];
    x[i + half] = b * step->cos[i + half] + a * step->sin[i + half];
  }
}
