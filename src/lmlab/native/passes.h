/* Included once for each type T that numbers are kept in. Matrices are contiguous. */

void NAME(gelu)(const T *x, T *y, int64_t n) {
  EACH(i, n) y[i] = STORE(gelu_of(LOAD(x[i])));
}

void NAME(gelu_backward)(const T *x, const T *dy, T *dx, int64_t n) {
  EACH(i, n) {
    float v = LOAD(x[i]), s = sigmoid(2 * GELU_A * v * (1 + GELU_B * v * v));
    float slope = s + v * s * (1 - s) * 2 * GELU_A * (1 + 3 * GELU_B * v * v);
    dx[i] = STORE(LOAD(dy[i]) * slope);
  }
}

/* relu(x)^2 */
void NAME(squared_relu)(const T *x, T *y, int64_t n) {
  EACH(i, n) {
    float v = LOAD(x[i]);
    y[i] = STORE(v < 0 ? 0 : v * v);
  }
}

void NAME(squared_relu_backward)(const T *x, const T *dy, T *dx, int64_t n) {
  EACH(i, n) {
    float v = LOAD(x[i]);
    dx[i] = STORE(v < 0 ? 0 : 2 * v * LOAD(dy[i]));
  }
}

/* silu(gate) up */
void NAME(swiglu)(const T *gate, const T *up, T *y, int64_t n) {
  EACH(i, n) {
    float g = LOAD(gate[i]);
    y[i] = STORE(g * sigmoid(g) * LOAD(up[i]));
  }
}

void NAME(swiglu_backward)(const T *gate, const T *up, const T *dy, T *d_gate, T *d_up, int64_t n) {
  EACH(i, n) {
    float g = LOAD(gate[i]), s = sigmoid(g), d = LOAD(dy[i]);
    d_gate[i] = STORE(d * LOAD(up[i]) * s * (1 + g * (1 - s)));
    d_up[i] = STORE(d * g * s);
  }
}

/* Rows of attention, in place: softmax(scale scores + mask) over the keys that a row sees, zero for the others.
   scores (batch, heads, queries, keys). causal: query t sees the keys up to t + keys - queries, and there is no mask.
   mask (mask_heads, queries, keys), fp32, mask_heads 1 or heads. A row that sees nothing becomes NaN. */
void NAME(attention_softmax)(T *scores, const float *mask, int64_t batch, int64_t heads, int64_t queries, int64_t keys,
                             int64_t mask_heads, float scale) {
#pragma omp parallel for
  for (int64_t row = 0; row < batch * heads * queries; row++) {
    T *s = scores + row * keys;
    int64_t query = row % queries, head = row / queries % heads;
    int64_t seen = mask ? keys : query + 1 + keys - queries, looked_at = whole_vectors(seen, keys);
    const float *m = mask ? mask + ((mask_heads == 1 ? 0 : head) * queries + query) * keys : 0;
    float values[MOST_KEYS], peak = -INFINITY, sum = 0;
    if (m) {
#pragma omp simd reduction(max : peak)
      for (int64_t i = 0; i < keys; i++) {
        values[i] = scale * LOAD(s[i]) + m[i];
        peak = values[i] > peak ? values[i] : peak;
      }
    } else {
#pragma omp simd reduction(max : peak)
      for (int64_t i = 0; i < looked_at; i++) {
        values[i] = i < seen ? scale * LOAD(s[i]) : -INFINITY;
        peak = values[i] > peak ? values[i] : peak;
      }
    }
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < looked_at; i++) {
      values[i] = fast_exp(values[i] - peak);
      sum += values[i];
    }
    float share = 1 / sum;
#pragma omp simd
    for (int64_t i = 0; i < looked_at; i++) s[i] = STORE(values[i] * share);
    if (looked_at < keys) memset(s + looked_at, 0, (keys - looked_at) * sizeof(T));
  }
}

/* d becomes scale p (d - sum d p), row by row: the gradient of scores from that of p. causal as above. */
void NAME(attention_softmax_backward)(const T *probabilities, T *d, int64_t rows, int64_t queries, int64_t keys,
                                      int causal, float scale) {
#pragma omp parallel for
  for (int64_t row = 0; row < rows; row++) {
    const T *p = probabilities + row * keys;
    T *g = d + row * keys;
    int64_t looked_at = causal ? whole_vectors(row % queries + 1 + keys - queries, keys) : keys;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < looked_at; i++) sum += LOAD(p[i]) * LOAD(g[i]);
#pragma omp simd
    for (int64_t i = 0; i < looked_at; i++) g[i] = STORE(scale * LOAD(p[i]) * (LOAD(g[i]) - sum));
    if (looked_at < keys) memset(g + looked_at, 0, (keys - looked_at) * sizeof(T));
  }
}

