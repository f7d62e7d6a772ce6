// screen_lab.c: the screen of one ISA level's head.c against plain loops. Prints how many sums differ.
#include <stdio.h>
#include <stdlib.h>

#include "simd/ops.h"

extern const bg_head_ops BG_FOR_ISA(bg_head);

enum { ROWS = 9, TOKENS = 9 };

// Spread a code less 128 over its places.
static void put(uint8_t *upper, uint8_t *lower, int32_t column, int32_t code) {
  const int32_t in = column % SCREEN_COLUMNS, c = in / 64, j = in % 64, six = (code + 128) / 4;
  uint8_t *u = upper + UPPER_BYTES(column - in), *l = lower + LOWER_BYTES(column - in);
  u[c / 2 * 64 + j] |= (uint8_t)(six % 16 << c % 2 * 4);
  u[128 + j] |= (uint8_t)(six / 16 << 2 * c);
  l[j] |= (uint8_t)((code + 128) % 4 << 2 * c);
}

static int32_t differences(int32_t k, int32_t rows, int32_t n, int32_t extreme) {
  int8_t *w = malloc((size_t)rows * k), *x = malloc((size_t)n * k);
  uint8_t *upper = calloc((size_t)rows, UPPER_BYTES(k)), *lower = calloc((size_t)rows, LOWER_BYTES(k));
  const int8_t *of[TOKENS];
  int32_t sums[ROWS * TOKENS], wrong = 0;
  for (int32_t i = 0; i < rows * k; i++) {
    w[i] = (int8_t)(extreme ? 127 : rand() % 255 - 127);
    put(upper + i / k * UPPER_BYTES(k), lower + i / k * LOWER_BYTES(k), i % k, w[i]);
  }
  for (int32_t i = 0; i < n * k; i++)
    x[i] = (int8_t)(extreme ? -127 : rand() % 255 - 127);
  for (int32_t t = 0; t < n; t++)
    of[t] = x + t * k;
  BG_FOR_ISA(bg_head).screen(upper, k, rows, of, n, sums);
  for (int32_t t = 0; t < n; t++)
    for (int32_t r = 0; r < rows; r++) {
      const int8_t *const pair[2] = {of[t], of[0]};
      int32_t sum = 0, all = 0, both[2];
      for (int32_t i = 0; i < k; i++) {
        sum += (w[r * k + i] + 128) / 4 * x[t * k + i];
        all += (w[r * k + i] + 128) * x[t * k + i];
      }
      BG_FOR_ISA(bg_head).refine(upper + r * UPPER_BYTES(k), lower + r * LOWER_BYTES(k), k, pair, both);
      wrong += sum != sums[t * rows + r] || all != both[0];
    }
  free(w);
  free(x);
  free(upper);
  free(lower);
  return wrong;
}

int main(void) {
  const int32_t widths[] = {256, 512, 2560};
  int32_t wrong = 0;
  for (int32_t i = 0; i < (int32_t)(sizeof widths / sizeof *widths); i++)
    for (int32_t n = 1; n <= TOKENS; n++)
      for (int32_t rows = 1; rows <= ROWS; rows += 4)
        wrong += differences(widths[i], rows, n, 0) + differences(widths[i], rows, n, 1);
  printf("%d\n", wrong);
  return wrong != 0;
}
