// product.h: how threads divide one product.
#ifndef BITGEN_PRODUCT_H
#define BITGEN_PRODUCT_H

#include "core/pool.h"
#include "kernel.h"
#include "simd/ops.h"

// A row of q for a kernel with groups: x float [k] rounded group by group, each with its step behind them.
static inline void quantise_groups(const bg_ops *ops, const bg_kernel *k, const float *x, int8_t *q) {
  uint8_t *steps = (uint8_t *)q + k->k;
  for (int32_t i = 0; i < k->k; i += k->group, steps += sizeof(float)) {
    const float step = 1.0f / ops->quantise(x + i, k->group, q + i);
    memcpy(steps, &step, sizeof step);
  }
}

typedef struct {
  const bg_kernel *kernel;
  const uint8_t *w;
  const uint8_t *operand; // [n][operand_bytes]
  int32_t n;
  int32_t *y;       // [n][m_pad]
  uint8_t *scratch; // [threads][scratch_bytes]
} product;

// A pool_task. Threads divide the panels. A kernel that has tiles of tokens prepares each, for few rows as
// for many: where a thread would have too few, columns of threads take a stretch of the tokens each.
static inline void product_task(void *arg, int32_t thread, int32_t threads) {
  const product *p = arg;
  const bg_kernel *k = p->kernel;
  const int32_t tiles = k->n_tile && p->n > k->n_tile ? (p->n + k->n_tile / 2) / k->n_tile : 1;
  int32_t columns = 1;
  for (int32_t c = 2; c <= threads && k->m_pad / (threads / columns) < k->m_tile; c++)
    if (tiles % c == 0 && threads % c == 0)
      columns = c;
  const int32_t column = thread % columns, row = thread / columns, rows = threads / columns;
  const int32_t t0 = range_begin(tiles, column, columns) * k->n_tile;
  const int32_t t1 = column == columns - 1 ? p->n : range_begin(tiles, column + 1, columns) * k->n_tile;
  const int32_t p0 = range_begin(k->panels, row, rows), p1 = range_begin(k->panels, row + 1, rows);
  if (p0 < p1 && t0 < t1)
    k->run(p->w, p->operand + (size_t)t0 * k->operand_bytes, t1 - t0, p->y + (size_t)t0 * k->m_pad, p0, p1,
           p->scratch + (size_t)thread * k->scratch_bytes);
}

#endif