/* One position of an LSTM layer, gates i f g o. z (batch, 4 width): what goes into the gates. The gates, c and h after
   it are written; c before it is read. */
void NAME(lstm_step)(const T *z, const float *before, float *gates, float *after, T *h, int64_t batch, int64_t width) {
#pragma omp parallel for
  for (int64_t row = 0; row < batch; row++) {
    const T *a = z + row * 4 * width;
    float *gate = gates + row * 4 * width;
    const float *c0 = before + row * width;
    float *c1 = after + row * width;
    T *y = h + row * width;
#pragma omp simd
    for (int64_t k = 0; k < width; k++) {
      float i = sigmoid(LOAD(a[k])), f = sigmoid(LOAD(a[k + width]));
      float g = fast_tanh(LOAD(a[k + 2 * width])), o = sigmoid(LOAD(a[k + 3 * width]));
      float c = f * c0[k] + i * g;
      gate[k] = i;
      gate[k + width] = f;
      gate[k + 2 * width] = g;
      gate[k + 3 * width] = o;
      c1[k] = c;
      y[k] = STORE(o * fast_tanh(c));
    }
  }
}

/* The way back: dy (batch, width) is h's gradient from above, dh that from the position after it (or none); dc, that of c
   after it, becomes that of c before it; dz (batch, 4 width) is written. */
void NAME(lstm_step_backward)(const T *dy, const T *dh, float *dc, const float *gates, const float *before,
                              const float *after, T *dz, int64_t batch, int64_t width) {
#pragma omp parallel for
  for (int64_t row = 0; row < batch; row++) {
    const float *gate = gates + row * 4 * width;
    const float *c0 = before + row * width, *c1 = after + row * width;
    const T *above = dy + row * width, *later = dh ? dh + row * width : 0;
    float *carried = dc + row * width;
    T *d = dz + row * 4 * width;
#pragma omp simd
    for (int64_t k = 0; k < width; k++) {
      float i = gate[k], f = gate[k + width], g = gate[k + 2 * width], o = gate[k + 3 * width];
      float bent = fast_tanh(c1[k]), dy_k = LOAD(above[k]) + (later ? LOAD(later[k]) : 0);
      float dc_k = carried[k] + dy_k * o * (1 - bent * bent);
      d[k] = STORE(dc_k * g * i * (1 - i));
      d[k + width] = STORE(dc_k * c0[k] * f * (1 - f));
      d[k + 2 * width] = STORE(dc_k * i * (1 - g * g));
      d[k + 3 * width] = STORE(dy_k * bent * o * (1 - o));
      carried[k] = dc_k * f;
    }
  }
}

/* A block of logits z (parts, rows, width), whose columns are the ids from `first` on, becomes e^(z - top) with a top
   for each row, (parts, rows), but zero for the row's target. What the rows knew of earlier blocks goes on: peak, the
   largest logit that is not the target's; total, the sum of all others' e^(logit - peak); picked, the target's. */
void NAME(softmax_block)(T *z, const int64_t *targets, float *top, float *peak, float *total, float *picked,
                         int64_t parts, int64_t rows, int64_t width, int64_t first) {
#pragma omp parallel for
  for (int64_t row = 0; row < rows; row++) {
    for (int64_t part = 0; part < parts; part++) {
      T *s = z + (part * rows + row) * width;
      int64_t at = targets[row] - first - part * width;
      int inside = at >= 0 && at < width;
      if (inside) {
        picked[row] = LOAD(s[at]);
        s[at] = STORE(-INFINITY);
      }
      float most = -INFINITY, sum = 0;
#pragma omp simd reduction(max : most)
      for (int64_t i = 0; i < width; i++) {
        float v = LOAD(s[i]);
        most = v > most ? v : most;
      }
      /* A part may hold the target alone. */
      float base = most < LOWEST ? LOWEST : most;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < width; i++) {
        float e = fast_exp(LOAD(s[i]) - base);
        sum += e;
        s[i] = STORE(e);
      }
      top[part * rows + row] = base;
      float higher = base > peak[row] ? base : peak[row];
      total[row] = total[row] * fast_exp(peak[row] - higher) + sum * fast_exp(base - higher);
      peak[row] = higher;
    }
  }
}

