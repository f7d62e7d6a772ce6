// bg_t5_gemm_m9_k128_bm5_bk64__scalar
//
// gemm of W [9, 128] in layout t5_bm5_bk64 on scalar.
// Generated from templates/t5/scalar.c.j2 by:
//   bitgen gen bg_t5_gemm_m9_k128_bm5_bk64__scalar

#include <string.h>

#include "kernel.h"

enum { M = 9, K = 128, M_PAD = 10, K_PAD = 128 };
enum { BM = 5, BK = 64, PANELS = 2 };
enum { WEIGHT_BYTES = 256, OPERAND_BYTES = 192 };
enum { NR = 1, KC = 128 };
_Static_assert(M_PAD == PANELS * BM && M <= M_PAD && K <= K_PAD, "whole panels and blocks cover the matrix");

enum { ROWS = 5 };
_Static_assert(BM % ROWS == 0 && K_PAD % BK == 0, "five rows to a byte, whole blocks");

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

// Codes 0..2 of five rows. With pair = 3 c0 + c1 and rest = 9 c2 + 3 c3 + c4 of one column, a byte is
// 8 rest + 8 - pair, or 216 + rest where the pair is 0.
static void decode_rows(const uint8_t *w, int8_t codes[ROWS][K_PAD]) {
  for (int32_t k = 0; k < K_PAD; k++) {
    const uint8_t pair = w[k] < 216 ? 8 - (w[k] & 7) : 0, rest = w[k] < 216 ? w[k] >> 3 : w[k] - 216;
    codes[0][k] = pair / 3;
    codes[1][k] = pair % 3;
    codes[2][k] = rest / 9;
    codes[3][k] = rest / 3 % 3;
    codes[4][k] = rest % 3;
  }
}

static int32_t dot(const int8_t *codes, const int8_t *q) {
  int32_t sum = 0;
  for (int32_t k = 0; k < K_PAD; k++)
    sum += codes[k] * q[k];
  return sum;
}

static void run(const uint8_t *w, const uint8_t *operand, int32_t n, int32_t *y, int32_t p0, int32_t p1,
                void *scratch) {
  (void)scratch;
  int8_t codes[ROWS][K_PAD];
  for (int32_t row = p0 * BM; row < p1 * BM; row += ROWS) {
    decode_rows(w + (size_t)(row / ROWS) * K_PAD, codes);
    for (int32_t t = 0; t < n; t++) {
      const uint8_t *x = operand + (size_t)t * OPERAND_BYTES;
      for (int r = 0; r < ROWS; r++)
        y[(size_t)t * M_PAD + row + r] = dot(codes[r], (const int8_t *)(x + HEADER)) - operand_sum(x);
    }
  }
}

const bg_kernel bg_t5_gemm_m9_k128_bm5_bk64__scalar = {
    .symbol = "bg_t5_gemm_m9_k128_bm5_bk64__scalar",
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
