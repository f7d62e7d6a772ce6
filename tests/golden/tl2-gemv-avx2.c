// bg_tl2_gemv_m127_k128_bm64_bk96__avx2
//
// gemv of W [127, 128] in layout tl2_bm64_bk96 on avx2.
// Generated from templates/tl2/avx2.c.j2 by:
//   bitgen gen bg_tl2_gemv_m127_k128_bm64_bk96__avx2

#include <immintrin.h>
#include <string.h>

#include "kernel.h"

enum { M = 127, K = 128, M_PAD = 128, K_PAD = 128 };
enum { BM = 64, BK = 96, PANELS = 2 };
enum { WEIGHT_BYTES = 3584, OPERAND_BYTES = 1536 };
enum { PREFETCH = 0 };
_Static_assert(M_PAD == PANELS * BM && M <= M_PAD && K <= K_PAD, "whole panels and blocks cover the matrix");

// K3 columns in triples, in tiles of BK; the other K2 in pairs, in tiles of PAIR_BK. A table of 16 int16 sums
// serves each triple and each pair.
enum { K3 = K_PAD / BK * BK, K2 = K_PAD - K3, PAIR_BK = 32, TABLE = 32 };
_Static_assert(BM % 32 == 0 && BK % 96 == 0 && K2 % PAIR_BK == 0, "32 rows a step; whole tiles");

// Sums over one tile are int16. An entry of a table is a sum of 3 (2) activations of magnitude <= 128.
_Static_assert(BK <= 255, "what space.py allows");
_Static_assert(BK / 3 * (3 * 128) <= 32767, "int16 sums of a tile of triples are exact");
_Static_assert(PAIR_BK / 2 * (2 * 128) <= 32767, "int16 sums of a tile of pairs are exact");

static inline __m256i load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }

// 16 int16 sums -> a table as the byte look-up wants it: 16 high bytes, then 16 low bytes.
static inline void store_table(uint8_t *table, __m256i sums) {
  const __m256i high = _mm256_srli_epi16(sums, 8), low = _mm256_and_si256(sums, _mm256_set1_epi16(0xff));
  const __m256i split = _mm256_permute4x64_epi64(_mm256_packus_epi16(high, low), 0xd8);
  _mm256_storeu_si256((__m256i *)table, split);
}

// q times each lane's digit -1, 0 or +1.
static inline __m256i times(int8_t q, __m256i digits) {
  return _mm256_sign_epi16(_mm256_set1_epi16(q), digits);
}

static inline __m256i add3(__m256i a, __m256i b, __m256i c) {
  return _mm256_add_epi16(_mm256_add_epi16(a, b), c);
}

// Operand: a table for each triple, then one for each pair. Entry i of a triple's is the signed sum that i in
// balanced ternary spells, its digits for q[0], q[1], q[2] from the most significant down; entry i of a pair
// spells i - 4.
static void pack_activations(const int8_t *q, int32_t n, uint8_t *operand) {
  const __m256i d0 = _mm256_setr_epi16(0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0);
  const __m256i d1 = _mm256_setr_epi16(0, 0, 1, 1, 1, -1, -1, -1, 0, 0, 0, 1, 1, 1, 0, 0);
  const __m256i d2 = _mm256_setr_epi16(0, 1, -1, 0, 1, -1, 0, 1, -1, 0, 1, -1, 0, 1, 0, 0);
  const __m256i e0 = _mm256_setr_epi16(-1, -1, -1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0);
  const __m256i e1 = _mm256_setr_epi16(-1, 0, 1, -1, 0, 1, -1, 0, 1, 0, 0, 0, 0, 0, 0, 0);
  for (int32_t t = 0; t < n; t++, q += K, operand += OPERAND_BYTES) {
    int8_t x[K_PAD] = {0};
    memcpy(x, q, K);
    uint8_t *table = operand;
    for (const int8_t *v = x; v < x + K3; v += 3, table += TABLE)
      store_table(table, add3(times(v[0], d0), times(v[1], d1), times(v[2], d2)));
    for (const int8_t *v = x + K3; v < x + K_PAD; v += 2, table += TABLE)
      store_table(table, _mm256_add_epi16(times(v[0], e0), times(v[1], e1)));
  }
}

// 32 rows of int16: rows 0-15 and rows 16-31.
typedef struct {
  __m256i top, bottom;
} rows;

// Entries of 32 rows. The order of rows in a step makes the two unpacks yield them in order.
static inline rows look_up(const uint8_t *table, __m256i index) {
  const __m256i high = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table));
  const __m256i low = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(table + 16)));
  const __m256i h = _mm256_shuffle_epi8(high, index), l = _mm256_shuffle_epi8(low, index);
  return (rows){_mm256_unpacklo_epi8(l, h), _mm256_unpackhi_epi8(l, h)};
}

static inline rows add(rows a, rows b) {
  return (rows){_mm256_add_epi16(a.top, b.top), _mm256_add_epi16(a.bottom, b.bottom)};
}

