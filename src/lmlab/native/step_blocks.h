/* Included once for each type T that weights and caches are kept in. One token of each row through all blocks of a
   Transformer, in one parallel region: with a call for each operation, the calls take longer than a small model's
   arithmetic. What goes from operation to operation is fp32. Loops are divided among the threads of the region. */

/* What a block has; what it lacks is NULL. A linear layer's weights stand in strips: (outputs / STRIP, inputs, STRIP),
   the last one filled up. keys and values: (rows, kv_heads, slots, d_head). Python knows it, too: its names and order. */
typedef struct {
  const float *attention_norm, *attention_norm_bias;
  const T *qkv;
  const float *qkv_bias, *q_norm, *k_norm;
  const T *out;
  const float *out_bias;
  const float *mlp_norm, *mlp_norm_bias;
  const T *gate;
  const float *gate_bias;
  const T *up;
  const float *up_bias;
  const T *down;
  const float *down_bias;
  T *keys, *values;
} NAME(Block);

/* w (outputs, inputs) in strips; a piece at a time, which stays in the cache, however far its rows lie apart. */
void NAME(into_strips)(const float *w, T *strips, int64_t outputs, int64_t inputs) {
#pragma omp parallel for
  for (int64_t from = 0; from < outputs; from += STRIP) {
    int64_t n = least(STRIP, outputs - from);
    float piece[STRIP][PIECE] = {0};
    for (int64_t first = 0; first < inputs; first += PIECE) {
      int64_t some = least(PIECE, inputs - first);
      for (int64_t o = 0; o < n; o++) memcpy(piece[o], w + (from + o) * inputs + first, some * sizeof(float));
      for (int64_t i = 0; i < some; i++) {
        T *to = strips + from * inputs + (first + i) * STRIP;
        for (int64_t o = 0; o < STRIP; o++) to[o] = STORE(piece[o][i]);
      }
    }
  }
}

/* (R, inputs) times a strip of weights, (inputs, STRIP). R is a constant wherever this is taken, so that all sums stand
   in registers, and each weight is loaded once for R rows. */
static inline __attribute__((always_inline)) void NAME(strip)(const float *x, const T *w, int64_t inputs, const int R,
                                                              float *sums) {
  vector v[ROWS * STRIP_VECTORS];
#pragma GCC unroll 16
  for (int k = 0; k < R * STRIP_VECTORS; k++) v[k] = (vector){0};
#pragma GCC unroll 2
  for (int64_t i = 0; i < inputs; i++) {
    vector loaded[STRIP_VECTORS];
#pragma GCC unroll 4
    for (int k = 0; k < STRIP_VECTORS; k++) loaded[k] = JOIN(T, load_vector)(w + i * STRIP + k * LANES);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int k = 0; k < STRIP_VECTORS; k++) v[r * STRIP_VECTORS + k] += x[r * inputs + i] * loaded[k];
  }
  memcpy(sums, v, R * STRIP * sizeof(float));
}

/* The same of up to ROWS rows, and a bias: sums (rows, STRIP). */
static void NAME(rows_times_strip)(const float *x, const T *w, const float *bias, int64_t inputs, int64_t rows,
                                   int64_t outputs, float *sums) {
  switch (rows) {
    case 1: NAME(strip)(x, w, inputs, 1, sums); break;
    case 2: NAME(strip)(x, w, inputs, 2, sums); break;
    case 3: NAME(strip)(x, w, inputs, 3, sums); break;
    default: NAME(strip)(x, w, inputs, 4, sums);
  }
  if (bias)
    for (int64_t r = 0; r < rows; r++)
      for (int64_t i = 0; i < outputs; i++) sums[r * STRIP + i] += bias[i];
}

/* y = x w' + bias, or y += it. */
static void NAME(linear)(const float *x, const T *w, const float *bias, float *y, int64_t rows, int64_t inputs,
                         int64_t outputs, int adds) {
#pragma omp for
  for (int64_t from = 0; from < outputs; from += STRIP) {
    float sums[ROWS * STRIP];
    int64_t n = least(STRIP, outputs - from);
    for (int64_t row = 0; row < rows; row += ROWS) {
      int64_t some = least(ROWS, rows - row);
      NAME(rows_times_strip)(x + row * inputs, w + from * inputs, bias ? bias + from : 0, inputs, some, n, sums);
      for (int64_t r = 0; r < some; r++) {
        float *to = y + (row + r) * outputs + from;
        for (int64_t i = 0; i < n; i++) to[i] = sums[r * STRIP + i] + (adds ? to[i] : 0);
      }
    }
  }
}

void NAME(strips_product)(const float *x, const T *w, const float *bias, float *y, int64_t rows, int64_t inputs,
                          int64_t outputs) {
#pragma omp parallel
  NAME(linear)(x, w, bias, y, rows, inputs, outputs, 0);
}

