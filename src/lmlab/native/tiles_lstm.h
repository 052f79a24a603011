/* An LSTM's recurrence. */

static inline __m512 sigmoid_vector(__m512 x) {
  __m512 y = _mm512_add_ps(exp_vector(_mm512_sub_ps(_mm512_setzero_ps(), x)), _mm512_set1_ps(1.0f));
  return _mm512_div_ps(_mm512_set1_ps(1.0f), y);
}

/* As fast_tanh. */
static inline __m512 tanh_vector(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  __m512 s = sigmoid_vector(_mm512_add_ps(x, x)), square = _mm512_mul_ps(x, x);
  __m512 near = _mm512_fmadd_ps(square, _mm512_set1_ps(-0.053968254f), _mm512_set1_ps(0.13333333f));
  near = _mm512_fmadd_ps(near, square, _mm512_set1_ps(-0.33333333f));
  near = _mm512_mul_ps(_mm512_fmadd_ps(near, square, one), x);
  __mmask16 small = _mm512_cmp_ps_mask(square, _mm512_set1_ps(0.01f), _CMP_LT_OQ);
  return _mm512_mask_blend_ps(small, _mm512_sub_ps(_mm512_add_ps(s, s), one), near);
}

static inline int64_t last_rows(int64_t batch) { return batch > 16 && batch < 32 ? batch - 16 : 16; }

/* One LSTM layer over all positions; a thread keeps its units' part of the recurrent matrix, laid out, in its cache.
   z (length, batch, 4 width): what goes into the gates i f g o but for the recurrent product. w (4 width, width).
   h and c (length + 1, batch, width), the first of which are given; gates (length, batch, 4 width). */
int64_t lstm_tiles(const bf16 *z, const bf16 *w, bf16 *h, float *c, float *gates, int64_t length, int64_t batch,
                int64_t width) {
  int64_t steps = up(width) / 32, units = (width + 15) / 16, rows = up(batch);
  int64_t all = units * 4 * steps * TILE, each = rows * steps * 32;
  bf16 *b = memory(all + 2 * each);
  if (!b) return 1;
  /* A of this position's product, and of the next one's. */
  bf16 *a[2] = {b + all, b + all + each};
  memset(a[0], 0, 2 * each * sizeof(bf16));
  for (int64_t row = 0; row < batch; row++)
    for (int64_t k = 0; k < width; k++)
      a[0][(row / 16 * steps + k / 32) * TILE + row % 16 * 32 + k % 32] = h[row * width + k];
#pragma omp parallel
  {
#pragma omp for schedule(static)
    for (int64_t unit = 0; unit < units; unit++)
      for (int64_t gate = 0; gate < 4; gate++)
        for (int64_t k = 0; k < steps; k++)
          lay_out_turned(w + gate * width * width, width, width, 16 * unit, 32 * k,
                         b + ((unit * 4 + gate) * steps + k) * TILE);
    configure_tiles(last_rows(batch));
    for (int64_t t = 0; t < length; t++) {
      const bf16 *before = a[t % 2];
      bf16 *after = a[1 - t % 2];
#pragma omp for schedule(static)
      for (int64_t unit = 0; unit < units; unit++) {
        int64_t first = 16 * unit;
        __mmask16 mask = width - first >= 16 ? 0xffff : (1u << (width - first)) - 1;
        for (int64_t row = 0; row < rows; row += 32) {
          float sums[2][32][32] __attribute__((aligned(64)));
          for (int half = 0; half < 2; half++) {
            clear();
            multiply(before + row / 16 * steps * TILE, steps * TILE, TILE, b + (unit * 4 + 2 * half) * steps * TILE,
                     steps * TILE, TILE, steps);
            put(&sums[half][0][0], 32);
          }
          for (int64_t i = 0; i < 32 && row + i < batch; i++) {
            const bf16 *from = z + ((t * batch + row + i) * 4) * width + first;
            float *gate = gates + ((t * batch + row + i) * 4) * width + first;
            int64_t at = (t * batch + row + i) * width + first, next = at + batch * width;
            __m512 x[4];
            for (int k = 0; k < 4; k++) {
              x[k] = _mm512_add_ps(load_bf16(mask, from + k * width), _mm512_load_ps(&sums[k / 2][i][k % 2 * 16]));
              x[k] = k == 2 ? tanh_vector(x[k]) : sigmoid_vector(x[k]);
              _mm512_mask_storeu_ps(gate + k * width, mask, x[k]);
            }
            __m512 cell = _mm512_mul_ps(x[1], _mm512_maskz_loadu_ps(mask, c + at));
            cell = _mm512_fmadd_ps(x[0], x[2], cell);
            _mm512_mask_storeu_ps(c + next, mask, cell);
            __m512 y = _mm512_mul_ps(x[3], tanh_vector(cell));
            store_bf16(h + next, mask, y);
            store_bf16(after + ((row + i) / 16 * steps + first / 32) * TILE + (row + i) % 16 * 32 + first % 32, mask, y);
          }
        }
      }
    }
    _tile_release();
  }
  free(b);
  return 0;
}

