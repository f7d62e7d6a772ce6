// instructions.h: AVX-VNNI's and AMX's instructions in plain C, for CPUs and emulators that lack them.
//
// Included before everything else (-include), it takes the place of the intrinsics, so that the very text
// that ships is executed. What they do is Intel's manual (volume 2, and volume 1, chapter 18); where an
// instruction would fault, the program says why and aborts.
#ifndef INSTRUCTIONS_H
#define INSTRUCTIONS_H

#include <immintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static inline void fault_if(int condition, const char *what) {
  if (condition) {
    fprintf(stderr, "%s\n", what);
    abort();
  }
}

// Each int32 lane gains four products of unsigned and signed bytes, modulo 2^32.
static inline __m256i vpdpbusd_in_c(__m256i sum, __m256i u, __m256i s) {
  uint32_t lanes[8];
  uint8_t a[32];
  int8_t b[32];
  memcpy(lanes, &sum, sizeof sum);
  memcpy(a, &u, sizeof u);
  memcpy(b, &s, sizeof s);
  for (int i = 0; i < 32; i++)
    lanes[i / 4] += (uint32_t)(a[i] * b[i]);
  memcpy(&sum, lanes, sizeof sum);
  return sum;
}

enum { TILE_COUNT = 8, TILE_LINES = 16, TILE_LINE_BYTES = 64 };

typedef struct {
  uint8_t line[TILE_LINES][TILE_LINE_BYTES];
} tile_data;

typedef struct { // 64 bytes in memory; palette 0: tiles are not configured
  uint8_t palette, start_row, reserved[14];
  uint16_t line_bytes[16];
  uint8_t lines[16];
} tile_config;

static _Thread_local tile_config shapes;
static _Thread_local tile_data tiles[TILE_COUNT];

static inline void ldtilecfg_in_c(const void *from) {
  tile_config c;
  memcpy(&c, from, sizeof c);
  fault_if(c.palette > 1, "ldtilecfg: no such palette");
  for (int i = 0; i < 14; i++)
    fault_if(c.reserved[i], "ldtilecfg: a reserved byte is not 0");
  for (int i = 0; i < 16; i++) {
    fault_if(i >= TILE_COUNT && (c.lines[i] || c.line_bytes[i]),
             "ldtilecfg: a shape for a tile that does not exist");
    fault_if(c.lines[i] > TILE_LINES || c.line_bytes[i] > TILE_LINE_BYTES, "ldtilecfg: a tile too large");
    fault_if(!c.lines[i] != !c.line_bytes[i], "ldtilecfg: a tile with one side only");
  }
  shapes = c;
  memset(tiles, 0, sizeof tiles);
}

static inline void tilerelease_in_c(void) {
  memset(&shapes, 0, sizeof shapes);
  memset(tiles, 0, sizeof tiles);
}

static inline void need_tile(int t) {
  fault_if(shapes.palette == 0, "tiles are not configured");
  fault_if(t < 0 || t >= TILE_COUNT || shapes.lines[t] == 0, "this tile is not configured");
}

static inline void tilezero_in_c(int t) {
  need_tile(t);
  memset(&tiles[t], 0, sizeof tiles[t]);
}

static inline void tileload_in_c(int t, const void *from, size_t stride) {
  tilezero_in_c(t);
  for (int i = 0; i < shapes.lines[t]; i++)
    memcpy(tiles[t].line[i], (const uint8_t *)from + i * stride, shapes.line_bytes[t]);
}

static inline void tilestore_in_c(int t, void *to, size_t stride) {
  need_tile(t);
  for (int i = 0; i < shapes.lines[t]; i++)
    memcpy((uint8_t *)to + i * stride, tiles[t].line[i], shapes.line_bytes[t]);
}

// Line m of the sums gains the products of line m of a and, transposed by fours, b: sum[m][n] gains
// a[m][4 k + i] * b[k][4 n + i] over k and i, modulo 2^32. All bytes are signed.
static inline void tdpbssd_in_c(int sum, int a, int b) {
  need_tile(sum), need_tile(a), need_tile(b);
  fault_if(sum == a || sum == b || a == b, "a tile is used twice");
  fault_if(shapes.line_bytes[sum] % 4 || shapes.line_bytes[a] % 4 || shapes.line_bytes[b] % 4,
           "not whole fours");
  fault_if(shapes.lines[sum] != shapes.lines[a] || shapes.line_bytes[sum] != shapes.line_bytes[b] ||
               shapes.line_bytes[a] / 4 != shapes.lines[b],
           "the shapes of the tiles do not fit");
  for (int m = 0; m < shapes.lines[sum]; m++) {
    uint32_t sums[TILE_LINE_BYTES / 4];
    memcpy(sums, tiles[sum].line[m], sizeof sums);
    for (int k = 0; k < shapes.lines[b]; k++) {
      const int8_t *x = (const int8_t *)&tiles[a].line[m][4 * k];
      for (int n = 0; n < TILE_LINE_BYTES / 4; n++) { // a line's bytes beyond its shape are 0
        const int8_t *w = (const int8_t *)&tiles[b].line[k][4 * n];
        sums[n] += (uint32_t)(x[0] * w[0] + x[1] * w[1] + x[2] * w[2] + x[3] * w[3]);
      }
    }
    memcpy(tiles[sum].line[m], sums, sizeof sums);
  }
}

#undef _mm256_dpbusd_avx_epi32
#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbssd
#define _mm256_dpbusd_avx_epi32 vpdpbusd_in_c
#define _tile_loadconfig ldtilecfg_in_c
#define _tile_release tilerelease_in_c
#define _tile_zero tilezero_in_c
#define _tile_loadd tileload_in_c
#define _tile_stored tilestore_in_c
#define _tile_dpbssd tdpbssd_in_c

#endif
