// candidates.c: the k greatest lower bounds so far are a heap; a row stays as long as its upper bound reaches
// the least of them.
#include "core/candidates.h"

#include <math.h>

#define HEAP_OF float
#define HEAP_ABOVE(a, b) ((a) < (b))
#include "algorithms/heap.h"

// A heap of the k greatest values, the least of them first: a greater value replaces it.
static void heap_replace_least(float *heap, int32_t k, float value) {
  if (value > heap[0])
    heap_sink(heap, (size_t)k, 0, value);
}

void candidates_clear(candidates *c, int32_t k, float margin) {
  c->k = k;
  c->margin = margin;
  c->n = 0;
  c->threshold = -INFINITY;
  for (int32_t i = 0; i < k; i++)
    c->top_k_lower[i] = -INFINITY;
}

// Where nearly all stay the search is given up: n = -1.
static void drop_below_threshold(candidates *c) {
  int32_t n = 0;
  for (int32_t i = 0; i < c->n; i++)
    if (!(c->upper[i] < c->threshold)) {
      c->upper[n] = c->upper[i];
      c->ids[n++] = c->ids[i];
    }
  c->n = n > MAX_CANDIDATES / 4 * 3 ? -1 : n;
}

void candidates_add(candidates *c, int32_t id, float lower, float upper) {
  heap_replace_least(c->top_k_lower, c->k, lower);
  c->threshold = c->top_k_lower[0] - c->margin;
  if (upper < c->threshold) // NaN stays
    return;
  if (c->n == MAX_CANDIDATES)
    drop_below_threshold(c);
  if (c->n >= 0) {
    c->ids[c->n] = id;
    c->upper[c->n++] = upper;
  }
}

int32_t candidates_merge(const state *s, int32_t t, int32_t *ids) {
  const int32_t threads = pool_threads(s->pool);
  const candidates *first = candidates_of(s, 0, t);
  float *top = candidates_of(s, 0, t)->top_k_lower;
  int32_t n = 0;
  for (int32_t thread = 1; thread < threads; thread++)
    for (int32_t i = 0; i < first->k; i++)
      heap_replace_least(top, first->k, candidates_of(s, thread, t)->top_k_lower[i]);
  const float threshold = top[0] - first->margin;
  for (int32_t thread = 0; thread < threads; thread++) {
    const candidates *c = candidates_of(s, thread, t);
    if (c->n < 0)
      return -1;
    for (int32_t i = 0; i < c->n; i++)
      if (!(c->upper[i] < threshold)) {
        if (n == MAX_CANDIDATES)
          return -1;
        ids[n++] = c->ids[i];
      }
  }
  return threshold > -INFINITY ? n : -1;
}