/* The way back. dy (length, batch, width): the gradient of h from above; dc (batch, width), that of the last c, becomes
   that of the first; dz (length, batch, 4 width) is written. The rest is what `lstm_tiles` had and wrote. */
int64_t lstm_backward_tiles(const bf16 *dy, const bf16 *w, const float *c, const float *gates, float *dc, bf16 *dz,
                         int64_t length, int64_t batch, int64_t width) {
  int64_t each = up(width) / 32, steps = 4 * each, pairs_of_units = up(width) / 32, rows = up(batch);
  int64_t all = pairs_of_units * 2 * steps * TILE, one = rows * steps * 32;
  bf16 *b = memory(all + 2 * one);
  if (!b) return 1;
  bf16 *a[2] = {b + all, b + all + one};
  memset(a[0], 0, 2 * one * sizeof(bf16));
#pragma omp parallel
  {
#pragma omp for schedule(static)
    for (int64_t pair = 0; pair < pairs_of_units; pair++)
      for (int64_t k = 0; k < 2 * steps; k++)
        lay_out(w + k % steps / each * width * width, width, width, 32 * pair + k / steps * 16, k % each * 32,
                b + (pair * 2 * steps + k) * TILE);
    configure_tiles(last_rows(batch));
    for (int64_t t = length - 1; t >= 0; t--) {
      const bf16 *later = a[t % 2];
      bf16 *now = a[1 - t % 2];
#pragma omp for schedule(static)
      for (int64_t pair = 0; pair < pairs_of_units; pair++)
        for (int64_t row = 0; row < rows; row += 32) {
          float sums[32][32] __attribute__((aligned(64)));
          clear();
          /* Zeros come from the position after the last. */
          if (t + 1 < length)
            multiply(later + row / 16 * steps * TILE, steps * TILE, TILE, b + pair * 2 * steps * TILE, steps * TILE, TILE,
                     steps);
          put(&sums[0][0], 32);
          for (int64_t i = 0; i < 32 && row + i < batch; i++)
            for (int64_t half = 0; half < 2; half++) {
              int64_t first = 32 * pair + 16 * half, r = row + i;
              if (first >= width) continue;
              __mmask16 mask = width - first >= 16 ? 0xffff : (1u << (width - first)) - 1;
              const float *gate = gates + (t * batch + r) * 4 * width + first;
              int64_t at = (t * batch + r) * width + first;
              const __m512 one = _mm512_set1_ps(1.0f);
              __m512 in = _mm512_maskz_loadu_ps(mask, gate), keep = _mm512_maskz_loadu_ps(mask, gate + width);
              __m512 new = _mm512_maskz_loadu_ps(mask, gate + 2 * width), out = _mm512_maskz_loadu_ps(mask, gate + 3 * width);
              __m512 c0 = _mm512_maskz_loadu_ps(mask, c + at);
              __m512 bent = tanh_vector(_mm512_maskz_loadu_ps(mask, c + at + batch * width));
              __m512 d = _mm512_add_ps(load_bf16(mask, dy + at), _mm512_load_ps(&sums[i][16 * half]));
              __m512 carried = _mm512_maskz_loadu_ps(mask, dc + r * width + first);
              carried = _mm512_fmadd_ps(_mm512_mul_ps(d, out), _mm512_fnmadd_ps(bent, bent, one), carried);
              __m512 x[4] = {
                  _mm512_mul_ps(_mm512_mul_ps(carried, new), _mm512_mul_ps(in, _mm512_sub_ps(one, in))),
                  _mm512_mul_ps(_mm512_mul_ps(carried, c0), _mm512_mul_ps(keep, _mm512_sub_ps(one, keep))),
                  _mm512_mul_ps(_mm512_mul_ps(carried, in), _mm512_fnmadd_ps(new, new, one)),
                  _mm512_mul_ps(_mm512_mul_ps(d, bent), _mm512_mul_ps(out, _mm512_sub_ps(one, out))),
              };
              _mm512_mask_storeu_ps(dc + r * width + first, mask, _mm512_mul_ps(carried, keep));
              for (int64_t k = 0; k < 4; k++) {
                store_bf16(dz + (t * batch + r) * 4 * width + k * width + first, mask, x[k]);
                store_bf16(now + (r / 16 * steps + k * each + first / 32) * TILE + r % 16 * 32 + first % 32, mask, x[k]);
              }
            }
        }
    }
    _tile_release();
  }
  free(b);
  return 0;
}
