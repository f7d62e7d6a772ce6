// softmax.h: what attention over every type of cache shares: the softmax of one block's scores, and partial
// results (ops.h) put together. Included once by each file that is compiled per ISA and needs it.
#ifndef BITGEN_SOFTMAX_H
#define BITGEN_SOFTMAX_H

#include "simd/ops.h"
#include "simd/vec.h"

// Scores begin .. end - 1 become p = exp(score - top); those before, and the rest of the last vector, 0.
static void softmax(float *scores, int32_t begin, int32_t end, float *top, float *sum) {
  const int32_t whole = end / LANES * LANES, first = begin / LANES * LANES;
  const v16i inside = v16i_iota() < v16i_set(end - whole), seen = v16i_iota() >= v16i_set(begin - first);
  const v16 never = v16_set(-__builtin_inff());
  if (end > whole)
    v16_store(scores + whole, v16_select(inside, v16_load(scores + whole), never));
  if (begin > first)
    v16_store(scores + first, v16_select(seen, v16_load(scores + first), never));
  v16 most = never, total = {0};
  for (int32_t i = first; i < end; i += LANES)
    most = v16_max(v16_load(scores + i), most);
  *top = v16_hmax(most);
  for (int32_t i = 0; i < first; i += LANES)
    v16_store(scores + i, v16_set(0));
  for (int32_t i = first; i < end; i += LANES) {
    v16 p = v16_exp(v16_load(scores + i) - v16_set(*top));
    if (i == whole)
      p = v16_select(inside, p, v16_set(0));
    if (i == first)
      p = v16_select(seen, p, v16_set(0));
    total = total + p;
    v16_store(scores + i, p);
  }
  *sum = v16_sum(total);
}

static void merge(float *into, const float *part, int32_t d) {
  int32_t dp = padded(d);
  float top = into[dp] > part[dp] ? into[dp] : part[dp];
  v16 old = v16_exp(v16_set(into[dp] - top)), new = v16_exp(v16_set(part[dp] - top));
  for (int32_t i = 0; i < dp; i += LANES)
    v16_store(into + i, v16_fma(v16_load(part + i), new, v16_load(into + i) * old));
  into[dp] = top;
  into[dp + 1] = v16_fma(v16_set(part[dp + 1]), new, v16_set(into[dp + 1]) * old)[0];
}

static void finish(const float *part, int32_t d, float *y) {
  float sum = part[padded(d) + 1];
  for (int32_t i = 0; i < d; i++)
    y[i] = part[i] / sum;
}

#endif
