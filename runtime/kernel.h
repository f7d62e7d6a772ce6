// kernel.h: what generated code and the runtime know of each other.
#ifndef BITGEN_KERNEL_H
#define BITGEN_KERNEL_H

#include <stddef.h>
#include <stdint.h>

// One generated kernel: y = W q in exact integers.
//
// `pack_activations` turns n rows of int8 activations q [n][k] into the form the kernel reads (padded, summed, or a
// look-up table); `run` writes rows [p0 * m_pad / panels, p1 * m_pad / panels) of y int32 [n][m_pad], so that
// threads divide panels, with scratch_bytes of its own to work in. Rows m..m_pad-1 are padding and are written
// as 0. A kernel with an n_tile works best on multiples of so many tokens, and on no fewer than m_tile rows.
//
// A kernel with groups has the scales of its weights in its matrix, takes rows of q that go on with
// the float steps [k / group] of the activations, and gives floats: y = W x, every operation
// defined (shared/group_products.c.j2). `unpack_row` gives a row of its matrix: scale times code, exactly.
typedef struct {
  const char *symbol;
  int32_t m, k, m_pad;
  int32_t group; // columns that share a scale in each row; 0: the matrix is codes, and y sums
  int32_t panels;
  int32_t max_n;        // 1 for gemv, INT32_MAX for gemm
  size_t weight_bytes;  // of the packed matrix, a multiple of 64
  size_t operand_bytes; // of one token's packed activations, a multiple of 64
  void (*pack_activations)(const int8_t *q, int32_t n, uint8_t *operand);
  int32_t m_tile;       // with an n_tile: threads with fewer rows should divide tokens
  int32_t n_tile;       // 0: threads should divide rows, not tokens
  size_t scratch_bytes; // 64-byte aligned, of each thread
  void (*run)(const uint8_t *w, const uint8_t *operand, int32_t n, int32_t *y, int32_t p0, int32_t p1,
              void *scratch);
  void (*unpack_row)(const uint8_t *w, int32_t row, float *out); // out [k]; NULL without groups
} bg_kernel;

// The matrices of a layer. q, k and v are one matrix, and so are gate and up, unless each has an
// input of its own. A layer with Gated DeltaNet has DELTA_IN and DELTA_OUT where others have QKV and O. Then the
// head, where embedding or head are ternary.
enum {
  BG_QKV,
  BG_O,
  BG_GATE_UP,
  BG_DOWN,
  BG_Q,
  BG_K,
  BG_V,
  BG_GATE,
  BG_UP,
  BG_DELTA_IN,
  BG_DELTA_OUT,
  BG_HEAD,
  BG_ROLES
};

typedef struct bg_ops bg_ops; // the float operations compiled for one ISA: ops.h

// One instruction-set level of a library. The generated registry lists them, best first, NULL at the end.
typedef struct {
  const char *name;                // "avx2"
  int32_t (*probe)(void);          // executes the ISA's instructions; 1 when the answer is right
  int64_t (*peak)(int64_t rounds); // runs the integer dot product at full speed, returns its operations
  const bg_ops *ops;
  const char *layout;              // key of the packed layouts, "" when no model is bound
  const bg_kernel *const *kernels; // [n_kernels]
  int32_t n_kernels;
  const bg_kernel *gemv[BG_ROLES]; // the model's matrices; NULL where not bound
  const bg_kernel *gemm[BG_ROLES];
} bg_isa;

// Bytes of one row of q.
static inline size_t bg_row_bytes(const bg_kernel *k) {
  return (size_t)k->k + (k->group ? (size_t)(k->k / k->group) * sizeof(float) : 0);
}

extern const bg_isa *const bg_isas[]; // defined by the generated registry.c

#endif