// Negate where bit 15 - 2 triple (top rows) or 14 - 2 triple (bottom rows) of `signs` is set.
static inline rows apply_signs(rows v, __m256i signs, int triple) {
  const __m256i one = _mm256_set1_epi16(1); // keeps the sign's word from being 0, which would clear the entry
  v.top = _mm256_sign_epi16(v.top, _mm256_or_si256(_mm256_slli_epi16(signs, 2 * triple), one));
  v.bottom = _mm256_sign_epi16(v.bottom, _mm256_or_si256(_mm256_slli_epi16(signs, 2 * triple + 1), one));
  return v;
}

static inline __m256i high_nibbles(__m256i v) {
  return _mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_set1_epi8(15));
}

static inline __m256i low_nibbles(__m256i v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }

// y [32] += 32 rows.
static inline void widen_add(int32_t *y, rows v) {
  const __m256i parts[4] = {_mm256_cvtepi16_epi32(_mm256_castsi256_si128(v.top)),
                            _mm256_cvtepi16_epi32(_mm256_extracti128_si256(v.top, 1)),
                            _mm256_cvtepi16_epi32(_mm256_castsi256_si128(v.bottom)),
                            _mm256_cvtepi16_epi32(_mm256_extracti128_si256(v.bottom, 1))};
  for (int i = 0; i < 4; i++)
    _mm256_storeu_si256((__m256i *)(y + 8 * i), _mm256_add_epi32(load(y + 8 * i), parts[i]));
}

// y [BM] += one tile of triples: per 32 rows BK / 6 steps of 32 index bytes, and per 8 triples 16 sign words.
static void add_triples(const uint8_t *index, const uint8_t *signs, const uint8_t *tables, int32_t *y) {
  for (int32_t row = 0; row < BM; row += 32) {
    rows acc = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    const uint8_t *table = tables;
    for (int32_t g = 0; g < BK / 24; g++, signs += 32) {
      const __m256i s = load(signs);
      for (int step = 0; step < 4; step++, index += 32, table += 2 * TABLE) {
        const __m256i i = load(index);
        acc = add(acc, apply_signs(look_up(table, high_nibbles(i)), s, 2 * step));
        acc = add(acc, apply_signs(look_up(table + TABLE, low_nibbles(i)), s, 2 * step + 1));
      }
    }
    widen_add(y + row, acc);
  }
}

// y [BM] += one tile of pairs: per 32 rows PAIR_BK / 4 steps of 32 bytes.
static void add_pairs(const uint8_t *pairs, const uint8_t *tables, int32_t *y) {
  for (int32_t row = 0; row < BM; row += 32) {
    rows acc = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    const uint8_t *table = tables;
    for (int step = 0; step < PAIR_BK / 4; step++, pairs += 32, table += 2 * TABLE) {
      const __m256i i = load(pairs);
      acc = add(acc, add(look_up(table, high_nibbles(i)), look_up(table + TABLE, low_nibbles(i))));
    }
    widen_add(y + row, acc);
  }
}

static void run(const uint8_t *w, const uint8_t *operand, int32_t n, int32_t *y, int32_t p0, int32_t p1,
                void *scratch) {
  (void)scratch;
  const uint8_t *signs = w + (size_t)M_PAD * K3 / 6, *pairs = signs + (size_t)M_PAD * K3 / 24;
  for (int32_t p = p0; p < p1; p++) {
    int32_t *yp = y + (size_t)p * BM;
    for (int32_t t = 0; t < n; t++)
      memset(yp + (size_t)t * M_PAD, 0, BM * sizeof *y);
    // A tile stays in the first-level cache while all tokens pass over it.
    for (int32_t kt = 0; kt < K3 / BK; kt++) {
      const size_t tile = (size_t)p * (K3 / BK) + kt;
      for (int32_t t = 0; t < n; t++)
        add_triples(w + tile * (BM * BK / 6), signs + tile * (BM * BK / 24),
                    operand + (size_t)t * OPERAND_BYTES + kt * (BK / 3) * TABLE, yp + (size_t)t * M_PAD);
    }
    for (int32_t kt = 0; kt < K2 / PAIR_BK; kt++) {
      const size_t tile = (size_t)p * (K2 / PAIR_BK) + kt;
      for (int32_t t = 0; t < n; t++)
        add_pairs(pairs + tile * (BM * PAIR_BK / 4),
                  operand + (size_t)t * OPERAND_BYTES + (K3 / 3 + kt * (PAIR_BK / 2)) * TABLE,
                  yp + (size_t)t * M_PAD);
    }
  }
}

const bg_kernel bg_tl2_gemv_m127_k128_bm64_bk96__avx2 = {
    .symbol = "bg_tl2_gemv_m127_k128_bm64_bk96__avx2",
    .m = M,
    .k = K,
    .m_pad = M_PAD,
    .panels = PANELS,
    .max_n = 1,
    .weight_bytes = WEIGHT_BYTES,
    .operand_bytes = OPERAND_BYTES,
    .pack_activations = pack_activations,
    .run = run,
};
