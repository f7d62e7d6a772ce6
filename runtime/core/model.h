// model.h: a packed model, mapped and checked.
#ifndef BITGEN_MODEL_H
#define BITGEN_MODEL_H

#include <stddef.h>
#include <stdint.h>

#include "bitgen.h"
#include "kernel.h"
#include "simd/ops.h"

// bitgen/compile/pack.py and standalone.py write files by what stands between these two lines.
// <cdef>
enum bg_packed { PACKED_VERSION = 7, PACKED_HEADER = 512, PACKED_ALIGN = 64 }; // bytes; of sections
enum bg_activation { ACTIVATION_SILU, ACTIVATION_RELU2, ACTIVATION_GELU_TANH };
enum bg_head {
  HEAD_TIED,
  HEAD_OWN,
  HEAD_I8,
  HEAD_TIED_CERTIFIED,
  HEAD_OWN_CERTIFIED,
  HEAD_TIED_TERNARY,
  HEAD_OWN_TERNARY,
  HEAD_KINDS
};
enum bg_embedding { EMBEDDING_TERNARY = 3 }; // beside the types of floats
// Parts of matrices, and where their scales are in a layer's.
enum bg_parts {
  PART_Q, // with attention_gate of each head head_dim rows of query, then as many of gate
  PART_K,
  PART_V,
  PART_O,
  PART_GATE,
  PART_UP,
  PART_DOWN,
  PART_DELTA_QKV, // queries, keys, values of all heads
  PART_DELTA_Z,   // the gates of values
  PART_DELTA_OUT,
  PARTS,
  SCALES = 16
};

// The first 512 bytes of the file. Little-endian; the sections that follow are listed in model.c.
typedef struct {
  char magic[8];         // "BITGENPK"
  uint32_t version;      // PACKED_VERSION
  uint32_t header_bytes; // PACKED_HEADER
  uint64_t file_bytes;
  int32_t hidden, intermediate, layers, heads, kv_heads, head_dim, vocab, context;
  int32_t rope_dims; // elements of a head that RoPE turns, from its first
  float norm_eps;
  int32_t activation;       // ACTIVATION_*
  int32_t sub_norms;        // 0, 1
  int32_t rope_interleaved; // 0: pairs (i, i + rope_dims/2), 1: (2i, 2i + 1)
  int32_t head;             // HEAD_*
  int32_t qk_norm;          // 0, 1: a norm of each head of q and k
  int32_t input_norms;      // 0, 1: every matrix has a norm for its input, and so q, k, v, gate, up are apart
  int32_t post_norms;       // 0, 1: a norm of what attention and FFN add to the residual stream
  int32_t window;           // positions that a token sees, itself included; 0: all
  int32_t window_period;    // with a window, every window_period-th layer is global
  float embedding_scale;    // what embedding rows are multiplied by
  float attention_scale;    // what q k is multiplied by; 0: 1 / sqrt(head_dim)
  float rope_magnitude;     // what cos and sin are multiplied by, but in layers with a window
  int32_t embedding;        // DENSE_*, the type of its rows, or EMBEDDING_TERNARY
  int32_t output;           // DENSE_*, that of the output matrix: the embedding's where tied; 0 where ternary
  char layout[256];         // NUL-terminated key of the packed matrices
  uint8_t checksum[32];     // of all bytes and of some: bitgen/compile/checksum.py makes and checks it
  int32_t qk_norm_after_rope; // 0, 1: the norm of each head of q and k comes after RoPE
  float residual_scale;       // what attention and FFN add to the residual stream is multiplied by it
  float logit_divisor;        // final states are divided by it before the output matrix
  int32_t attention_gate;     // 0, 1: sigmoid(gate) multiplies the context of each query head
  int32_t delta_period; // only every delta_period-th layer attends, others have Gated DeltaNet; 0: all attend
  int32_t delta_key_heads, delta_value_heads; // value head h reads key head h % delta_key_heads
  int32_t delta_key_dim, delta_value_dim;     // elements of a head
  int32_t delta_taps;                         // positions that the convolution spans, the last its own
  int32_t delta_rates;                        // DENSE_*, the type of the rows that give decay and beta
  int32_t hadamard_block;     // columns of a block of the rotation before matrices, a power of four; 0: none
  int32_t hadamard_signed;    // 0, 1: with signs
  int32_t hadamard_regrouped; // 0, 1: DELTA_OUT's input goes by key head first, then by those that read it
  uint8_t zero[48];
} bg_header;

// The last 64 bytes of a file that holds more than a packed model: a tokenizer behind it, a program before it
// (bitgen/compile/standalone.py). Offsets are multiples of 64.
typedef struct {
  char magic[8]; // "BITGENST"
  uint64_t model_offset, model_bytes;
  uint64_t vocabulary_offset, vocabulary_bytes; // vocabulary.h
  float temperature;                            // as of bg_sampling, where nobody says; likewise
  int32_t top_k;
  float top_p, min_p, repeat_penalty;
  int32_t repeat_last;
} bg_trailer;
// </cdef>
_Static_assert(sizeof(bg_header) == PACKED_HEADER && sizeof(bg_trailer) == 64, "the file as written");
_Static_assert((int)EMBEDDING_TERNARY == (int)DENSE_TYPES, "no type of floats");

