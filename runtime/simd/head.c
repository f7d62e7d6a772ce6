// head.c: rows of the embedding, and logits from those of the output matrix; compiled once per ISA. Logits are
// bound by memory: each row is read once for all tokens, some rows are in flight, and the rows after them are
// asked for early.
#include "simd/ops.h"
#include "simd/vec.h"

typedef enum { F16, BF16, F32, I8 } row_type;
static const size_t widths[] = {[F16] = 2, [BF16] = 2, [F32] = 4, [I8] = 1}; // bytes of a number
enum { AHEAD = 4, STREAM_AHEAD = 1 << 15 }; // groups of screened rows, or bytes, that are asked for early

// Rows in flight for one token; rows and tokens whose sums stay in registers where there are
// more; both digits of one token (certified_head.c) are done before memory is, and rows that come
// one by one come fastest.
#if BG_VEC_AVX512
enum { ROWS = 4, SHARED_ROWS = 4, TOKENS = 4, SCREEN_ROWS = 4, SCREEN_TOKENS = 4, STREAMED = 2 };
#elif BG_VEC_AVX2
enum { ROWS = 4, SHARED_ROWS = 2, TOKENS = 3, SCREEN_ROWS = 2, SCREEN_TOKENS = 2, STREAMED = 0 };
#else
enum { ROWS = 4, SHARED_ROWS = 2, TOKENS = 2, SCREEN_ROWS = 2, SCREEN_TOKENS = 2, STREAMED = 0 };
#endif

VEC v16 load(row_type type, const uint8_t *row, int32_t i) {
  return type == F16    ? v16_load_f16((const uint16_t *)row + i)
         : type == BF16 ? v16_load_bf16((const uint16_t *)row + i)
         : type == F32  ? v16_load((const float *)row + i)
                        : v16_load_i8((const int8_t *)row + i);
}

// y[t * stride + r] = w[r] . x[t]; type, rows and tokens are constants where this is inlined.
VEC void tile(const row_type type, const int rows, const int tokens, const uint8_t *w, const float *x,
              int32_t k, float *y, size_t stride) {
  const size_t width = widths[type];
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
  const size_t bytes = widths[type] * (size_t)k;
  int32_t row = row0;
  if (n == 1)
    for (; row + ROWS <= row1; row += ROWS)
      tile(type, ROWS, 1, w + row * bytes, x, k, logits + row, stride);
  for (; row + SHARED_ROWS <= row1; row += SHARED_ROWS)
    all_tokens(type, SHARED_ROWS, w + row * bytes, x, n, k, logits + row, stride);
  for (; row < row1; row++)
    all_tokens(type, 1, w + row * bytes, x, n, k, logits + row, stride);
}

VEC void widen(const row_type type, const uint8_t *row, int32_t n, float scale, float *x) {
  for (int32_t i = 0; i < n; i += LANES)
    v16_store(x + i, load(type, row, i) * v16_set(scale));
}

#define OF_TYPE(TYPE, type)                                                                                  \
  static void widen_##type(const void *row, int32_t n, float scale, float *x) {                              \
    widen(TYPE, row, n, scale, x);                                                                           \
  }                                                                                                          \
  static void multiply_##type(const void *w, int32_t k, int32_t row0, int32_t row1, const float *x,          \
                              int32_t n, float *logits, size_t stride) {                                     \
    head(TYPE, w, k, row0, row1, x, n, logits, stride);                                                      \
  }
OF_TYPE(F16, f16)
OF_TYPE(BF16, bf16)
OF_TYPE(F32, f32)

static void head_i8(const int8_t *w, const float *scales, int32_t k, int32_t row0, int32_t row1,
                    const float *x, int32_t n, float *logits, size_t stride) {
  head(I8, (const uint8_t *)w, k, row0, row1, x, n, logits, stride);
  for (int32_t t = 0; t < n; t++)
    for (int32_t row = row0; row < row1; row++)
      logits[t * stride + row] *= scales[row];
}

// Of 256 columns of a row's upper codes the 64 at 64 c: four bits each in the first 128 bytes,
// two in the rest.
VEC v64u upper_codes(const uint8_t *row, int c) {
  const v64u four = v64u_load(row + c / 2 * 64), two = v64u_load(row + 128);
  return v64u_bits(four, c % 2 * 4, 15) | v64u_bits(two, 2 * c - 4, 48);
}
VEC v64u lower_codes(const uint8_t *row, int c) { return v64u_bits(v64u_load(row), 2 * c, 3); }