/* sum (rows, width), fp32, += factor_r part_r, over parts (parts, rows, width) with factors (parts, rows). */
void NAME(add_scaled_rows)(float *sum, const T *part, const float *factor, int64_t parts, int64_t rows, int64_t width) {
#pragma omp parallel for
  for (int64_t row = 0; row < rows; row++)
    for (int64_t k = 0; k < parts; k++) {
      const T *x = part + (k * rows + row) * width;
      float *y = sum + row * width, by = factor[k * rows + row];
#pragma omp simd
      for (int64_t i = 0; i < width; i++) y[i] += by * LOAD(x[i]);
    }
}

/* Each row of x (rows, width): (x - mean) / deviation * weight + bias, LayerNorm; without mean and bias, and with the
   root mean square for a deviation, RMSNorm, where `means` is none. bias may be none. inverse (rows,): 1 / deviation. */
void NAME(norm)(const T *x, const T *weight, const T *bias, T *y, float *means, float *inverse, int64_t rows,
                int64_t width, float eps) {
#pragma omp parallel for
  for (int64_t row = 0; row < rows; row++) {
    const T *in = x + row * width;
    T *out = y + row * width;
    float mean = 0, square = 0;
    if (means) {
#pragma omp simd reduction(+ : mean)
      for (int64_t i = 0; i < width; i++) mean += LOAD(in[i]);
      mean /= width;
      means[row] = mean;
    }
#pragma omp simd reduction(+ : square)
    for (int64_t i = 0; i < width; i++) square += (LOAD(in[i]) - mean) * (LOAD(in[i]) - mean);
    float by = 1 / sqrtf(square / width + eps);
    inverse[row] = by;
    if (bias) {
#pragma omp simd
      for (int64_t i = 0; i < width; i++) out[i] = STORE((LOAD(in[i]) - mean) * by * LOAD(weight[i]) + LOAD(bias[i]));
    } else {
#pragma omp simd
      for (int64_t i = 0; i < width; i++) out[i] = STORE((LOAD(in[i]) - mean) * by * LOAD(weight[i]));
    }
  }
}

/* dx, and the sums of weight's and bias's gradients over each STRETCH_ROWS rows: (stretches, width), fp32. */
void NAME(norm_backward)(const T *dy, const T *x, const T *weight, const float *means, const float *inverse, T *dx,
                         float *d_weight, float *d_bias, int64_t rows, int64_t width) {
#pragma omp parallel for
  for (int64_t from = 0; from < rows; from += STRETCH_ROWS) {
    float *dw = d_weight + from / STRETCH_ROWS * width, *db = d_bias ? d_bias + from / STRETCH_ROWS * width : 0;
    int64_t to = from + STRETCH_ROWS < rows ? from + STRETCH_ROWS : rows;
    for (int64_t row = from; row < to; row++) {
      const T *in = x + row * width, *grad = dy + row * width;
      T *out = dx + row * width;
      float mean = means ? means[row] : 0, by = inverse[row], along = 0, sum = 0;
#pragma omp simd reduction(+ : along, sum)
      for (int64_t i = 0; i < width; i++) {
        float g = LOAD(grad[i]) * LOAD(weight[i]);
        sum += g;
        along += g * (LOAD(in[i]) - mean) * by;
      }
      along /= width;
      sum = means ? sum / width : 0;
#pragma omp simd
      for (int64_t i = 0; i < width; i++) {
        float unit = (LOAD(in[i]) - mean) * by, g = LOAD(grad[i]);
        dw[i] += g * unit;
        out[i] = STORE(by * (g * LOAD(weight[i]) - sum - unit * along));
      }
      if (db) {
#pragma omp simd
        for (int64_t i = 0; i < width; i++) db[i] += LOAD(grad[i]);
      }
    }
  }
}

/* y = scale x where a hash of the seed and of x's place is at least `dropped` (of 2^32), else 0. */
void NAME(dropout)(const T *x, T *y, int64_t n, uint64_t seed, uint64_t dropped, float scale) {
  uint32_t first = mixed((uint32_t)seed), second = mixed((uint32_t)(seed >> 32) + first), below = dropped;
  EACH(i, n) {
    uint32_t word = mixed(mixed((uint32_t)i ^ first) + second);
    y[i] = STORE(word >= below ? scale * LOAD(x[i]) : 0);
  }
}
