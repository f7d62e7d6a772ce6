// screen_lab.c: the screen of one ISA level's head.c against plain loops. Prints how many sums differ.
#include <stdio.h>
#include <stdlib.h>

#include "ops.h"

extern const bg_head_ops BG_FOR_ISA(bg_head);

enum { ROWS = 9, TOKENS = 9, MOST = 2576 };

static int32_t differences(int32_t k, int32_t rows, int32_t n, int32_t extreme) {
  int8_t *w = malloc((size_t)rows * k),
         *x = malloc((size_t)n * k); // the sanitizers would see a byte too many
  const int8_t *of[TOKENS];
  int32_t sums[ROWS * TOKENS], wrong = 0;
  for (int32_t i = 0; i < rows * k; i++)
    w[i] = (int8_t)(extreme ? 127 : rand() % 255 - 127);
  for (int32_t i = 0; i < n * k; i++)
    x[i] = (int8_t)(extreme ? -127 : rand() % 255 - 127);
  for (int32_t t = 0; t < n; t++)
    of[t] = x + t * k;
  BG_FOR_ISA(bg_head).screen(w, k, rows, of, n, sums);
  for (int32_t t = 0; t < n; t++)
    for (int32_t r = 0; r < rows; r++) {
      int32_t sum = 0;
      for (int32_t i = 0; i < k; i++)
        sum += w[r * k + i] * x[t * k + i];
      wrong += sum != sums[t * rows + r];
    }
  free(w);
  free(x);
  return wrong;
}

int main(void) {
  const int32_t widths[] = {16, 48, 64, 112, 128, MOST};
  int32_t wrong = 0;
  for (int32_t i = 0; i < (int32_t)(sizeof widths / sizeof *widths); i++)
    for (int32_t n = 1; n <= TOKENS; n++)
      for (int32_t rows = 1; rows <= ROWS; rows += 4)
        wrong += differences(widths[i], rows, n, 0) + differences(widths[i], rows, n, 1);
  printf("%d\n", wrong);
  return wrong != 0;
}
