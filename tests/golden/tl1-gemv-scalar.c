// bg_tl1_gemv_m127_k128_bm64_bk64__scalar
//
// gemv of W [127, 128] in layout tl1_bm64_bk64 on scalar.
// Generated from templates/tl1/scalar.c.j2 by:
//   bitgen gen bg_tl1_gemv_m127_k128_bm64_bk64__scalar

#include <string.h>

#include "kernel.h"

enum { M = 127, K = 128, M_PAD = 128, K_PAD = 128 };
enum { BM = 64, BK = 64, PANELS = 2 };
enum { WEIGHT_BYTES = 4096, OPERAND_BYTES = 2048 };
enum { PREFETCH = 0 };
_Static_assert(M_PAD == PANELS * BM && M <= M_PAD && K <= K_PAD, "whole panels and blocks cover the matrix");

// A table of 16 int16 sums serves each pair of columns.
enum { TABLE = 32 };
_Static_assert(BM % 32 == 0 && BK % 8 == 0 && K_PAD % BK == 0, "32 rows and 8 columns a step; whole tiles");

// Operand: a table for each pair. Entry i is the signed sum that i - 4 in balanced ternary spells, its digits
// for q[0], q[1] from the most significant down.
static void pack_activations(const int8_t *q, int32_t n, uint8_t *operand) {
  for (int32_t t = 0; t < n; t++, q += K, operand += OPERAND_BYTES) {
    int8_t x[K_PAD] = {0};
    memcpy(x, q, K);
    int16_t table[16] = {0};
    for (int32_t g = 0; g < K_PAD / 2; g++) {
      for (int i = 0; i < 9; i++)
        table[i] = (int16_t)((i / 3 - 1) * x[2 * g] + (i % 3 - 1) * x[2 * g + 1]);
      memcpy(operand + (size_t)g * TABLE, table, TABLE);
    }
  }
}

static inline int32_t look_up(const uint8_t *tables, int32_t g, int i) {
  int16_t entry;
  memcpy(&entry, tables + (size_t)g * TABLE + 2 * i, sizeof entry);
  return entry;
}

// y [BM] += one tile: per 32 rows and 8 columns, 16 rows by 2 bytes and then the other 16; a byte holds two
// pairs, the earlier one in its high nibble.
static void add_tile(const uint8_t *w, const uint8_t *tables, int32_t *y) {
  for (int32_t row = 0; row < BM; row += 32)
    for (int32_t g = 0; g < BK / 2; g += 4)
      for (int half = 0; half < 32; half += 16)
        for (int pair = 0; pair < 4; pair += 2, w += 16)
          for (int r = 0; r < 16; r++)
            y[row + half + r] +=
                look_up(tables, g + pair, w[r] >> 4) + look_up(tables, g + pair + 1, w[r] & 15);
}

static void run(const uint8_t *w, const uint8_t *operand, int32_t n, int32_t *y, int32_t p0, int32_t p1,
                void *scratch) {
  (void)scratch;
  for (int32_t p = p0; p < p1; p++) {
    int32_t *yp = y + (size_t)p * BM;
    for (int32_t t = 0; t < n; t++)
      memset(yp + (size_t)t * M_PAD, 0, BM * sizeof *y);
    // A tile stays in the first-level cache while all tokens pass over it.
    for (int32_t kt = 0; kt < K_PAD / BK; kt++) {
      const uint8_t *tile = w + ((size_t)p * (K_PAD / BK) + kt) * (BM * BK / 4);
      for (int32_t t = 0; t < n; t++)
        add_tile(tile, operand + (size_t)t * OPERAND_BYTES + kt * (BK / 2) * TABLE, yp + (size_t)t * M_PAD);
    }
  }
}

const bg_kernel bg_tl1_gemv_m127_k128_bm64_bk64__scalar = {
    .symbol = "bg_tl1_gemv_m127_k128_bm64_bk64__scalar",
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
