// bg_tl2_gemm_m127_k128_bm64_bk96__scalar
//
// gemm of W [127, 128] in layout tl2_bm64_bk96 on scalar.
// Generated from templates/tl2/scalar.c.j2 by:
//   bitgen gen bg_tl2_gemm_m127_k128_bm64_bk96__scalar

#include <string.h>

#include "kernel.h"

enum { M = 127, K = 128, M_PAD = 128, K_PAD = 128 };
enum { BM = 64, BK = 96, PANELS = 2 };
enum { WEIGHT_BYTES = 3584, OPERAND_BYTES = 1536 };
enum { NR = 1, KC = 128 };
_Static_assert(M_PAD == PANELS * BM && M <= M_PAD && K <= K_PAD, "whole panels and blocks cover the matrix");

// K3 columns in triples, in tiles of BK; the other K2 in pairs, in tiles of PAIR_BK. A table of 16 int16 sums
// serves each triple and each pair.
enum { K3 = K_PAD / BK * BK, K2 = K_PAD - K3, PAIR_BK = 32, TABLE = 32 };
_Static_assert(BM % 32 == 0 && BK % 96 == 0 && K2 % PAIR_BK == 0, "32 rows a step; whole tiles");

// Operand: a table for each triple, then one for each pair. Entry i of a triple's is the signed sum that i in
// balanced ternary spells, its digits for q[0], q[1], q[2] from the most significant down; entry i of a pair
// spells i - 4.
static void pack_activations(const int8_t *q, int32_t n, uint8_t *operand) {
  for (int32_t t = 0; t < n; t++, q += K, operand += OPERAND_BYTES) {
    int8_t x[K_PAD] = {0};
    memcpy(x, q, K);
    int16_t table[16] = {0};
    for (int32_t g = 0; g < K3 / 3; g++) {
      const int8_t *v = x + 3 * g;
      for (int i = 0, digits = 13; i < 14; i++, digits++)
        table[i] = (int16_t)((digits / 9 - 1) * v[0] + (digits / 3 % 3 - 1) * v[1] + (digits % 3 - 1) * v[2]);
      memcpy(operand + (size_t)g * TABLE, table, TABLE);
    }
    for (int32_t g = 0; g < K2 / 2; g++) {
      const int8_t *v = x + K3 + 2 * g;
      for (int i = 0; i < 9; i++)
        table[i] = (int16_t)((i / 3 - 1) * v[0] + (i % 3 - 1) * v[1]);
      memcpy(operand + (size_t)(K3 / 3 + g) * TABLE, table, TABLE);
    }
  }
}

static inline int32_t look_up(const uint8_t *tables, int32_t g, int i) {
  int16_t entry;
  memcpy(&entry, tables + (size_t)g * TABLE + 2 * i, sizeof entry);
  return entry;
}

// Row within 32 of byte `at` of a step: 0-7, 16-23, 8-15, 24-31.
static inline int row_at(int at) { return at % 8 + at / 8 % 2 * 16 + at / 16 * 8; }

// y [BM] += one tile of triples: per 32 rows BK / 6 steps of 32 index bytes, and a word of signs per row pair
// (j, j + 16) and 8 triples, the first triple's in the top bits.
static void add_triples(const uint8_t *index, const uint8_t *signs, const uint8_t *tables, int32_t *y) {
  for (int32_t row = 0; row < BM; row += 32, signs += BK / 24 * 32) {
    for (int32_t step = 0; step < BK / 6; step++, index += 32) {
      for (int at = 0; at < 32; at++) {
        const int r = row_at(at);
        const uint8_t *word = signs + step / 4 * 32 + r % 16 * 2;
        const int bits = (word[0] | word[1] << 8) << (step % 4 * 4 + r / 16);
        const int32_t a = look_up(tables, 2 * step, index[at] >> 4);
        const int32_t b = look_up(tables, 2 * step + 1, index[at] & 15);
        y[row + r] += (bits & 1 << 15 ? -a : a) + (bits & 1 << 13 ? -b : b);
      }
    }
  }
}

// y [BM] += one tile of pairs: per 32 rows PAIR_BK / 4 steps of 32 bytes.
static void add_pairs(const uint8_t *pairs, const uint8_t *tables, int32_t *y) {
  for (int32_t row = 0; row < BM; row += 32)
    for (int32_t step = 0; step < PAIR_BK / 4; step++, pairs += 32)
      for (int at = 0; at < 32; at++)
        y[row + row_at(at)] +=
            look_up(tables, 2 * step, pairs[at] >> 4) + look_up(tables, 2 * step + 1, pairs[at] & 15);
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

const bg_kernel bg_tl2_gemm_m127_k128_bm64_bk96__scalar = {
    .symbol = "bg_tl2_gemm_m127_k128_bm64_bk96__scalar",
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
