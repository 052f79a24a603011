/* A linear layer over a vocabulary with its softmax and cross entropy, and the way back. The vocabulary goes by in strips
   of 32 words: what is between two products is done to a strip while it is in the cache. Words are rows and positions are
   columns throughout, so that a softmax is of columns, in which nothing is added across a vector, and W's gradient comes
   out as W lies. n positions, v words, d wide. */

/* 32 of a row's numbers as bf16, from place k on: of w (d), then its bias, then zeros. */
static inline __m512i row_part(const float *w, float bias, int64_t k, int64_t d) {
  float part[32] = {0};
  const float *from = w + k;
  if (k + 32 > d) {
    for (int64_t i = 0; k + i < d; i++) part[i] = w[k + i];
    if (d - k < 32 && d >= k) part[d - k] = bias;
    from = part;
  }
  return (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + 16), _mm512_loadu_ps(from));
}

/* p (strips, up(n) / 32, 32 words, 32 positions) = e^(z - top), zero for a position's target and past the vocabulary, with
   top and sum of each strip and position, (strips, up(n)), and each position's picked, its target's logit. bias may be
   none. */
int64_t head_tiles(const bf16 *h, const float *w, const float *bias, const int64_t *targets, bf16 *p, float *tops,
                float *sums, float *picked, int64_t n, int64_t v, int64_t d) {
  int64_t steps = up(d + 1) / 32, columns = up(n), strips = up(v) / 32;
  int64_t each = 2 * steps * TILE;
  bf16 *b = memory(columns * steps * 32 + columns * 2 + each * omp_get_max_threads());
  if (!b) return 1;
  int32_t *ids = (int32_t *)(b + columns * steps * 32);
  bf16 *all = b + columns * steps * 32 + columns * 2;
#pragma omp parallel
  {
    /* B: hidden, a one for the bias, zeros. */
#pragma omp for
    for (int64_t group = 0; group < columns / 16; group++) {
      for (int64_t i = 16 * group; i < 16 * group + 16; i++) ids[i] = i < n ? targets[i] : -1;
      for (int64_t k = 0; k < steps; k++) {
        __m512i x[16];
        for (int i = 0; i < 16; i++) {
          int64_t column = group * 16 + i, there = column < n ? d - 32 * k : -1;
          bf16 part[32] = {0};
          if (there > 0) memcpy(part, h + column * d + 32 * k, least(there, 32) * sizeof(bf16));
          if (there >= 0 && there < 32) part[there] = 0x3f80;
          x[i] = _mm512_loadu_si512(part);
        }
        transpose16(x);
        for (int i = 0; i < 16; i++) _mm512_store_si512(b + (group * steps + k) * TILE + 32 * i, x[i]);
      }
    }
    configure_tiles(16);
    bf16 *a = all + omp_get_thread_num() * each;
#pragma omp for schedule(dynamic, 4)
    for (int64_t strip = 0; strip < strips; strip++) {
      int64_t first = 32 * strip, words = least(32, v - first);
      for (int64_t i = 0; i < 32; i++)
        for (int64_t k = 0; k < steps; k++) {
          __m512i part = _mm512_setzero_si512();
          if (i < words) part = row_part(w + (first + i) * d, bias ? bias[first + i] : 0, 32 * k, d);
          _mm512_store_si512(a + (i / 16 * steps + k) * TILE + i % 16 * 32, part);
        }
      for (int64_t column = 0; column < columns; column += 32) {
        float z[32][32] __attribute__((aligned(64)));
        clear();
        multiply(a, steps * TILE, TILE, b + column / 16 * steps * TILE, steps * TILE, TILE, steps);
        put(&z[0][0], 32);
        bf16 *to = p + (strip * columns + column) * 32;
        for (int half = 0; half < 2; half++) {
          int64_t at = column + 16 * half;
          __m512i word = _mm512_sub_epi32(_mm512_load_si512(ids + at), _mm512_set1_epi32(first));
          __mmask16 inside = _mm512_cmplt_epu32_mask(word, _mm512_set1_epi32(words));
          for (; inside; inside &= inside - 1) {
            int j = __builtin_ctz(inside);
            float *its = &z[ids[at + j] - first][16 * half + j];
            picked[at + j] = *its;
            *its = -INFINITY;
          }
          /* A strip may hold the target alone. */
          __m512 top = _mm512_set1_ps(LOWEST), sum = _mm512_setzero_ps();
          for (int i = 0; i < words; i++) top = _mm512_max_ps(_mm512_load_ps(&z[i][16 * half]), top);
          for (int i = 0; i < 32; i++) {
            __m512 e = _mm512_setzero_ps();
            if (i < words) e = exp_vector(_mm512_sub_ps(_mm512_load_ps(&z[i][16 * half]), top));
            sum = _mm512_add_ps(sum, e);
            _mm256_storeu_si256((__m256i *)(to + 32 * i + 16 * half), (__m256i)_mm512_cvtneps_pbh(e));
          }
          _mm512_storeu_ps(tops + strip * columns + at, top);
          _mm512_storeu_ps(sums + strip * columns + at, sum);
        }
      }
    }
    _tile_release();
  }
  free(b);
  return 0;
}

/* From p and tops of `head_tiles`, and what a position's e^(logit - peak) are to be multiplied by, `share`: dh, turned,
   (up(d), up(n)), which comes as zeros, and the rows of d_weight (v, d) and d_bias (v), but for the targets' own part.
   The last two may be none. p is spoilt. */
