// candidates.h: rows of the output matrix whose logit may be among the k greatest, by intervals that logits cannot
// leave. Each thread keeps those of its rows.
#ifndef BITGEN_CANDIDATES_H
#define BITGEN_CANDIDATES_H

#include "core/state.h"

static inline candidates *candidates_of(const state *s, int32_t thread, int32_t t) {
  return s->choosing.found + (size_t)thread * CHOICES + t;
}

void candidates_clear(candidates *c, int32_t k, float margin);

// The logit of row `id`, which is greater than the ids before, lies between two bounds.
void candidates_add(candidates *c, int32_t id, float lower, float upper);

// ids = the rows, rising, whose interval reaches the k-th greatest lower bound of choice t over all threads'
// rows; their number, or -1: too many.
int32_t candidates_merge(const state *s, int32_t t, int32_t *ids);

#endif
