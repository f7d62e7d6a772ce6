// session.h: the state of one conversation. Every buffer is made when the session opens.
#ifndef BITGEN_SESSION_H
#define BITGEN_SESSION_H

#include "model.h"
#include "pool.h"

enum { CHUNK = 128 };    // most tokens of one pass through the layers
enum { CHOICES = 8 };    // tokens that are chosen in one pass over the output matrix
enum { MOST_KEPT = 320 }; // of the greatest logits; a choice that depends on more takes all

struct bg_session {
  const bg_model *model;
  const bg_ops *ops;
  const bg_attention_ops *attention; // for the cache's type
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

  // Sampling
  float *scores;   // [vocab]
  uint64_t *order; // [vocab]

  // Choosing
  float *choices;    // [CHOICES][vocab] upper ends of logits, then logits
  int16_t *screened; // [CHOICES][hidden_row] hidden states, rounded
  float *heaps;      // [threads][CHOICES][MOST_KEPT] the greatest lower ends
  int64_t rescored;  // rows of the float16 matrix read so far

  void *owned[24];
  int32_t n_owned;
};

// Append n tokens. The last `last` of them, all in the final chunk unless `logits` is given, leave their
// normed states behind, and logits float [last][vocab] where that is not NULL.
int32_t session_append(bg_session *s, const int32_t *tokens, int32_t n, float *logits, int32_t last);
const float *session_state(const bg_session *s, int32_t back); // of the token `back` from the end

// logits [n][vocab] of states x [n][hidden_row]
void output_logits(bg_session *s, const float *x, int32_t n, float *logits);

#endif
