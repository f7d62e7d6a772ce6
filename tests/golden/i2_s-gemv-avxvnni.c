// bg_i2_s_gemv_m7_k256_bm4_bk128_pf2048__avxvnni
//
// gemv of W [7, 256] in layout i2_s_bm4_bk128 on avxvnni.
// Generated from templates/i2_s/avxvnni.c.j2 by:
//   bitgen gen bg_i2_s_gemv_m7_k256_bm4_bk128_pf2048__avxvnni

#include <immintrin.h>
#include <string.h>

#include "kernel.h"

enum { M = 7, K = 256, M_PAD = 8, K_PAD = 256 };
enum { BM = 4, BK = 128, PANELS = 2 };
enum { WEIGHT_BYTES = 512, OPERAND_BYTES = 320 };
enum { PREFETCH = 2048 };
_Static_assert(M_PAD == PANELS * BM && M <= M_PAD && K <= K_PAD, "whole panels and blocks cover the matrix");

enum { VB = 32, BLOCKS = K_PAD / BK, PANEL_BYTES = BM * K_PAD / 4 };
_Static_assert(BK == 4 * VB && K_PAD % BK == 0, "a block of one row is one vector of 128 codes");

// One token's operand: int32 sum(q) alone on a cache line, then q padded with zeros to K_PAD. The sum undoes
// the + 1 of the codes: sum (w + 1) q - sum q = sum w q.
enum { HEADER = 64 };

static void pack_activations(const int8_t *q, int32_t n, uint8_t *operand) {
  for (int32_t t = 0; t < n; t++, q += K, operand += OPERAND_BYTES) {
    int32_t sum = 0;
    for (int32_t i = 0; i < K; i++)
      sum += q[i];
    memset(operand, 0, HEADER);
    memcpy(operand, &sum, sizeof sum);
    memcpy(operand + HEADER, q, K);
    memset(operand + HEADER + K, 0, OPERAND_BYTES - HEADER - K);
  }
}

static inline int32_t operand_sum(const uint8_t *operand) {
  int32_t sum;
  memcpy(&sum, operand, sizeof sum);
  return sum;
}

static inline __m256i load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }

// Codes 0..2 of the four quarters of a block.
static inline void decode(const uint8_t *w, __m256i c[4]) {
  const __m256i v = load(w), low2 = _mm256_set1_epi8(3);
  c[0] = _mm256_and_si256(_mm256_srli_epi16(v, 6), low2);
  c[1] = _mm256_and_si256(_mm256_srli_epi16(v, 4), low2);
  c[2] = _mm256_and_si256(_mm256_srli_epi16(v, 2), low2);
  c[3] = _mm256_and_si256(v, low2);
}

static inline int32_t sum_lanes(__m256i v) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
  return _mm_cvtsi128_si32(s);
}

// Two sums a row keep the chains of vpdpbusd short, as far as there are registers.
enum { SUMS = BM <= 4 ? 2 : 1 };

// The rows of a panel are interleaved block by block: one sequential stream of weights, and each load of the
// activations serves BM rows.
static void run(const uint8_t *w, const uint8_t *operand, int32_t n, int32_t *y, int32_t p0, int32_t p1,
                void *scratch) {
  (void)n, (void)scratch;
  w += (size_t)p0 * PANEL_BYTES;
  for (int32_t p = p0; p < p1; p++) {
    __m256i acc[BM][SUMS] = {0};
    for (int32_t b = 0; b < BLOCKS; b++) {
      const uint8_t *q = operand + HEADER + b * BK;
      const __m256i x[4] = {load(q), load(q + VB), load(q + 2 * VB), load(q + 3 * VB)};
      for (int r = 0; r < BM; r++, w += VB) {
        if (r % 2 == 0)
          _mm_prefetch((const char *)w + PREFETCH, _MM_HINT_T0);
        __m256i c[4];
        decode(w, c);
        for (int quarter = 0; quarter < 4; quarter++)
          acc[r][quarter % SUMS] = _mm256_dpbusd_avx_epi32(acc[r][quarter % SUMS], c[quarter], x[quarter]);
      }
    }
    for (int r = 0; r < BM; r++) {
      for (int s = 1; s < SUMS; s++)
        acc[r][0] = _mm256_add_epi32(acc[r][0], acc[r][s]);
      y[p * BM + r] = sum_lanes(acc[r][0]) - operand_sum(operand);
    }
  }
}

const bg_kernel bg_i2_s_gemv_m7_k256_bm4_bk128_pf2048__avxvnni = {
    .symbol = "bg_i2_s_gemv_m7_k256_bm4_bk128_pf2048__avxvnni",
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
