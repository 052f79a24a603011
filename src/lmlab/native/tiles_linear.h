/* A linear layer's gradients. */

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
