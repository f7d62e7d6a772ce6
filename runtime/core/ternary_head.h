// ternary_head.h: an embedding and an output matrix of codes with scales of groups, as the file has them: read by
// rows, and screened by the kernels that multiply such matrices.
#ifndef BITGEN_TERNARY_HEAD_H
#define BITGEN_TERNARY_HEAD_H

#include "core/state.h"

// x float [hidden_row] = the embedding's row, ternary or not, times the model's scale
void embedding_row(const state *s, int32_t token, float *x);

// logits[t * stride + row - row0] = row . x[t] for rows row0 .. row1 - 1 of a ternary head, by one of the threads;
// x float [n][hidden_row]
void ternary_logits(const state *s, int32_t thread, int32_t row0, int32_t row1, const float *x, int32_t n,
                    float *logits, size_t stride);

// Rounds the state h of choice t of n, whose norm rounded up is `norm`; returns how far the screen may be off, in norms
// of a row.
float ternary_operand(const state *s, int32_t n, int32_t t, const float *h, float norm);

// The states of n choices, and what ternary_operand said of each.
typedef struct {
  const state *state;
  int32_t n;
  float reach[CHOICES];
} ternary_screen;

// The pool_task of a ternary_screen: each thread finds the candidates among its rows, for all choices.
void ternary_screen_task(void *arg, int32_t thread, int32_t threads);

#endif
