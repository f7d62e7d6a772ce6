// bg_i2_s_gemm_m7_k128_bm4_bk64__scalar
//
// gemm of W [7, 128] in layout i2_s_bm4_bk64 on scalar.
// Generated from templates/i2_s/scalar.c.j2 by:
//   bitgen gen bg_i2_s_gemm_m7_k128_bm4_bk64__scalar

#include <string.h>

#include "kernel.h"

enum { M = 7, K = 128, M_PAD = 8, K_PAD = 128 };
enum { BM = 4, BK = 64, PANELS = 2 };
enum { WEIGHT_BYTES = 256, OPERAND_BYTES = 192 };
enum { NR = 1, KC = 128 };
_Static_assert(M_PAD == PANELS * BM && M <= M_PAD && K <= K_PAD, "whole panels and blocks cover the matrix");

enum { QUARTER = BK / 4 };
_Static_assert(BK % 4 == 0 && K_PAD % BK == 0, "four codes to a byte, whole blocks");

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

// Codes 0..2 of one row, as int8 [K_PAD]: its blocks lie BM * QUARTER bytes apart.
static void decode_row(const uint8_t *w, int8_t *codes) {
  for (int32_t b = 0; b < K_PAD / BK; b++, w += BM * QUARTER, codes += BK) {
    for (int32_t j = 0; j < QUARTER; j++) {
      codes[j] = w[j] >> 6;
      codes[j + QUARTER] = w[j] >> 4 & 3;
      codes[j + 2 * QUARTER] = w[j] >> 2 & 3;
      codes[j + 3 * QUARTER] = w[j] & 3;
    }
  }
}

// Four products of a code 0..2 and an activation fit int16 with ease: half the width, twice the speed.
static int32_t dot(const int8_t *codes, const int8_t *q) {
  int32_t sum = 0;
  for (int32_t b = 0; b < K_PAD; b += BK, codes += BK, q += BK) {
    int16_t part[QUARTER];
    for (int32_t j = 0; j < QUARTER; j++)
      part[j] = (int16_t)(codes[j] * q[j] + codes[j + QUARTER] * q[j + QUARTER] +
                          codes[j + 2 * QUARTER] * q[j + 2 * QUARTER] +
                          codes[j + 3 * QUARTER] * q[j + 3 * QUARTER]);
    for (int32_t j = 0; j < QUARTER; j++)
      sum += part[j];
  }
  return sum;
}

static void run(const uint8_t *w, const uint8_t *operand, int32_t n, int32_t *y, int32_t p0, int32_t p1,
                void *scratch) {
  (void)scratch;
  int8_t codes[K_PAD];
  for (int32_t row = p0 * BM; row < p1 * BM; row++) {
    decode_row(w + (size_t)(row / BM) * (BM * K_PAD / 4) + row % BM * QUARTER, codes);
    for (int32_t t = 0; t < n; t++) {
      const uint8_t *x = operand + (size_t)t * OPERAND_BYTES;
      y[(size_t)t * M_PAD + row] = dot(codes, (const int8_t *)(x + HEADER)) - operand_sum(x);
    }
  }
}

const bg_kernel bg_i2_s_gemm_m7_k128_bm4_bk64__scalar = {
    .symbol = "bg_i2_s_gemm_m7_k128_bm4_bk64__scalar",
    .m = M,
    .k = K,
    .m_pad = M_PAD,
    .panels = PANELS,
    .max_n = INT32_MAX,
    .weight_bytes = WEIGHT_BYTES,
    .operand_bytes = OPERAND_BYTES,
    .pack_activations = pack_activations,
    .run = run,
};