int64_t head_backward_tiles(const bf16 *h, const float *w, bf16 *p, const float *tops, const float *peak,
                         const float *share, float *dh, float *d_weight, float *d_bias, int64_t n, int64_t v, int64_t d) {
  int64_t columns = up(n), strips = up(v) / 32, width = up(d), steps = columns / 32, wide = up(d + 1);
  /* Strips whose part of dh is added at once: their rows of W stay in the cache. */
  int64_t block = least(strips, 1 + 900000 / (width * 64));
  int wanted = d_weight || d_bias;
  int64_t each = 2 * steps * TILE;
  bf16 *b = memory(wide * columns + block * width * 32 + each * omp_get_max_threads());
  if (!b) return 1;
  bf16 *turned = b + wide * columns, *all = turned + block * width * 32;
#pragma omp parallel
  {
    /* B of W's gradient: hidden, a column of ones, zeros. */
#pragma omp for
    for (int64_t group = 0; group < wide / 16; group++)
      for (int64_t k = 0; k < steps; k++)
        for (int64_t i = 0; i < 16; i++)
          for (int64_t j = 0; j < 32; j++) {
            int64_t row = 32 * k + 2 * i + j % 2, column = group * 16 + j / 2;
            b[(group * steps + k) * TILE + 32 * i + j] =
                row >= n || column > d ? 0 : column == d ? 0x3f80 : h[row * d + column];
          }
    configure_tiles(16);
    bf16 *a = all + omp_get_thread_num() * each;
    for (int64_t from = 0; from < strips; from += block) {
      int64_t to = least(from + block, strips);
#pragma omp for schedule(dynamic)
      for (int64_t strip = from; strip < to; strip++) {
        int64_t first = 32 * strip, words = least(32, v - first);
        for (int64_t column = 0; column < width; column += 16) {
          __m512i x[16];
          for (int i = 0; i < 16; i++) {
            __m256i two[2];
            for (int j = 0; j < 2; j++) {
              int64_t there = 2 * i + j < words ? d - column : 0;
              __mmask16 mask = there >= 16 ? 0xffff : there > 0 ? (1u << there) - 1 : 0;
              two[j] = (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, w + (first + 2 * i + j) * d + column));
            }
            x[i] = pairs(two[0], two[1]);
          }
          transpose16(x);
          for (int i = 0; i < 16; i++)
            _mm512_store_si512(turned + (column / 16 * block + strip - from) * TILE + 32 * i, x[i]);
        }
        for (int64_t k = 0; k < steps; k++) {
          bf16 *g = p + (strip * columns + 32 * k) * 32, *scaled = a + 2 * k * TILE;
          __m512 by[2];
          __mmask16 masks[2];
          for (int half = 0; half < 2; half++) {
            int64_t at = 32 * k + 16 * half, there = n - at;
            __mmask16 mask = masks[half] = there >= 16 ? 0xffff : there > 0 ? (1u << there) - 1 : 0;
            __m512 top = _mm512_loadu_ps(tops + strip * columns + at);
            by[half] = exp_vector(_mm512_sub_ps(top, _mm512_maskz_loadu_ps(mask, peak + at)));
            by[half] = _mm512_mul_ps(by[half], _mm512_maskz_loadu_ps(mask, share + at));
          }
          for (int i = 0; i < 32; i++) {
            __m512i known = _mm512_loadu_si512(g + 32 * i);
            __m512 low = (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(known)), 16);
            __m512 high = (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(known, 1)), 16);
            /* Where there is no position p may be NaN: a bias of minus infinity times zero. */
            low = _mm512_maskz_mul_ps(masks[0], low, by[0]);
            high = _mm512_maskz_mul_ps(masks[1], high, by[1]);
            _mm512_store_si512(scaled + 32 * i, (__m512i)_mm512_cvtne2ps_pbh(high, low));
          }
          for (int i = 0; i < 16; i++)
            for (int half = 0; half < 2; half++) {
              const __m256i *two = (const __m256i *)(scaled + 64 * i + 16 * half);
              _mm512_storeu_si512(g + half * TILE + 32 * i, pairs(_mm256_load_si256(two), _mm256_load_si256(two + 2)));
            }
        }
        for (int64_t column = 0; wanted && column < wide; column += 32) {
          clear();
          multiply(a, TILE, 2 * TILE, b + column / 16 * steps * TILE, steps * TILE, TILE, steps);
          if (d_weight && column + 32 <= d && words == 32) {
            put(d_weight + first * d + column, d);
            continue;
          }
          float part[32][32] __attribute__((aligned(64)));
          put(&part[0][0], 32);
          for (int64_t i = 0; i < words; i++) {
            if (d_weight && column < d)
              memcpy(d_weight + (first + i) * d + column, part[i], least(32, d - column) * sizeof(float));
            if (d_bias && column <= d && d < column + 32) d_bias[first + i] = part[i][d - column];
          }
        }
      }
#pragma omp for collapse(2) schedule(dynamic, 8)
      for (int64_t row = 0; row < width; row += 32)
        for (int64_t column = 0; column < columns; column += 32) {
          get(dh + row * columns + column, columns);
          multiply(turned + row / 16 * block * TILE, block * TILE, TILE, p + (from * columns + column) * 32, TILE,
                   columns * 32, to - from);
          put(dh + row * columns + column, columns);
        }
    }
    _tile_release();
  }
  free(b);
  return 0;
}
