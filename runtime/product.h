// product.h: how threads divide one product.
#ifndef BITGEN_PRODUCT_H
#define BITGEN_PRODUCT_H

#include "kernel.h"
#include "pool.h"

typedef struct {
  const bg_kernel *kernel;
  const uint8_t *w;
  const uint8_t *operand; // [n][operand_bytes]
  int32_t n;
  int32_t *y;       // [n][m_pad]
  uint8_t *scratch; // [threads][scratch_bytes]
} product;

// A pool_task. Threads divide the panels. Where the kernel would rather keep many rows, as many columns of
// threads as divide the tiles of tokens evenly take a stretch of the tokens each.
static inline void product_share(void *arg, int32_t thread, int32_t threads) {
  const product *p = arg;
  const bg_kernel *k = p->kernel;
  const int32_t tiles = k->n_tile && p->n > k->n_tile ? (p->n + k->n_tile / 2) / k->n_tile : 1;
  int32_t columns = threads;
  while (columns > 1 && (tiles % columns || threads % columns))
    columns--;
  const int32_t column = thread % columns, row = thread / columns, rows = threads / columns;
  const int32_t t0 = share(tiles, column, columns) * k->n_tile;
  const int32_t t1 = column == columns - 1 ? p->n : share(tiles, column + 1, columns) * k->n_tile;
  const int32_t p0 = share(k->panels, row, rows), p1 = share(k->panels, row + 1, rows);
  if (p0 < p1 && t0 < t1)
    k->run(p->w, p->operand + (size_t)t0 * k->operand_bytes, t1 - t0, p->y + (size_t)t0 * k->m_pad, p0, p1,
           p->scratch + (size_t)thread * k->scratch_bytes);
}

#endif
