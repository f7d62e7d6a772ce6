// logits.h: logits of the whole output matrix, and logits as the sampler takes them.
#ifndef BITGEN_LOGITS_H
#define BITGEN_LOGITS_H

#include "core/state.h"

// Tokens to choose from: logits [n] of ids [n], which rise, or of all (ids NULL).
typedef struct {
  const float *logits;
  const int32_t *ids;
  int32_t n;
} token_logits;

// logits [n][vocab] of hidden states x [n][hidden_row].
void output_logits(state *s, const float *x, int32_t n, float *logits);

// The logit of one row of a float or ternary output matrix, as of all: by one of the threads.
float output_logit(const state *s, int32_t thread, int32_t row, const float *x);

#endif
