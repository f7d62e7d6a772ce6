// attention_i8.c: softmax attention over a cache of int8, in integers; compiled once per ISA. ops.h has the
// layout.
//
// Queries, and the softmax's p times the scales of the values, are rounded to 15 bits for every block of
// positions. Scores and outputs then are sums of int8 times int16: exact in int32, in any order, at twice the
// rate of float multiply-adds, and open to every integer dot product that a machine may have.
#include "softmax.h"

enum { COARSE = 127, FINE = 16383 }; // greatest codes of what is cached; of queries and of p
enum { PAIR = 2 * LANES };           // int8 codes that one vector multiplies
_Static_assert((int64_t)COARSE *FINE *MAX_HEAD_DIM <= INT32_MAX, "a score's sum would overflow");
_Static_assert((int64_t)COARSE *FINE *ATTEND_BLOCK <= INT32_MAX, "an output's sum would overflow");

// Vectors in flight beside four rows, and beside fewer.
#if BG_VEC_AVX512
enum { FOUR_ROWS = 2, FEW_ROWS = 4 };
#else
enum { FOUR_ROWS = 1, FEW_ROWS = 2 };
#endif
enum { AHEAD = 4096 }; // bytes of the cache that are asked for early

// codes = x / scale, rounded to the nearest, ties to even; x float, codes int16, both padded. Returns scale =
// max |x| / top, where the maximum is kept between 2^-64 and 2^64 and what lies beyond saturates (NaN at
// -top).
VEC float round_row(const float *x, int32_t n, float top, int16_t *codes) {
  v16 most = v16_set(0x1p-64f);
  for (int32_t i = 0; i < n; i += LANES)
    most = v16_max(v16_abs(v16_load(x + i)), most);
  const float greatest = v16_clamp(v16_set(v16_hmax(most)), 0, 0x1p64f)[0];
  const v16 inverse = v16_set(top / greatest);
  for (int32_t i = 0; i < n; i += LANES) {
    v16i code = v16_round(v16_clamp(v16_load(x + i) * inverse, -top, top));
    v16s narrow = __builtin_convertvector(code, v16s);
    memcpy(codes + i, &narrow, sizeof narrow);
  }
  return greatest / top;
}

// The same of a row that is not padded.
VEC float round_copy(const float *x, int32_t n, float top, int16_t *codes) {
  float row[MAX_HEAD_DIM];
  v16_store(row + padded(n) - LANES, v16_set(0));
  memcpy(row, x, (size_t)n * sizeof *x);
  return round_row(row, n, top, codes);
}

static size_t block_bytes(int32_t width) { return ATTEND_BLOCK * (width + sizeof(float)); }

static void write(const float *k, const float *v, int32_t d, int32_t at, void *kc, void *vc) {
  const int32_t p = at % ATTEND_BLOCK, block = at / ATTEND_BLOCK, dp = padded(d);
  int8_t *kb = (int8_t *)kc + block * block_bytes(d), *vb = (int8_t *)vc + block * block_bytes(dp);
  int16_t codes[MAX_HEAD_DIM];
  float scale = round_copy(k, d, COARSE, codes);
  memcpy(kb + ATTEND_BLOCK * d + p * sizeof scale, &scale, sizeof scale);
  for (int32_t i = 0; i < d; i++)
    kb[(p / LANES * d + i / 2 * 2) * LANES + p % LANES * 2 + i % 2] = (int8_t)codes[i];
  scale = round_copy(v, d, COARSE, codes);
  memcpy(vb + ATTEND_BLOCK * dp + p * sizeof scale, &scale, sizeof scale);
  for (int32_t i = 0; i < d; i++)
    vb[(i / LANES * ATTEND_BLOCK + p / 2 * 2) * LANES + i % LANES * 2 + p % 2] = (int8_t)codes[i];
}

// sum[r][g] = a[r] int16 [2 * pairs] times group g int8 [pairs][16][2] of the cache, for constant rows and
// groups; a[r + 1] begins `row` after a[r], the next group `group` bytes after one.
VEC void product(const int rows, const int groups, const int16_t *a, int32_t row, const int8_t *b,
                 size_t group, int32_t pairs, v16i sum[4][4]) {
  for (int r = 0; r < rows; r++)
    for (int g = 0; g < groups; g++)
      sum[r][g] = v16i_set(0);
  for (int32_t i = 0; i < pairs; i++)
    for (int g = 0; g < groups; g++) {
      const int8_t *at = b + g * group + (size_t)i * PAIR;
      __builtin_prefetch(at + AHEAD);
      v32s bi = v32s_load_i8(at);
      for (int r = 0; r < rows; r++)
        sum[r][g] = v16i_add_pairs(sum[r][g], bi, v32s_set_pair(a + r * row + 2 * i));
    }
}