// The norms that a layer can have, in the order of the file.
enum {
  NORM_ATTENTION, // of x, for q, k and v
  NORM_Q_IN,      // of that, for q alone; likewise
  NORM_K_IN,
  NORM_V_IN,
  NORM_Q, // of each head of q, before RoPE or after it
  NORM_K,
  NORM_DELTA,          // of each value head of Gated DeltaNet
  NORM_O_IN,           // of the heads' contexts: the sub-norm, or o's input norm
  NORM_POST_ATTENTION, // of what o gives
  NORM_FFN,            // of x, for gate and up
  NORM_GATE_IN,
  NORM_UP_IN,
  NORM_DOWN_IN,  // of act(gate) up: the sub-norm, or down's input norm
  NORM_POST_FFN, // of what down gives
  NORMS
};

// The matrices that read the same step's result: one, or the parts of it apart.
enum { STAGES = BG_DOWN + 1 };
enum { LAYER_FUSED, LAYER_APART, LAYER_DELTA, LAYER_KINDS };
typedef struct {
  int32_t n;
  struct {
    int8_t role, norm; // norm: of its own input, or -1
  } matrices[3];
} bg_stage;
extern const bg_stage bg_stages[STAGES][LAYER_KINDS]; // [BG_QKV .. BG_DOWN]

// Where a part of a matrix is: rows `row` and on of the product of `role`.
typedef struct {
  int32_t role, row;
} bg_part;

// What the matrices multiply, by its width.
enum { WIDTH_HIDDEN, WIDTH_CONTEXT, WIDTH_INTERMEDIATE, WIDTH_DELTA, WIDTHS };

// One layer. p(n) is n rounded up to 16: rows of floats end in zeros.
typedef struct {
  int32_t kind;                    // LAYER_*
  int32_t index;                   // among the layers with a KV cache, or among those with a state
  const float *norms[NORMS];       // [p(length)] each, NULL where the model has none
  const uint8_t *packed[BG_ROLES]; // matrices of codes, NULL where the model has none
  const float *scales;             // [SCALES] of the parts: W = scale x codes
  // Of Gated DeltaNet
  const uint8_t *rates;      // [2][p(value_heads)][p(hidden)] rows of floats: decay's, beta's
  const float *convolution;  // [taps][p(channels)], the oldest position first
  const float *decay, *step; // [p(value_heads)] each: decay = exp(decay softplus(. + step))
} bg_layer;

// The rows of Gated DeltaNet. A slice of a state is [key_dim][DELTA_COLUMNS].
typedef struct {
  int32_t layers;                // that have it; 0: none
  int32_t keys, inner, channels; // elements of all keys, of all values; keys twice and values
  int32_t slices;                // of a value head
  size_t slice, state, tail;     // floats of a slice; of a layer's slices; of the inputs that a
                                 // convolution needs of the positions before: [taps - 1][channels]
} bg_delta_sizes;

// A matrix of floats [vocab][p(hidden)].
typedef struct {
  const uint8_t *rows; // or NULL
  int32_t type;        // DENSE_*
} bg_dense;

struct bg_model {
  bg_header config;
  const bg_isa *isa;
  bg_dense embedding;                     // no rows where ternary
  const uint8_t *ternary_embedding;       // packed as kernels of BG_HEAD read it, or NULL
  const float *output_norm;               // [p(hidden)]
  bg_layer *layers;                       // [layers]
  bg_dense output;                        // the embedding where tied; no rows where int8 or ternary
  const uint8_t *ternary_head;            // the ternary embedding where tied, or NULL
  const int8_t *head_i8;                  // int8 [vocab][p(hidden)], or NULL
  const float *head_scales;               // [p(vocab)] of the int8 rows, or of the codes
  const uint8_t *head_upper, *head_lower; // [vocab][..] a certified head's codes (ops.h), or NULL
  const float *head_upper_residuals, *head_residuals, *head_norms; // [p(vocab)] of these: certified_head.c;
                                                                   // norms of a ternary head: ternary_head.c
  bg_part parts[PARTS];
  bg_delta_sizes delta;
  int32_t caches;             // layers that have a KV cache
  const float *signs[WIDTHS]; // [p(width)] of the rotation, or NULL
  float attention_scale;
  const float *rope_frequency[2]; // [rope_dims / 2], of layers that see all and of those with a window
  const uint8_t *map;             // the file
  size_t bytes;
  const uint8_t *packed; // the packed model within it: all of it, unless a trailer says otherwise
  size_t packed_bytes;
  bg_trailer trailer;        // zeros where there is none
  const uint8_t *vocabulary; // or NULL
  size_t vocabulary_bytes;
};

#endif
