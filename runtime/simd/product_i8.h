// product_i8.h: exact products of rows of int16 codes with vectors of int8 codes, a part of attention_i8.c.
// product_i8_simd.h has them on vectors, product_i8_amx.h on AMX tiles: the same int32 sums.
#ifndef BITGEN_PRODUCT_I8_H
#define BITGEN_PRODUCT_I8_H

#include "simd/ops.h"
#include "simd/vec.h"

enum { SHARING = 16 }; // rows that walk over a block together, so that it is read once

// A product of rows of int16 codes with vectors of int8 codes, [codes / GROUP][16][GROUP] each. y[r][16 v ..]
// is that of row r and vector v, times factor[r] and, where there are, the vector's scales.
typedef struct {
  const int16_t *a;
  int32_t row; // codes from one row to the next
  const int8_t *b;
  int32_t vector, n;   // bytes from one vector to the next; codes that are multiplied, zeros up to a group
  const float *factor; // [rows]
  const float *scales; // [vectors][16], or NULL
  const int8_t *next;  // is prefetched meanwhile, byte for byte, into the second-level cache
  float *const *y;     // [rows]
} factors;

VEC void put(const factors *f, int32_t r, int32_t v, v16i sums) {
  const v16 scales = f->scales ? v16_load(f->scales + v * LANES) : v16_set(1);
  v16_store(f->y[r] + v * LANES, __builtin_convertvector(sums, v16) * v16_set(f->factor[r]) * scales);
}

// The product of `rows` rows, at most SHARING, with `vectors` vectors.
static void multiply(const factors *f, int32_t rows, int32_t vectors);

#endif
