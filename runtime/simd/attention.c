// attention.c: softmax attention over a cache of halves or floats, block by block; compiled once per ISA.
// ops.h has the layout.
#include "simd/softmax.h"

typedef enum { F16, F32 } cache_type; // a constant wherever it is named: each type has code of its own

// Most rows that share what they read, and vectors in flight beside so many: eight independent chains of
// multiply-adds or more fill the units of every ISA.
#if BG_VEC_AVX512
enum { TALL = 8, WIDE = 2 };
#else
enum { TALL = 4, WIDE = 1 };
#endif
enum { V_STEP = 32 }; // positions of v that stay in the first-level cache while their columns are walked

VEC size_t width(cache_type type) { return type == F16 ? sizeof(uint16_t) : sizeof(float); }

VEC v16 load(cache_type type, const uint8_t *at) {
  return type == F16 ? v16_load_f16((const uint16_t *)at) : v16_load((const float *)at);
}

VEC void store(cache_type type, uint8_t *at, v16 a) {
  if (type == F16)
    v16_store_f16((uint16_t *)at, a);
  else
    v16_store((float *)at, a);
}

VEC void write(cache_type type, const float *k, const float *v, int32_t d, int32_t at, uint8_t *kc,
               uint8_t *vc) {
  uint8_t *column = kc + ((size_t)(at / LANES) * d * LANES + at % LANES) * width(type);
  uint8_t *row = vc + (size_t)at * padded(d) * width(type);
  for (int32_t i = 0; i < d; i += LANES) {
    const int32_t n = d - i < LANES ? d - i : LANES;
    v16 a = {0}, b = {0};
    uint8_t stored[LANES * sizeof(float)];
    memcpy(&a, k + i, (size_t)n * sizeof *k);
    memcpy(&b, v + i, (size_t)n * sizeof *v);
    store(type, stored, a);
    for (int32_t j = 0; j < n; j++)
      memcpy(column + (size_t)(i + j) * LANES * width(type), stored + j * width(type), width(type));
    store(type, row + i * width(type), b);
  }
}

VEC void copy(cache_type type, uint8_t *row, int in, int32_t d, int32_t at, uint8_t *kc, uint8_t *vc) {
  const size_t w = width(type);
  uint8_t *column = kc + ((size_t)(at / LANES) * d * LANES + at % LANES) * w;
  for (int32_t i = 0; i < d; i++)
    copy_cached(column + (size_t)i * LANES * w, row + i * w, w, in);
  copy_cached(vc + (size_t)at * padded(d) * w, row + d * w, d * w, in);
}

// scores[r][16 b ..] = scale q[r] . k of 16 positions, for `rows` rows and `blocks` blocks, both constants.
VEC void score_tile(cache_type type, const int rows, const int blocks, const float *const *q,
                    const uint8_t *k, const uint8_t *next, int32_t d, float scale, float *scores) {
  v16 sum[TALL][4] = {{{0}}};
  for (int32_t i = 0; i < d; i++)
    for (int b = 0; b < blocks; b++) {
      const size_t at = ((size_t)b * d + i) * LANES * width(type);
      __builtin_prefetch(next + at, 0, 2);
      v16 ki = load(type, k + at);
      for (int r = 0; r < rows; r++)
        sum[r][b] = v16_fma(v16_set(q[r][i]), ki, sum[r][b]);
    }
  for (int r = 0; r < rows; r++)
    for (int b = 0; b < blocks; b++)
      v16_store(scores + r * ATTEND_BLOCK + b * LANES, sum[r][b] * v16_set(scale));
}

VEC void score_rows(cache_type type, const int rows, const int blocks, const float *const *q,
                    const uint8_t *k, const uint8_t *next, int32_t end, int32_t d, float scale,
                    float *scores) {
  for (int32_t p = 0; p < end; p += blocks * LANES)
    score_tile(type, rows, blocks, q, k + (size_t)p * d * width(type), next + (size_t)p * d * width(type), d,
               scale, scores + p);
}

// part[r][c ..] += p[r] v[.., c ..] over positions [from, to): `rows` rows, `vectors` vectors of columns.
VEC void value_tile(cache_type type, const int rows, const int vectors, const float *p, const uint8_t *v,
                    const uint8_t *next, int32_t dp, int32_t from, int32_t to, float *const *part,
                    int32_t c) {
  v16 sum[TALL][2];
  for (int r = 0; r < rows; r++)
    for (int j = 0; j < vectors; j++)
      sum[r][j] = v16_load(part[r] + c + j * LANES);
  for (int32_t i = from; i < to; i++)
    for (int j = 0; j < vectors; j++) {
      const size_t at = ((size_t)i * dp + c + j * LANES) * width(type);
      __builtin_prefetch(next + at, 0, 2);
      v16 vi = load(type, v + at);
      for (int r = 0; r < rows; r++)
        sum[r][j] = v16_fma(v16_set(p[r * ATTEND_BLOCK + i]), vi, sum[r][j]);
    }
  for (int r = 0; r < rows; r++)
    for (int j = 0; j < vectors; j++)
      v16_store(part[r] + c + j * LANES, sum[r][j]);
}