/* What an MLP's second matrix is given. */
static void NAME(activated)(const NAME(Block) *block, const Step *step, const float *x, float *y) {
  int64_t inputs = step->width, outputs = step->d_ff;
#pragma omp for
  for (int64_t from = 0; from < outputs; from += STRIP) {
    float sums[ROWS * STRIP], gates[ROWS * STRIP];
    int64_t n = least(STRIP, outputs - from);
    for (int64_t row = 0; row < step->rows; row += ROWS) {
      int64_t some = least(ROWS, step->rows - row);
      const float *given = x + row * inputs;
      NAME(rows_times_strip)(given, block->up + from * inputs, block->up_bias ? block->up_bias + from : 0, inputs, some,
                             n, sums);
      if (step->activation == SWIGLU)
        NAME(rows_times_strip)(given, block->gate + from * inputs, block->gate_bias ? block->gate_bias + from : 0,
                               inputs, some, n, gates);
      for (int64_t r = 0; r < some; r++) {
        float *to = y + (row + r) * outputs + from;
        const float *s = sums + r * STRIP, *g = gates + r * STRIP;
        if (step->activation == GELU)
#pragma omp simd
          for (int64_t i = 0; i < n; i++) to[i] = gelu_of(s[i]);
        else if (step->activation == SWIGLU)
#pragma omp simd
          for (int64_t i = 0; i < n; i++) to[i] = g[i] * sigmoid(g[i]) * s[i];
        else
#pragma omp simd
          for (int64_t i = 0; i < n; i++) to[i] = s[i] < 0 ? 0 : s[i] * s[i];
      }
    }
  }
}

/* One head's attention: from its query to what it sees. scores: room for a number a slot. */
static void NAME(seen)(const Step *step, const float *q, const T *keys, const T *values, const float *mask,
                       float *scores, float *y) {
  int64_t width = step->d_head;
  float peak = -INFINITY, sum = 0, scale = 1 / sqrtf(width);
  for (int64_t slot = 0; slot < step->used; slot++) {
    const T *k = keys + slot * width;
    float dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t i = 0; i < width; i++) dot += q[i] * LOAD(k[i]);
    scores[slot] = dot * scale + (mask ? mask[slot] : 0);
    peak = scores[slot] > peak ? scores[slot] : peak;
  }
#pragma omp simd reduction(+ : sum)
  for (int64_t slot = 0; slot < step->used; slot++) {
    scores[slot] = fast_exp(scores[slot] - peak);
    sum += scores[slot];
  }
  memset(y, 0, width * sizeof(float));
  for (int64_t slot = 0; slot < step->used; slot++) {
    const T *v = values + slot * width;
    float share = scores[slot] / sum;
#pragma omp simd
    for (int64_t i = 0; i < width; i++) y[i] += share * LOAD(v[i]);
  }
}

/* From z, queries, keys and values of each row, to what the heads see, y; keys and values go into their slot. */
static void NAME(attention)(const NAME(Block) *block, const Step *step, float *z, float *scores, float *y) {
  int64_t width = step->d_head, group = step->heads / step->kv_heads;
#pragma omp for
  for (int64_t pair = 0; pair < step->rows * step->kv_heads; pair++) {
    int64_t row = pair / step->kv_heads, kv = pair % step->kv_heads;
    float *queries = z + row * (step->heads + 2 * step->kv_heads) * width;
    float *key = queries + (step->heads + kv) * width, *value = key + step->kv_heads * width;
    queries += kv * group * width;
    T *keys = block->keys + pair * step->slots * width, *values = block->values + pair * step->slots * width;
    turn(step, key, block->k_norm);
    for (int64_t i = 0; i < width; i++) keys[step->slot * width + i] = STORE(key[i]);
    for (int64_t i = 0; i < width; i++) values[step->slot * width + i] = STORE(value[i]);
    for (int64_t i = 0; i < group; i++) {
      int64_t head = kv * group + i;
      turn(step, queries + i * width, block->q_norm);
      NAME(seen)(step, queries + i * width, keys, values, step->mask ? step->mask + head * step->used : 0,
                 scores + (row * step->heads + head) * step->used, y + (row * step->heads + head) * width);
    }
  }
}

/* x (rows, width) becomes what the blocks make of it. */
void NAME(transformer_step)(const NAME(Block) *blocks, int64_t n_blocks, const Step *step, float *x) {
  int64_t rows = step->rows, width = step->width, all = step->heads * step->d_head;
  int64_t qkv = (step->heads + 2 * step->kv_heads) * step->d_head;
  float *normed = step->scratch, *z = normed + rows * width, *y = z + rows * qkv, *u = y + rows * all;
  float *scores = u + rows * step->d_ff;
#pragma omp parallel
  for (const NAME(Block) *block = blocks; block < blocks + n_blocks; block++) {
    if (block->qkv) {
      normalise(step, x, block->attention_norm, block->attention_norm_bias, normed);
      NAME(linear)(normed, block->qkv, block->qkv_bias, z, rows, width, qkv, 0);
      NAME(attention)(block, step, z, scores, y);
      NAME(linear)(y, block->out, block->out_bias, x, rows, all, width, 1);
    }
    if (block->up) {
      normalise(step, x, block->mlp_norm, block->mlp_norm_bias, normed);
      NAME(activated)(block, step, normed, u);
      NAME(linear)(u, block->down, block->down_bias, x, rows, step->d_ff, width, 1);
    }
  }
}