// sums[t * stride + r] = upper codes of w[r] . x[t]; rows and tokens are constants where this is inlined.
// Meanwhile `lines` of 64 bytes for each 256 columns are prefetched, one behind the other from `soon` on.
VEC void screen_tile(const int rows, const int tokens, const uint8_t *w, int32_t k, const int8_t *const *x,
                     const uint8_t *soon, int32_t lines, int32_t *sums, int32_t stride) {
  v16i sum[SCREEN_ROWS][SCREEN_TOKENS] = {{{0}}};
  for (int32_t i = 0; i < k; i += SCREEN_COLUMNS, w += UPPER_BYTES(SCREEN_COLUMNS)) {
    for (int32_t line = 0; line < lines; line++, soon += 64)
      __builtin_prefetch(soon, 0, 2);
    for (int c = 0; c < 4; c++) {
      v64u a[SCREEN_ROWS];
      for (int r = 0; r < rows; r++)
        a[r] = upper_codes(w + r * UPPER_BYTES(k), c);
      for (int t = 0; t < tokens; t++) {
        const v64b b = v64b_load(x[t] + i + 64 * c);
        for (int r = 0; r < rows; r++)
          sum[r][t] = v16i_add_products(sum[r][t], a[r], b);
      }
    }
  }
  for (int t = 0; t < tokens; t++)
    for (int r = 0; r < rows; r++)
      sums[t * stride + r] = v16i_sum(sum[r][t]);
}

// Each group of tokens asks for its part of rows that come later, so that memory is busy all the time.
VEC void screen_tokens(const int rows, const uint8_t *w, int32_t k, const int8_t *const *x, int32_t n,
                       int32_t *sums, int32_t stride) {
  const int32_t groups = (n + SCREEN_TOKENS - 1) / SCREEN_TOKENS, lines = (3 * rows + groups - 1) / groups;
  const uint8_t *soon = w + AHEAD * rows * UPPER_BYTES(k);
  for (; n >= SCREEN_TOKENS; n -= SCREEN_TOKENS, x += SCREEN_TOKENS, sums += SCREEN_TOKENS * stride) {
    screen_tile(rows, SCREEN_TOKENS, w, k, x, soon, lines, sums, stride);
    soon += lines * (k / SCREEN_COLUMNS * 64);
  }
  if (n == 3 && SCREEN_TOKENS > 3)
    screen_tile(rows, SCREEN_TOKENS > 3 ? 3 : 1, w, k, x, soon, lines, sums, stride);
  else if (n >= 2)
    screen_tile(rows, 2, w, k, x, soon, lines, sums, stride);
  else if (n)
    screen_tile(rows, 1, w, k, x, soon, lines, sums, stride);
}

static void screen(const uint8_t *w, int32_t k, int32_t rows, const int8_t *const *x, int32_t n,
                   int32_t *sums) {
  int32_t row = 0;
  for (; n == STREAMED && row < rows; row++) {
    const uint8_t *at = w + row * UPPER_BYTES(k);
    screen_tile(1, STREAMED ? STREAMED : 1, at, k, x, at + STREAM_AHEAD, 3, sums + row, rows);
  }
  for (; row + SCREEN_ROWS <= rows; row += SCREEN_ROWS)
    screen_tokens(SCREEN_ROWS, w + row * UPPER_BYTES(k), k, x, n, sums + row, rows);
  for (; row < rows; row++)
    screen_tokens(1, w + row * UPPER_BYTES(k), k, x, n, sums + row, rows);
}

static void refine(const uint8_t *upper, const uint8_t *lower, int32_t k, const int8_t *const x[2],
                   int32_t sums[2]) {
  v16i high[2] = {{0}}, low[2] = {{0}};
  for (int32_t i = 0; i < k; i += SCREEN_COLUMNS)
    for (int c = 0; c < 4; c++)
      for (int t = 0; t < 2; t++) {
        const v64b b = v64b_load(x[t] + i + 64 * c);
        high[t] = v16i_add_products(high[t], upper_codes(upper + UPPER_BYTES(i), c), b);
        low[t] = v16i_add_products(low[t], lower_codes(lower + LOWER_BYTES(i), c), b);
      }
  for (int t = 0; t < 2; t++)
    sums[t] = v16i_sum(4 * high[t] + low[t]);
}

const bg_dense_ops BG_FOR_ISA(bg_dense)[DENSE_TYPES] = {
    [DENSE_F16] = {sizeof(uint16_t), widen_f16, multiply_f16},
    [DENSE_BF16] = {sizeof(uint16_t), widen_bf16, multiply_bf16},
    [DENSE_F32] = {sizeof(float), widen_f32, multiply_f32},
};
const bg_head_ops BG_FOR_ISA(bg_head) = {head_i8, screen, refine};
