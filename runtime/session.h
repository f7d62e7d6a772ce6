// session.h: the state of one conversation. Every buffer is made when the session opens.
#ifndef BITGEN_SESSION_H
#define BITGEN_SESSION_H

#include "model.h"
#include "pool.h"

enum { CHUNK = 128 }; // most tokens of one pass through the layers

struct bg_session {
  const bg_model *model;
  const bg_ops *ops;
  const bg_attention_ops *attention; // for a cache of halves or floats
  pool *pool;
  int32_t context;  // positions that the cache holds
  int32_t position; // tokens in the cache

  // The chunk in flight: n tokens, the first at `position`.
  int32_t n;
  int32_t layer;
  const int32_t *tokens; // [n]
  float *logits;         // [n_logits][vocab]
  int32_t n_logits;      // of the last tokens of the chunk: 0, 1 or n

  // Sizes of rows
  int32_t hidden_row, query_row, wide_row, q_row; // of x, query, h and q
  int32_t y_row;
  size_t operand_row;
  size_t k_head, v_head;
  int32_t attend_blocks; // of ATTEND_BLOCK positions that make up the context

  // [CHUNK] rows each
  float *x;         // [hidden_row] the residual stream
  float *query;     // [query_row] the queries of all heads, then what attention makes of them
  float *h;         // [wide_row] the input of the next product
  int8_t *q;        // [q_row] h in int8, rows packed as the product's k
  float *s;         // its scale: q = h s
  uint8_t *operand; // [operand_row] q as the kernel wants it
  int32_t *y;       // [y_row] the product
  float *cos, *sin; // [head_dim / 2] of the token's position

  uint8_t *work;   // [threads] what a kernel asks for as scratch
  uint8_t *k, *v;  // [layers][kv_heads] caches of k_head and v_head bytes, as ops.h lays them out
  float *partials; // [heads][attend_blocks] partial results of one token's attention
  float *scratch;  // [threads][2 * ATTEND_ROWS] partial results

  // Profile
  int32_t profiling;
  int64_t lap_began; // nanoseconds: the end of the step before
  bg_step_time times[BG_STEPS];

  // Sampling
  float *scores;   // [vocab]
  uint64_t *order; // [vocab]

  void *owned[24];
  int32_t n_owned;
};

#endif
