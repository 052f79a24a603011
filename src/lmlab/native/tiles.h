/* A linear layer with its softmax and cross entropy, and the way back, in AMX's tiles: 16 rows of 64 bytes. A product's
   left factor A lies as [16 rows of A][32 of the sum][16][32]; its right factor B as [16 columns][32 of the sum][16 pairs
   of the sum][16][2], as the instruction wants it. The vocabulary goes by in strips of 32 words: what is between two
   products is done to a strip while it is in the cache. Words are rows and positions are columns throughout, so that a
   softmax is of columns, in which nothing is added across a vector, and W's gradient comes out as W lies.

   n positions, v words, d wide; `up(x)` is x rounded up to 32. */
#include <immintrin.h>
#include <omp.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#define TILE 512 /* numbers in a tile */

/* Whether Linux lets this process use the tiles (arch_prctl(2), ARCH_REQ_XCOMP_PERM of XTILEDATA). */
int64_t tiles_are_there(void) { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

/* Room for so many numbers, a multiple of 32, on a line of the cache; none where there is no more memory. Functions that
   need some return 0, and 1 where they got none and did nothing. */
static bf16 *memory(int64_t numbers) { return aligned_alloc(64, numbers * sizeof(bf16)); }

static inline int64_t up(int64_t x) { return (x + 31) / 32 * 32; }
static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* `second`: rows of the second group of 16, if they are fewer; the time of a product goes with its rows. */
static void configure_tiles(int64_t second) {
  struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  } shape = {1};
  for (int i = 0; i < 8; i++) {
    shape.bytes[i] = 64;
    shape.rows[i] = i == 2 || i == 3 || i == 5 ? second : 16;
  }
  _tile_loadconfig(&shape);
}

/* Tiles 0 to 3, 32 x 32 numbers, += A B over `steps` tiles of the sum. a and b are the first tiles of the first group of
   16 rows (columns); the second group's lie `a_next` (`b_next`) further, the next step's `a_step` (`b_step`). */
