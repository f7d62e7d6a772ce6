// attention_i8.c: softmax attention over a cache of int8, in integers; compiled once per ISA.
// ops.h has the layout.
//
// Queries, and the softmax's p times the scales of the values, are rounded to 15 bits for every block of
// positions. Scores and outputs then are sums of int8 times int16: exact in int32 and in any order, twice as
// many to an instruction as float multiply-adds, and open to every dot product that a machine may have.
#include "simd/softmax.h"

#if defined __AMX_INT8__ || defined __AMXINT8__ // as clang 14 calls it
#include "simd/product_i8_amx.h"
#else
#include "simd/product_i8_simd.h"
#endif

enum { COARSE = 127, FINE = 16383 }; // greatest codes of what is cached; of queries and of p
_Static_assert(GROUP <= I8_GROUP, "sessions make room for whole groups");
_Static_assert(MAX_HEAD_DIM <= INT32_MAX / (COARSE * FINE), "a score's sum would overflow");
_Static_assert(ATTEND_BLOCK <= INT32_MAX / (COARSE * FINE), "an output's sum would overflow");

// codes int16 = x (top / greatest), to the nearest, ties to even, at most `top` in size (NaN is -top), with
// greatest = max |x|, kept between 2^-64 and 2^64; returns their scale, greatest / top. Both are padded.
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

// Where a block has number i of position p.
static int32_t k_at(int32_t dg, int32_t p, int32_t i) {
  return (p / LANES * dg + i / GROUP * GROUP) * LANES + p % LANES * GROUP + i % GROUP;
}
static int32_t v_at(int32_t p, int32_t i) {
  return (i / LANES * ATTEND_BLOCK + p / GROUP * GROUP) * LANES + i % LANES * GROUP + p % GROUP;
}

static void write(const float *k, const float *v, int32_t d, int32_t at, void *kc, void *vc) {
  const int32_t p = at % ATTEND_BLOCK, block = at / ATTEND_BLOCK, dg = (int32_t)round_up(d, GROUP),
                dp = padded(d);
  int8_t *kb = (int8_t *)kc + block * block_bytes(dg), *vb = (int8_t *)vc + block * block_bytes(dp);
  int16_t codes[MAX_HEAD_DIM];
  float scale = round_copy(k, d, COARSE, codes);
  memcpy(kb + ATTEND_BLOCK * dg + p * sizeof scale, &scale, sizeof scale);
  for (int32_t i = 0; i < d; i++)
    kb[k_at(dg, p, i)] = (int8_t)codes[i];
  scale = round_copy(v, d, COARSE, codes);
  memcpy(vb + ATTEND_BLOCK * dp + p * sizeof scale, &scale, sizeof scale);
  for (int32_t i = 0; i < d; i++)
    vb[v_at(p, i)] = (int8_t)codes[i];
}

static void copy(uint8_t *row, int in, int32_t d, int32_t at, void *kc, void *vc) {
  const int32_t p = at % ATTEND_BLOCK, block = at / ATTEND_BLOCK, dg = (int32_t)round_up(d, GROUP),
                dp = padded(d);
  uint8_t *kb = (uint8_t *)kc + block * block_bytes(dg), *vb = (uint8_t *)vc + block * block_bytes(dp);
  for (int32_t i = 0; i < d; i++) {
    copy_cached(kb + k_at(dg, p, i), row + i, 1, in);
    copy_cached(vb + v_at(p, i), row + d + i, 1, in);
  }
  copy_cached(kb + ATTEND_BLOCK * dg + p * sizeof(float), row + 2 * d, sizeof(float), in);
  copy_cached(vb + ATTEND_BLOCK * dp + p * sizeof(float), row + 2 * d + sizeof(float), sizeof(float), in);
}

// Up to SHARING rows, which walk over the block together.
static void block_rows(int32_t rows, const float *const *q, const int32_t *begins, const int32_t *ends,
                       int32_t d, float scale, const int8_t *k, const int8_t *v, const int8_t *next,
                       float *const *part) {
  const int32_t dg = (int32_t)round_up(d, GROUP), dp = padded(d), end = ends[rows - 1];
  const float *k_scales = (const float *)(k + ATTEND_BLOCK * dg),
              *v_scales = (const float *)(v + ATTEND_BLOCK * dp);
  float space[SHARING * ATTEND_BLOCK], *p[SHARING], factor[SHARING];
  int16_t codes[SHARING * MAX_HEAD_DIM]; // of q [rows][dp], then of p [rows][ATTEND_BLOCK]
  for (int32_t r = 0; r < rows; r++) {
    p[r] = space + r * ATTEND_BLOCK;
    factor[r] = round_copy(q[r], d, FINE, codes + r * dp) * scale;
  }
  multiply(&(factors){codes, dp, k, dg * LANES, d, factor, k_scales, v, p}, rows, (end + LANES - 1) / LANES);
  for (int32_t r = 0; r < rows; r++) {
    softmax(p[r], begins[r], ends[r], &part[r][dp], &part[r][dp + 1]);
    for (int32_t i = 0; i < ends[r]; i += LANES)
      v16_store(p[r] + i, v16_load(p[r] + i) * v16_load(v_scales + i));
    int16_t *row = codes + r * ATTEND_BLOCK;
    factor[r] = round_row(p[r], ends[r], FINE, row);
    memset(row + padded(ends[r]), 0, (size_t)(ATTEND_BLOCK - padded(ends[r])) * sizeof *row);
  }
  multiply(&(factors){codes, ATTEND_BLOCK, v, ATTEND_BLOCK * LANES, end, factor, NULL, next, part}, rows,
           dp / LANES);
}

static void block(const float *const *q, const int32_t *begins, const int32_t *ends, int32_t rows, int32_t d,
                  float scale, const void *kc, const void *vc, int32_t first, int32_t ahead,
                  float *const *part) {
  const int32_t dg = (int32_t)round_up(d, GROUP);
  const int8_t *k = (const int8_t *)kc + first / ATTEND_BLOCK * block_bytes(dg),
               *v = (const int8_t *)vc + first / ATTEND_BLOCK * block_bytes(padded(d)),
               *next = k + ahead * block_bytes(dg);
  for (int32_t r = 0; r < rows; r += SHARING) {
    const int32_t some = rows - r < SHARING ? rows - r : SHARING;
    block_rows(some, q + r, begins + r, ends + r, d, scale, k, v, next, part + r);
  }
}

const bg_attention_ops BG_FOR_ISA(bg_attention_i8) = {sizeof(int8_t), sizeof(float), write, copy,
                                                      block,          merge,         finish};