VEC void value_rows(cache_type type, const int rows, const int vectors, const float *p, const uint8_t *v,
                    const uint8_t *next, int32_t dp, int32_t from, int32_t to, float *const *part) {
  for (int32_t at = from; at < to; at += V_STEP) {
    int32_t end = to - at < V_STEP ? to : at + V_STEP, c = 0;
    for (; c + vectors * LANES <= dp; c += vectors * LANES)
      value_tile(type, rows, vectors, p, v, next, dp, at, end, part, c);
    for (; c < dp; c += LANES)
      value_tile(type, rows, 1, p, v, next, dp, at, end, part, c);
  }
}

// One, two, four or TALL rows share what they read. All see ends[0] positions; those beyond go row by row.
VEC void block_rows(cache_type type, const int rows, const float *const *q, const int32_t *begins,
                    const int32_t *ends, int32_t d, float scale, const uint8_t *k, const uint8_t *v,
                    const uint8_t *next, float *const *part) {
  float p[TALL * ATTEND_BLOCK];
  int32_t dp = padded(d);
  score_rows(type, rows, rows >= 4 ? WIDE : rows == 2 ? 2 : 4, q, k, v, ends[rows - 1], d, scale, p);
  for (int r = 0; r < rows; r++) {
    memset(part[r], 0, (size_t)dp * sizeof **part);
    softmax(p + r * ATTEND_BLOCK, begins[r], ends[r], &part[r][dp], &part[r][dp + 1]);
  }
  value_rows(type, rows, rows >= 4 ? WIDE : 2, p, v, next, dp, 0, ends[0], part);
  for (int r = 1; r < rows; r++)
    value_rows(type, 1, 2, p + r * ATTEND_BLOCK, v, next, dp, ends[0], ends[r], part + r);
}

VEC void block(cache_type type, const float *const *q, const int32_t *begins, const int32_t *ends,
               int32_t rows, int32_t d, float scale, const uint8_t *kc, const uint8_t *vc, int32_t first,
               int32_t ahead, float *const *part) {
  const uint8_t *k = kc + (size_t)first * d * width(type), *v = vc + (size_t)first * padded(d) * width(type),
                *next = k + (size_t)ahead * ATTEND_BLOCK * d * width(type);
  for (; rows >= TALL; rows -= TALL, q += TALL, begins += TALL, ends += TALL, part += TALL)
    block_rows(type, TALL, q, begins, ends, d, scale, k, v, next, part);
  for (; rows >= 4; rows -= 4, q += 4, begins += 4, ends += 4, part += 4)
    block_rows(type, 4, q, begins, ends, d, scale, k, v, next, part);
  for (; rows >= 2; rows -= 2, q += 2, begins += 2, ends += 2, part += 2)
    block_rows(type, 2, q, begins, ends, d, scale, k, v, next, part);
  if (rows)
    block_rows(type, 1, q, begins, ends, d, scale, k, v, next, part);
}

#define TYPED(type, suffix)                                                                                  \
  static void write_##suffix(const float *k, const float *v, int32_t d, int32_t at, void *kc, void *vc) {    \
    write(type, k, v, d, at, kc, vc);                                                                        \
  }                                                                                                          \
  static void copy_##suffix(uint8_t *row, int in, int32_t d, int32_t at, void *kc, void *vc) {               \
    copy(type, row, in, d, at, kc, vc);                                                                      \
  }                                                                                                          \
  static void block_##suffix(const float *const *q, const int32_t *begins, const int32_t *ends,              \
                             int32_t rows, int32_t d, float scale, const void *kc, const void *vc,           \
                             int32_t first, int32_t ahead, float *const *part) {                             \
    block(type, q, begins, ends, rows, d, scale, kc, vc, first, ahead, part);                                \
  }
TYPED(F16, f16)
TYPED(F32, f32)

const bg_attention_ops BG_FOR_ISA(bg_attention_f16) = {sizeof(uint16_t), 0,     write_f16, copy_f16,
                                                       block_f16,        merge, finish};
const bg_attention_ops BG_FOR_ISA(bg_attention_f32) = {sizeof(float), 0,     write_f32, copy_f32,
                                                       block_f32,     merge, finish};
