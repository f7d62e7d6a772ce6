// product_i8_amx.h: product_i8.h on AMX tiles.
//
// A code of 15 bits is two digits, 128 high + low, and tiles multiply each by int8: 16 rows by 16 columns by
// 64 codes in an instruction. The int32 sums are those of any other way.
#ifndef BITGEN_PRODUCT_I8_AMX_H
#define BITGEN_PRODUCT_I8_AMX_H

#include <immintrin.h>

#include "simd/product_i8.h"

enum { GROUP = 4 }; // codes that one lane of an instruction adds up: neighbours in a row of the cache
enum { LINE = 64, MOST_CODES = MAX_HEAD_DIM }; // bytes of a line of a tile; codes of a row
_Static_assert(MOST_CODES >= ATTEND_BLOCK && MOST_CODES % LINE == 0, "room for positions, and whole lines");

typedef int8_t digits[SHARING][MOST_CODES];

// Tiles 0 and 1 are sums of the high and the low digit, 2 and 3 those of the next vector, 4 and 5 the digits
// of the rows, 6 and 7 the two vectors.
static void configure(int32_t rows) {
  const struct { // what ldtilecfg reads
    uint8_t palette, start_row, reserved[14];
    uint16_t line_bytes[16];
    uint8_t lines[16];
  } shapes = {
      .palette = 1,
      .line_bytes = {LINE, LINE, LINE, LINE, LINE, LINE, LINE, LINE},
      .lines = {(uint8_t)rows, (uint8_t)rows, (uint8_t)rows, (uint8_t)rows, (uint8_t)rows, (uint8_t)rows,
                LANES, LANES},
  };
  _tile_loadconfig(&shapes);
}

// Digits of f->n codes of each row, zeros up to a whole line.
static void split(const factors *f, int32_t rows, digits high, digits low) {
  enum { STEP = 32 };
  for (int32_t r = 0; r < rows; r++)
    for (int32_t i = 0; i < round_up(f->n, LINE); i += STEP) {
      const int32_t left = f->n - i;
      const __mmask32 there = left >= STEP ? ~0u : left > 0 ? (1u << left) - 1 : 0;
      const __m512i a = _mm512_maskz_loadu_epi16(there, f->a + r * f->row + i);
      _mm256_storeu_si256((__m256i *)&high[r][i], _mm512_cvtepi16_epi8(_mm512_srai_epi16(a, 7)));
      _mm256_storeu_si256((__m256i *)&low[r][i],
                          _mm512_cvtepi16_epi8(_mm512_and_si512(a, _mm512_set1_epi16(127))));
    }
}

static void prefetch_tile(const int8_t *tile) {
  for (int line = 0; line < LANES; line++)
    __builtin_prefetch(tile + line * LINE, 0, 2);
}

// sums [vector][digit][row] of vector v and, where there are two, of the next.
static void sum_digits(const factors *f, digits high, digits low, int32_t v, int two,
                       v16i sums[2][2][LANES]) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int32_t i = 0; i < f->n; i += LINE) {
    const int32_t at = v * f->vector + i * LANES;
    _tile_loadd(6, f->b + at, LINE);
    _tile_loadd(4, high[0] + i, MOST_CODES);
    _tile_dpbssd(0, 4, 6);
    _tile_loadd(5, low[0] + i, MOST_CODES);
    _tile_dpbssd(1, 5, 6);
    prefetch_tile(f->next + at);
    if (two) {
      _tile_loadd(7, f->b + at + f->vector, LINE);
      _tile_dpbssd(2, 4, 7);
      _tile_dpbssd(3, 5, 7);
      prefetch_tile(f->next + at + f->vector);
    }
  }
  _tile_stored(0, sums[0][0], LINE);
  _tile_stored(1, sums[0][1], LINE);
  _tile_stored(2, sums[1][0], LINE);
  _tile_stored(3, sums[1][1], LINE);
}

static void multiply(const factors *f, int32_t rows, int32_t vectors) {
  digits high, low;
  split(f, rows, high, low);
  configure(rows);
  for (int32_t v = 0; v < vectors; v += 2) {
    const int32_t some = vectors - v < 2 ? 1 : 2;
    v16i sums[2][2][LANES];
    sum_digits(f, high, low, v, some == 2, sums);
    for (int32_t j = 0; j < some; j++)
      for (int32_t r = 0; r < rows; r++)
        put(f, r, v + j, 128 * sums[j][0][r] + sums[j][1][r]);
  }
  _tile_release();
}

#endif
