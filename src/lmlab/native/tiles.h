/* Products in AMX's tiles, 16 rows of 64 bytes each, and what goes with them. A product's left factor A lies as [16 rows
   of A][32 of the sum][16][32]; its right factor B as [16 columns][32 of the sum][16 pairs of the sum][16][2], as the
   instruction wants it. `up(x)` is x rounded up to 32. */
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

/* e^x; infinite past fp32's range, and NaN stays. */
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

/* Pairs of bf16, one beside the other: 16 of a and 16 of b. */
static inline __m512i pairs(__m256i a, __m256i b) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(a), _mm512_slli_epi32(_mm512_cvtepu16_epi32(b), 16));
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