// scores[r][..] = q[r] . k of the first `end` positions of a block, up to a multiple of groups * 16
VEC void score_rows(const int rows, const int groups, const float *const *q, const int8_t *k, int32_t end,
                    int32_t d, float scale, float *scores) {
  const float *k_scales = (const float *)(k + ATTEND_BLOCK * d);
  int16_t codes[4 * MAX_HEAD_DIM];
  float factor[4];
  v16i sum[4][4];
  for (int r = 0; r < rows; r++)
    factor[r] = round_copy(q[r], d, FINE, codes + r * MAX_HEAD_DIM) * scale;
  for (int32_t p = 0; p < end; p += groups * LANES) {
    product(rows, groups, codes, MAX_HEAD_DIM, k + (size_t)p * d, (size_t)LANES * d, d / 2, sum);
    for (int g = 0; g < groups; g++)
      for (int r = 0; r < rows; r++)
        v16_store(scores + r * ATTEND_BLOCK + p + g * LANES,
                  v16_from_i32(sum[r][g]) * v16_set(factor[r]) * v16_load(k_scales + p + g * LANES));
  }
}

VEC void value_tile(const int rows, const int groups, const int16_t *codes, const float *factor,
                    const int8_t *v, int32_t pairs, int32_t c, float *const *part) {
  v16i sum[4][4];
  product(rows, groups, codes, ATTEND_BLOCK, v + (size_t)c * ATTEND_BLOCK, (size_t)LANES * ATTEND_BLOCK,
          pairs, sum);
  for (int g = 0; g < groups; g++)
    for (int r = 0; r < rows; r++)
      v16_store(part[r] + c + g * LANES, v16_from_i32(sum[r][g]) * v16_set(factor[r]));
}

// part[r] = p[r] v over the first ends[r] positions of a block; ends[rows - 1] is the greatest.
VEC void value_rows(const int rows, const int groups, float *p, const int32_t *ends, const int8_t *v,
                    int32_t dp, float *const *part) {
  const float *v_scales = (const float *)(v + ATTEND_BLOCK * dp);
  const int32_t pairs = (ends[rows - 1] + 1) / 2;
  int16_t codes[4 * ATTEND_BLOCK] = {0};
  float factor[4];
  for (int r = 0; r < rows; r++) {
    float *weight = p + r * ATTEND_BLOCK;
    for (int32_t i = 0; i < ends[r]; i += LANES)
      v16_store(weight + i, v16_load(weight + i) * v16_load(v_scales + i));
    factor[r] = round_row(weight, ends[r], FINE, codes + r * ATTEND_BLOCK);
  }
  int32_t c = 0;
  for (; c + groups * LANES <= dp; c += groups * LANES)
    value_tile(rows, groups, codes, factor, v, pairs, c, part);
  for (; c < dp; c += LANES)
    value_tile(rows, 1, codes, factor, v, pairs, c, part);
}

VEC void block_rows(const int rows, const float *const *q, const int32_t *ends, int32_t d, float scale,
                    const int8_t *k, const int8_t *v, float *const *part) {
  const int groups = rows == 4 ? FOUR_ROWS : FEW_ROWS;
  const int32_t dp = padded(d);
  float p[4 * ATTEND_BLOCK];
  score_rows(rows, groups, q, k, ends[rows - 1], d, scale, p);
  for (int r = 0; r < rows; r++)
    softmax(p + r * ATTEND_BLOCK, ends[r], &part[r][dp], &part[r][dp + 1]);
  value_rows(rows, groups, p, ends, v, dp, part);
}

static void block(const float *const *q, const int32_t *ends, int32_t rows, int32_t d, float scale,
                  const void *kc, const void *vc, int32_t first, float *const *part) {
  const int8_t *k = (const int8_t *)kc + first / ATTEND_BLOCK * block_bytes(d),
               *v = (const int8_t *)vc + first / ATTEND_BLOCK * block_bytes(padded(d));
  for (; rows >= 4; rows -= 4, q += 4, ends += 4, part += 4)
    block_rows(4, q, ends, d, scale, k, v, part);
  for (; rows >= 2; rows -= 2, q += 2, ends += 2, part += 2)
    block_rows(2, q, ends, d, scale, k, v, part);
  if (rows)
    block_rows(1, q, ends, d, scale, k, v, part);
}

const bg_attention_ops BG_FOR_ISA(bg_attention_i8) = {sizeof(int8_t), sizeof(float), write,
                                                      block,          merge,         finish};
