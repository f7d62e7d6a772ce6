// head.c: logits from the rows of the output matrix; compiled once per ISA. Bound by memory: each row is read
// once for all tokens, some rows are in flight, and the rows after them are asked for early.
#include "ops.h"
#include "vec.h"

typedef enum { F16, I8 } row_type;
enum { SCREEN_AHEAD = 4096 }; // bytes of int8 rows that are asked for early

// Rows in flight for one token; rows and tokens whose sums stay in registers where there are more.
#if BG_VEC_AVX512
enum { ROWS = 4, SHARED_ROWS = 4, TOKENS = 4 };
#elif BG_VEC_AVX2
enum { ROWS = 4, SHARED_ROWS = 2, TOKENS = 3 };
#else
enum { ROWS = 4, SHARED_ROWS = 2, TOKENS = 2 };
#endif

VEC v16 load(row_type type, const uint8_t *row, int32_t i) {
  return type == F16 ? v16_load_f16((const uint16_t *)row + i) : v16_load_i8((const int8_t *)row + i);
}

// y[t * stride + r] = w[r] . x[t]; type, rows and tokens are constants where this is inlined.
VEC void tile(const row_type type, const int rows, const int tokens, const uint8_t *w, const float *x,
              int32_t k, float *y, size_t stride) {
  size_t width = type == F16 ? 2 : 1;
  v16 sum[ROWS][TOKENS] = {{{0}}};
  for (int32_t i = 0; i < k; i += LANES) {
    v16 a[ROWS];
    for (int r = 0; r < rows; r++) {
      const uint8_t *row = w + r * width * k;
      __builtin_prefetch(row + width * ((size_t)rows * k + i), 0, 2);
      a[r] = load(type, row, i);
    }
    for (int t = 0; t < tokens; t++) {
      v16 b = v16_load(x + (size_t)t * k + i);
      for (int r = 0; r < rows; r++)
        sum[r][t] = v16_fma(a[r], b, sum[r][t]);
    }
  }
  for (int t = 0; t < tokens; t++)
    for (int r = 0; r < rows; r++)
      y[t * stride + r] = v16_sum(sum[r][t]);
}

VEC void all_tokens(const row_type type, const int rows, const uint8_t *w, const float *x, int32_t n,
                    int32_t k, float *y, size_t stride) {
  for (; n >= TOKENS; n -= TOKENS, x += (size_t)TOKENS * k, y += TOKENS * stride)
    tile(type, rows, TOKENS, w, x, k, y, stride);
  for (; n >= 2; n -= 2, x += (size_t)2 * k, y += 2 * stride)
    tile(type, rows, 2, w, x, k, y, stride);
  if (n)
    tile(type, rows, 1, w, x, k, y, stride);
}

VEC void head(const row_type type, const uint8_t *w, int32_t k, int32_t row0, int32_t row1, const float *x,
              int32_t n, float *logits, size_t stride) {
  size_t bytes = (type == F16 ? 2 : 1) * (size_t)k;
  int32_t row = row0;
  if (n == 1)
    for (; row + ROWS <= row1; row += ROWS)
      tile(type, ROWS, 1, w + row * bytes, x, k, logits + row, stride);
  for (; row + SHARED_ROWS <= row1; row += SHARED_ROWS)
    all_tokens(type, SHARED_ROWS, w + row * bytes, x, n, k, logits + row, stride);
  for (; row < row1; row++)
    all_tokens(type, 1, w + row * bytes, x, n, k, logits + row, stride);
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
