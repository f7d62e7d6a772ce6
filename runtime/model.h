// model.h: a packed model, mapped and checked.
#ifndef BITGEN_MODEL_H
#define BITGEN_MODEL_H

#include <stddef.h>
#include <stdint.h>

#include "bitgen.h"
#include "kernel.h"
#include "ops.h"

// The first 256 bytes of the file. Little-endian; the sections that follow are listed in model.c.
typedef struct {
  char magic[8];         // "BITGENPK"
  uint32_t version;      // 1
  uint32_t header_bytes; // 256
  uint64_t file_bytes;
  int32_t hidden, intermediate, layers, heads, kv_heads, head_dim, vocab, context;
  float rope_theta, norm_eps;
  int32_t activation;       // 0 silu, 1 relu2
  int32_t sub_norms;        // 0, 1
  int32_t rope_interleaved; // 0: pairs (i, i + d/2), 1: (2i, 2i + 1)
  int32_t head;             // HEAD_*
  char layout[160];         // NUL-terminated key of the packed matrices
  uint8_t zero[16];
} bg_header;
_Static_assert(sizeof(bg_header) == 256, "the header as written");

// The last 64 bytes of a file that holds more than a packed model: a tokenizer behind it, a program before it
// (bitgen/standalone.py). Offsets are multiples of 64.
typedef struct {
  char magic[8]; // "BITGENST"
  uint64_t model_offset, model_bytes;
  uint64_t vocabulary_offset, vocabulary_bytes; // tokenizer.h
  uint8_t zero[24];
} bg_trailer;
_Static_assert(sizeof(bg_trailer) == 64, "the trailer as written");

enum { HEAD_TIED_F16, HEAD_F16, HEAD_I8, HEAD_TIED_CERTIFIED, HEAD_CERTIFIED, HEAD_KINDS };
enum { SCALE_Q, SCALE_K, SCALE_V, SCALE_O, SCALE_GATE, SCALE_UP, SCALE_DOWN, SCALES = 8 };

// One transformer layer. p(n) is n rounded up to 16: rows of floats end in zeros.
typedef struct {
  const float *attn_norm;     // [p(hidden)]
  const uint8_t *qkv;         // packed [(heads + 2 kv_heads) head_dim, hidden]
  const float *attn_sub_norm; // [p(heads head_dim)], or NULL
  const uint8_t *o;           // packed [hidden, heads head_dim]
  const float *ffn_norm;      // [p(hidden)]
  const uint8_t *gate_up;     // packed [2 intermediate, hidden]
  const float *ffn_sub_norm;  // [p(intermediate)], or NULL
  const uint8_t *down;        // packed [hidden, intermediate]
  const float *scales;        // [SCALES] of the matrices' parts: W = scale x codes
} bg_layer;

struct bg_model {
  bg_header config;
  const bg_isa *isa;
  const uint16_t *embedding; // float16 [vocab][p(hidden)]
  const float *output_norm;  // [p(hidden)]
  bg_layer *layers;          // [layers]
  const uint16_t *head_f16;  // float16 [vocab][p(hidden)]: the embedding where tied; NULL for int8
  const int8_t *head_i8;     // int8 [vocab][p(hidden)], or NULL
  const float *head_scales;  // [p(vocab)] of the int8 rows
  const float *head_residuals, *head_norms; // [p(vocab)] of a certified head, or NULL: choose.c
  float *rope_frequency;     // [head_dim / 2]
  const uint8_t *map;        // the file
  size_t bytes;
  const uint8_t *packed; // the packed model within it: all of it, unless a trailer says otherwise
  size_t packed_bytes;
  const uint8_t *vocabulary; // or NULL
  size_t vocabulary_bytes;
};

#endif