static inline void multiply(const bf16 *a, int64_t a_next, int64_t a_step, const bf16 *b, int64_t b_next, int64_t b_step,
                            int64_t steps) {
  for (int64_t k = 0; k < steps; k++, a += a_step, b += b_step) {
    _tile_loadd(4, a, 64);
    _tile_loadd(6, b, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, b + b_next, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, a + a_next, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

static inline void clear(void) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

/* The 32 x 32 numbers to and from c, whose rows lie `width` apart. */
static inline void put(float *c, int64_t width) {
  _tile_stored(0, c, width * 4);
  _tile_stored(1, c + 16, width * 4);
  _tile_stored(2, c + 16 * width, width * 4);
  _tile_stored(3, c + 16 * width + 16, width * 4);
}

static inline void get(const float *c, int64_t width) {
  _tile_loadd(0, c, width * 4);
  _tile_loadd(1, c + 16, width * 4);
  _tile_loadd(2, c + 16 * width, width * 4);
  _tile_loadd(3, c + 16 * width + 16, width * 4);
}

static inline void transpose16(__m512i *x) {
#define EXCHANGE(s)                                                                          \
  for (int i = 0; i < 16; i++)                                                               \
    if (!(i & s)) {                                                                          \
      __m512i a = x[i], b = x[i + s];                                                        \
      x[i] = _mm512_permutex2var_epi32(a, low_##s, b);                                       \
      x[i + s] = _mm512_permutex2var_epi32(a, high_##s, b);                                  \
    }
  const __m512i low_1 = _mm512_setr_epi32(0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30);
  const __m512i high_1 = _mm512_setr_epi32(1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
  const __m512i low_2 = _mm512_setr_epi32(0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
  const __m512i high_2 = _mm512_setr_epi32(2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  const __m512i low_4 = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
  const __m512i high_4 = _mm512_setr_epi32(4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
  const __m512i low_8 = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
  const __m512i high_8 = _mm512_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  EXCHANGE(1)
  EXCHANGE(2)
  EXCHANGE(4)
  EXCHANGE(8)
#undef EXCHANGE
}

/* e^x for x <= 0; NaN stays. */
static inline __m512 exp_vector(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-200.0f), x);
  __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
  p = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
  return _mm512_scalef_ps(p, n);
}

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

/* Pairs of bf16, one beside the other: 16 of a and 16 of b. */
static inline __m512i pairs(__m256i a, __m256i b) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(a), _mm512_slli_epi32(_mm512_cvtepu16_epi32(b), 16));
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

static inline __m512 load_bf16(__mmask16 mask, const bf16 *x) {
  return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, x)), 16);
}

static inline void store_bf16(bf16 *y, __mmask16 mask, __m512 x) {
  _mm256_mask_storeu_epi16(y, mask, (__m256i)_mm512_cvtneps_pbh(x));
}

/* B of a product with w (rows, columns), of which 16 columns from `column` on are meant, to be summed over its rows, or
   with w turned, 16 of whose rows, summed over its columns: one tile, for 32 of the sum from k on. */
static void lay_out(const bf16 *w, int64_t rows, int64_t columns, int64_t column, int64_t k, bf16 *tile) {
  int64_t there = columns - column;
  __mmask16 mask = there >= 16 ? 0xffff : there > 0 ? (1u << there) - 1 : 0;
  for (int i = 0; i < 16; i++) {
    __m256i two[2];
    for (int j = 0; j < 2; j++) {
      int64_t r = k + 2 * i + j;
      two[j] = _mm256_maskz_loadu_epi16(r < rows ? mask : 0, w + r * columns + column);
    }
    _mm512_store_si512(tile + 32 * i, pairs(two[0], two[1]));
  }
}

static void lay_out_turned(const bf16 *w, int64_t rows, int64_t columns, int64_t row, int64_t k, bf16 *tile) {
  __m512i x[16];
  for (int i = 0; i < 16; i++) {
    int64_t there = row + i < rows ? columns - k : 0;
    __mmask32 mask = there >= 32 ? ~0u : there > 0 ? (1u << there) - 1 : 0;
    x[i] = _mm512_maskz_loadu_epi16(mask, w + (row + i) * columns + k);
  }
  transpose16(x);
  for (int i = 0; i < 16; i++) _mm512_store_si512(tile + 32 * i, x[i]);
}

/* dw (m, n) = dy' x and db (m) = the sums of dy's columns, for dy (k, m) and x (k, n): a linear layer's gradients. db may
   be none. */
int64_t weight_gradient_tiles(const bf16 *dy, const bf16 *x, bf16 *dw, bf16 *db, int64_t k, int64_t m, int64_t n) {
  int64_t steps = up(k) / 32, columns = up(n);
  int64_t each = 2 * steps * TILE;
  bf16 *b = memory(columns * steps * 32 + each * omp_get_max_threads());
  if (!b) return 1;
  bf16 *all = b + columns * steps * 32;
#pragma omp parallel
  {
#pragma omp for collapse(2)
    for (int64_t group = 0; group < columns / 16; group++)
      for (int64_t step = 0; step < steps; step++)
        lay_out(x, k, n, 16 * group, 32 * step, b + (group * steps + step) * TILE);
    configure_tiles(16);
    bf16 *a = all + omp_get_thread_num() * each;
#pragma omp for schedule(dynamic)
    for (int64_t row = 0; row < m; row += 32) {
      for (int half = 0; half < 2; half++) {
        __m512 sum = _mm512_setzero_ps();
        int64_t there = m - row - 16 * half;
        __mmask16 mask = there >= 16 ? 0xffff : there > 0 ? (1u << there) - 1 : 0;
        for (int64_t step = 0; step < steps; step++) {
          __m512i lines[16];
          for (int i = 0; i < 16; i++) {
            __m256i two[2];
            for (int j = 0; j < 2; j++) {
              int64_t r = 32 * step + 2 * i + j;
              two[j] = _mm256_maskz_loadu_epi16(r < k ? mask : 0, dy + r * m + row + 16 * half);
              sum = _mm512_add_ps(sum, (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(two[j]), 16));
            }
            lines[i] = pairs(two[0], two[1]);
          }
          transpose16(lines);
          for (int i = 0; i < 16; i++) _mm512_store_si512(a + (half * steps + step) * TILE + 32 * i, lines[i]);
        }
        if (db) store_bf16(db + row + 16 * half, mask, sum);
      }
      for (int64_t column = 0; column < n; column += 32) {
        float part[32][32] __attribute__((aligned(64)));
        clear();
        multiply(a, steps * TILE, TILE, b + column / 16 * steps * TILE, steps * TILE, TILE, steps);
        put(&part[0][0], 32);
        __mmask32 mask = n - column >= 32 ? ~0u : (1u << (n - column)) - 1;
        for (int64_t i = 0; i < 32 && row + i < m; i++)
          _mm512_mask_storeu_epi16(dw + (row + i) * n + column, mask,
                                   (__m512i)_mm512_cvtne2ps_pbh(_mm512_load_ps(part[i] + 16), _mm512_load_ps(part[i])));
      }
    }
    _tile_release();
  }
  free(b);
  return 0;
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
#undef TILE
