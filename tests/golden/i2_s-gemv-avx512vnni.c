// bg_i2_s_gemv_m7_k512_bm4_bk256_pf2048__avx512vnni
//
// gemv of W [7, 512] in layout i2_s_bm4_bk256 on avx512vnni.
// Generated from templates/i2_s/avx512vnni.c.j2 by:
//   bitgen gen bg_i2_s_gemv_m7_k512_bm4_bk256_pf2048__avx512vnni

#include <immintrin.h>
#include <string.h>

#include "kernel.h"

enum { M = 7, K = 512, M_PAD = 8, K_PAD = 512 };
enum { BM = 4, BK = 256, PANELS = 2 };
enum { WEIGHT_BYTES = 1024, OPERAND_BYTES = 576 };
enum { PREFETCH = 2048 };
_Static_assert(M_PAD == PANELS * BM && M <= M_PAD && K <= K_PAD, "whole panels and blocks cover the matrix");

enum { VB = 64, BLOCKS = K_PAD / BK, PANEL_BYTES = BM * K_PAD / 4 };
_Static_assert(BK == 4 * VB && K_PAD % BK == 0, "a block of one row is one vector of 256 codes");

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

static inline __m512i load(const void *p) { return _mm512_loadu_si512(p); }

// Codes 0..2 of the four quarters of a block.
static inline void decode(__m512i v, __m512i c[4]) {
  const __m512i low2 = _mm512_set1_epi8(3);
  c[0] = _mm512_and_si512(_mm512_srli_epi16(v, 6), low2);
  c[1] = _mm512_and_si512(_mm512_srli_epi16(v, 4), low2);
  c[2] = _mm512_and_si512(_mm512_srli_epi16(v, 2), low2);
  c[3] = _mm512_and_si512(v, low2);
}

// The rows of a panel are interleaved block by block: one sequential stream of weights, and each load of the
// activations serves BM rows. Two sums a row keep the chains of vpdpbusd short.
static void run(const uint8_t *w, const uint8_t *operand, int32_t n, int32_t *y, int32_t p0, int32_t p1,
                void *scratch) {
  (void)n, (void)scratch;
  w += (size_t)p0 * PANEL_BYTES;
  for (int32_t p = p0; p < p1; p++) {
    __m512i even[BM] = {0}, odd[BM] = {0};
    for (int32_t b = 0; b < BLOCKS; b++) {
      const uint8_t *q = operand + HEADER + b * BK;
      const __m512i x[4] = {load(q), load(q + VB), load(q + 2 * VB), load(q + 3 * VB)};
      for (int r = 0; r < BM; r++, w += VB) {
        _mm_prefetch((const char *)w + PREFETCH, _MM_HINT_T0);
        __m512i c[4];
        decode(load(w), c);
        for (int quarter = 0; quarter < 4; quarter += 2) {
          even[r] = _mm512_dpbusd_epi32(even[r], c[quarter], x[quarter]);
          odd[r] = _mm512_dpbusd_epi32(odd[r], c[quarter + 1], x[quarter + 1]);
        }
      }
    }
    for (int r = 0; r < BM; r++)
      y[p * BM + r] = _mm512_reduce_add_epi32(_mm512_add_epi32(even[r], odd[r])) - operand_sum(operand);
  }
}

const bg_kernel bg_i2_s_gemv_m7_k512_bm4_bk256_pf2048__avx512vnni = {
    .symbol = "bg_i2_s_gemv_m7_k512_bm4_bk256_pf2048__avx512vnni",
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
