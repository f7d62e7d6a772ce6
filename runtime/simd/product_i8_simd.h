// product_i8_simd.h: product_i8.h on vectors, pair by pair of codes.
#ifndef BITGEN_PRODUCT_I8_SIMD_H
#define BITGEN_PRODUCT_I8_SIMD_H

#include "simd/product_i8.h"

enum { GROUP = 2 }; // codes that one lane of an instruction adds up: neighbours in a row of the cache
enum { PAIRS = GROUP * LANES }; // int8 codes that one vector multiplies
// Rows and vectors of a tile, whose sums the registers hold.
#if BG_VEC_AVX512
enum { TALL = 8, WIDE = 2 };
#else
enum { TALL = 4, WIDE = 1 };
#endif

// `rows` rows and `vectors` vectors, both constants, from row r and vector v on.
VEC void tile(const int rows, const int vectors, const factors *f, int32_t r0, int32_t v0) {
  const int16_t *a = f->a + r0 * f->row;
  v16i sum[TALL][WIDE];
  for (int r = 0; r < rows; r++)
    for (int v = 0; v < vectors; v++)
      sum[r][v] = v16i_set(0);
  for (int32_t i = 0; i < (f->n + 1) / 2; i++) {
    v32s b[WIDE];
    for (int v = 0; v < vectors; v++) {
      const int32_t at = (v0 + v) * f->vector + i * PAIRS;
      __builtin_prefetch(f->next + at, 0, 2);
      b[v] = v32s_load_i8(f->b + at);
    }
    for (int r = 0; r < rows; r++) {
      const v32s pair = v32s_set_pair(a + r * f->row + 2 * i);
      for (int v = 0; v < vectors; v++)
        sum[r][v] = v16i_add_pairs(sum[r][v], b[v], pair);
    }
  }
  for (int v = 0; v < vectors; v++)
    for (int r = 0; r < rows; r++)
      put(f, r0 + r, v0 + v, sum[r][v]);
}

// All of so many rows, a constant, from row r on.
VEC void tiles(const int rows, const factors *f, int32_t r, int32_t vectors) {
  int32_t v = 0;
  for (; v + WIDE <= vectors; v += WIDE)
    tile(rows, WIDE, f, r, v);
  for (; v < vectors; v++)
    tile(rows, 1, f, r, v);
}

static void multiply(const factors *f, int32_t rows, int32_t vectors) {
  int32_t r = 0;
  for (; r + TALL <= rows; r += TALL)
    tiles(TALL, f, r, vectors);
  for (; r + 4 <= rows; r += 4)
    tiles(4, f, r, vectors);
  for (; r + 2 <= rows; r += 2)
    tiles(2, f, r, vectors);
  for (; r < rows; r++)
    tiles(1, f, r, vectors);
}

#endif
