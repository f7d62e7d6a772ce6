// head.c: logits from the rows of the output matrix; compiled once per ISA. Bound by memory: each row is read
// once for all tokens, four rows are in flight, and the rows after them are asked for early.
#include "ops.h"
#include "vec.h"

typedef enum { F16, I8 } row_type;
enum { BLOCK = 32, ROWS = 4 }; // rows kept in the second-level cache for all tokens; rows in flight
enum { SCREEN_AHEAD = 4096 };  // bytes of int8 rows that are asked for early

VEC v16 load(row_type type, const uint8_t *row, int32_t i) {
  return type == F16 ? v16_load_f16((const uint16_t *)row + i) : v16_load_i8((const int8_t *)row + i);
}

// y[t * stride + r] = w[r] . x[t]; type, rows and tokens are constants where this is inlined.
VEC void tile(const row_type type, const int rows, const int tokens, const uint8_t *w, const float *x,
              int32_t k, float *y, size_t stride) {
  size_t width = type == F16 ? 2 : 1;
  v16 sum[ROWS][2] = {{{0}}};
  for (int32_t i = 0; i < k; i += LANES)
    for (int r = 0; r < rows; r++) {
      const uint8_t *row = w + r * width * k;
      __builtin_prefetch(row + width * ((size_t)rows * k + i), 0, 2);
      v16 a = load(type, row, i);
      for (int t = 0; t < tokens; t++)
        sum[r][t] = v16_fma(a, v16_load(x + (size_t)t * k + i), sum[r][t]);
    }
  for (int t = 0; t < tokens; t++)
    for (int r = 0; r < rows; r++)
      y[t * stride + r] = v16_sum(sum[r][t]);
}

VEC void all_rows(const row_type type, const int tokens, const uint8_t *w, int32_t rows, const float *x,
                  int32_t k, float *y, size_t stride) {
  size_t bytes = (type == F16 ? 2 : 1) * (size_t)k;
#if BG_VEC_AVX512 || BG_VEC_NEON
  const int group = ROWS;
#else
  const int group = tokens == 1 ? ROWS : ROWS / 2; // sixteen registers hold eight vectors of sums
#endif
  for (; rows >= group; rows -= group, w += group * bytes, y += group)
    tile(type, group, tokens, w, x, k, y, stride);
  for (; rows; rows--, w += bytes, y++)
    tile(type, 1, tokens, w, x, k, y, stride);
}

VEC void head(const row_type type, const uint8_t *w, int32_t k, int32_t row0, int32_t row1, const float *x,
              int32_t n, float *logits, size_t stride) {
  size_t bytes = (type == F16 ? 2 : 1) * (size_t)k;
  for (int32_t row = row0; row < row1; row += BLOCK) {
    int32_t rows = row1 - row < BLOCK ? row1 - row : BLOCK, t = 0;
    for (; t + 2 <= n; t += 2)
      all_rows(type, 2, w + row * bytes, rows, x + (size_t)t * k, k, logits + t * stride + row, stride);
    if (t < n)
      all_rows(type, 1, w + row * bytes, rows, x + (size_t)t * k, k, logits + t * stride + row, stride);
  }
}

static void head_f16(const uint16_t *w, int32_t k, int32_t row0, int32_t row1, const float *x, int32_t n,
                     float *logits, size_t stride) {
  head(F16, (const uint8_t *)w, k, row0, row1, x, n, logits, stride);
}

static void head_i8(const int8_t *w, const float *scales, int32_t k, int32_t row0, int32_t row1,
                    const float *x, int32_t n, float *logits, size_t stride) {
  head(I8, (const uint8_t *)w, k, row0, row1, x, n, logits, stride);
  for (int32_t t = 0; t < n; t++)
    for (int32_t row = row0; row < row1; row++)
      logits[t * stride + row] *= scales[row];
}

// w . x in sixteen sums of pairs, in two chains.
VEC int32_t pairs(const int8_t *w, const int16_t *x, int32_t k) {
  v16i sum[2] = {{0}};
  int32_t i = 0, last = 0;
  for (; i + 4 * LANES <= k; i += 4 * LANES)
    for (int c = 0; c < 2; c++) {
      __builtin_prefetch(w + i + 2 * c * LANES + SCREEN_AHEAD);
      sum[c] = v16i_add_pairs(sum[c], v32s_load_i8(w + i + 2 * c * LANES), v32s_load(x + i + 2 * c * LANES));
    }
  for (; i < k; i++)
    last += w[i] * x[i];
  return v16i_sum(sum[0] + sum[1]) + last;
}

static void screen(const int8_t *w, int32_t k, int32_t rows, const int16_t *x, int32_t n, int32_t *sums) {
  for (int32_t r = 0; r < rows; r++, w += k)
    for (int32_t t = 0; t < n; t++)
      sums[t * rows + r] = pairs(w, x + (size_t)t * k, k);
}

const bg_head_ops BG_FOR_ISA(bg_head) = {head_f16, head_i8, screen};
