// ops.c: the float operations on rows; compiled once per ISA. See ops.h for the contracts.
#include "simd/ops.h"

#include "simd/vec.h"

extern const bg_attention_ops BG_FOR_ISA(bg_attention_f16), BG_FOR_ISA(bg_attention_f32),
    BG_FOR_ISA(bg_attention_i8);
extern const bg_dense_ops BG_FOR_ISA(bg_dense)[DENSE_TYPES];
extern const bg_head_ops BG_FOR_ISA(bg_head);
extern const bg_delta_ops BG_FOR_ISA(bg_delta);

static void rmsnorm(const float *x, const float *g, int32_t n, float eps, float *y) {
  v16 squares = {0};
  for (int32_t i = 0; i < n; i += LANES)
    squares = v16_fma(v16_load(x + i), v16_load(x + i), squares);
  float inverse = 1.0f / __builtin_sqrtf(v16_sum(squares) / (float)n + eps);
  for (int32_t i = 0; i < n; i += LANES)
    v16_store(y + i, v16_load(g + i) * (v16_load(x + i) * v16_set(inverse)));
}

static void rmsnorm_heads(float *x, int32_t heads, int32_t d, const float *g, float eps) {
  for (int32_t h = 0; h < heads; h++, x += d) {
    v16 squares = {0};
    for (int32_t i = 0; i < d; i += LANES) {
      v16 a = v16_load_part(x + i, d - i);
      squares = v16_fma(a, a, squares);
    }
    float inverse = 1.0f / __builtin_sqrtf(v16_sum(squares) / (float)d + eps);
    for (int32_t i = 0; i < d; i += LANES) {
      v16 a = v16_load_part(x + i, d - i) * v16_set(inverse);
      v16_store_part(x + i, d - i, v16_load(g + i) * a);
    }
  }
}

static float quantise(const float *x, int32_t n, int8_t *q) {
  v16 most = v16_set(1e-5f);
  for (int32_t i = 0; i < n; i += LANES)
    most = v16_max(v16_abs(v16_load(x + i)), most);
  float s = 127.0f / v16_hmax(most);
  for (int32_t i = 0; i < n; i += LANES) {
    v16i r = v16_round(v16_clamp(v16_load(x + i) * v16_set(s), -128.0f, 127.0f));
    v16b b = __builtin_convertvector(r, v16b);
    if (n - i >= LANES)
      memcpy(q + i, &b, sizeof b);
    else
      memcpy(q + i, &b, (size_t)(n - i));
  }
  return s;
}

// What the rows of a product hold: sums that are to be multiplied by f, or the floats of a
// kernel with groups.
typedef enum { SUMS, FLOATS } row_type;

VEC float number(row_type type, const int32_t *y, float f) {
  float a;
  memcpy(&a, y, sizeof a);
  return type == SUMS ? (float)*y * f : a;
}

VEC v16 numbers(row_type type, const int32_t *y, int32_t n, float f) {
  v16i a = v16i_load_part(y, n);
  return type == SUMS ? __builtin_convertvector(a, v16) * v16_set(f) : (v16)a;
}

VEC void dequantise(row_type type, const int32_t *row, int32_t n, float f, float *y) {
  for (int32_t i = 0; i < n; i++)
    y[i] = number(type, row + i, f);
}

VEC void add_dequantised(row_type type, const int32_t *row, int32_t n, float f, float *x) {
  for (int32_t i = 0; i < n; i++)
    x[i] += number(type, row + i, f);
}

VEC void gate(row_type type, v16 (*act)(v16), const int32_t *row, int32_t n, float f, float *x) {
  for (int32_t i = 0; i < n; i += LANES)
    v16_store_part(x + i, n - i, v16_load_part(x + i, n - i) * act(numbers(type, row + i, n - i, f)));
}

VEC v16 relu2(v16 z) {
  z = v16_max(z, v16_set(0));
  return z * z;
}

VEC v16 silu(v16 z) { return v16_silu(z); }

// z (1 + tanh(u)) / 2 with u = sqrt(2 / pi) (z + 0.044715 z^3), which is z / (1 + e^-2u).
VEC v16 gelu(v16 z) {
  v16 minus_2u = z * v16_fma(z * z, v16_set(-0x1.2444f2p-4f), v16_set(-0x1.988454p0f));
  return z / (v16_set(1) + v16_exp(minus_2u));
}

enum { AHEAD = 512 }; // sums that are asked for early: a row of a prefill comes from the outer cache

#define TYPED(type, suffix)                                                                                  \
  static void dequantise_##suffix(const int32_t *row, int32_t n, float f, float *y) {                        \
    dequantise(type, row, n, f, y);                                                                          \
  }                                                                                                          \
  static void add_##suffix(const int32_t *row, int32_t n, float f, float *x) {                               \
    add_dequantised(type, row, n, f, x);                                                                     \
  }                                                                                                          \
  ACTIVATED(relu2, type, suffix)                                                                             \
  ACTIVATED(silu, type, suffix)                                                                              \
  ACTIVATED(gelu, type, suffix)                                                                              \
  static void gate_sigmoid_##suffix(const int32_t *row, int32_t n, float f, float *x) {                      \
    gate(type, v16_sigmoid, row, n, f, x);                                                                   \
  }                                                                                                          \
  static void gate_silu_##suffix(const int32_t *row, int32_t n, float f, float *x) {                         \
    gate(type, v16_silu, row, n, f, x);                                                                      \
  }                                                                                                          \
  static const bg_row_ops of_##suffix = {                                                                    \
      .dequantise = dequantise_##suffix,                                                                     \
      .add_dequantised = add_##suffix,                                                                       \
      .relu2 = relu2_##suffix,                                                                               \
      .silu = silu_##suffix,                                                                                 \
      .gelu = gelu_##suffix,                                                                                 \
      .gate_sigmoid = gate_sigmoid_##suffix,                                                                 \
      .gate_silu = gate_silu_##suffix,                                                                       \
  };
#define ACTIVATED(act, type, suffix)                                                                         \
  static void act##_##suffix(const int32_t *gate, const int32_t *up, int32_t n, float fg, float fu,          \
                             float *y) {                                                                     \
    for (int32_t i = 0; i < n; i += LANES) {                                                                 \
      __builtin_prefetch(gate + i + AHEAD, 0, 2);                                                            \
      __builtin_prefetch(up + i + AHEAD, 0, 2);                                                              \
      v16_store(y + i, act(numbers(type, gate + i, n - i, fg)) * numbers(type, up + i, n - i, fu));          \
    }                                                                                                        \
  }
TYPED(SUMS, sums)
TYPED(FLOATS, floats)

static void rope_halves(float *x, int32_t heads, int32_t d, int32_t n, const float *c, const float *s) {
  for (int32_t h = 0; h < heads; h++, x += d) {
    float *restrict a = x, *restrict b = x + n / 2;
    for (int32_t i = 0; i < n / 2; i++) {
      float ai = a[i], bi = b[i];
      a[i] = ai * c[i] - bi * s[i];
      b[i] = bi * c[i] + ai * s[i];
    }
  }
}

static void rope_pairs(float *x, int32_t heads, int32_t d, int32_t n, const float *c, const float *s) {
  for (int32_t h = 0; h < heads; h++, x += d)
    for (int32_t i = 0; i < n / 2; i++) {
      float a = x[2 * i], b = x[2 * i + 1];
      x[2 * i] = a * c[i] - b * s[i];
      x[2 * i + 1] = b * c[i] + a * s[i];
    }
}

// The butterflies of distances 1, 2, .. within sixteen lanes, below `block`: the sum of a pair goes to its first
// place, the difference to the other.
VEC v16 butterflies_of_lanes(v16 a, int32_t block) {
  const v16i lane = v16i_iota(), sign = v16i_set(INT32_MIN);
#define STEP(distance, ...)                                                                                  \
  if (distance < block)                                                                                      \
    a = __builtin_shufflevector(a, a, __VA_ARGS__) +                                                         \
        (v16)((v16i)a ^ (((lane & v16i_set(distance)) != v16i_set(0)) & sign));
  STEP(1, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14)
  STEP(2, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)
  STEP(4, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11)
  STEP(8, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7)
#undef STEP
  return a;
}

// Those of distances h and 2h, h >= 16, in one pass over a block.
VEC void butterflies(float *x, int32_t block, int32_t h) {
  for (int32_t from = 0; from < block; from += 4 * h)
    for (int32_t i = from; i < from + h; i += LANES) {
      const v16 a = v16_load(x + i), b = v16_load(x + i + h), c = v16_load(x + i + 2 * h),
                d = v16_load(x + i + 3 * h);
      const v16 ab = a + b, cd = c + d, a_b = a - b, c_d = c - d;
      v16_store(x + i, ab + cd);
      v16_store(x + i + h, a_b + c_d);
      v16_store(x + i + 2 * h, ab - cd);
      v16_store(x + i + 3 * h, a_b - c_d);
    }
}

static void hadamard(float *x, const float *s, int32_t n, int32_t block, int inverse) {
  const v16 scale = v16_set(1.0f / __builtin_sqrtf((float)block)); // a power of two
  for (int32_t i = 0; i < n; i += LANES) {
    v16 a = v16_load(x + i) * scale;
    v16_store(x + i, butterflies_of_lanes(s && !inverse ? a * v16_load(s + i) : a, block));
  }
  for (int32_t at = 0; at < n; at += block)
    for (int32_t h = LANES; h < block; h *= 4)
      butterflies(x + at, block, h);
  for (int32_t i = 0; s && inverse && i < n; i += LANES)
    v16_store(x + i, v16_load(x + i) * v16_load(s + i));
}

static float greatest(const float *x, int32_t n) {
  v16 most = v16_set(-__builtin_inff());
  for (int32_t i = 0; i < n; i += LANES) {
    v16 a = v16_set(-__builtin_inff());
    memcpy(&a, x + i, (n - i < LANES ? (size_t)(n - i) : LANES) * sizeof *x);
    most = v16_max(a, most);
  }
  return v16_hmax(most);
}

static void exp_row(const float *x, int32_t n, float top, float temperature, float *p) {
  for (int32_t i = 0; i < n; i += LANES) {
    size_t bytes = (n - i < LANES ? (size_t)(n - i) : LANES) * sizeof *x;
    v16 a = {0};
    memcpy(&a, x + i, bytes);
    a = (a - v16_set(top)) / v16_set(temperature);
    a = v16_select(a >= v16_set(-87), v16_exp(a), v16_set(0));
    memcpy(p + i, &a, bytes);
  }
}

// Four streams side by side, each asked for early: nearer to the memory's limit than one stream.
static uint64_t read(const uint8_t *p, size_t bytes) {
  enum { STREAM = READ_UNIT / 4 };
  v16i seen[4] = {{0}};
  for (const uint8_t *end = p + bytes; p < end; p += READ_UNIT)
    for (size_t i = 0; i < STREAM; i += sizeof(v16i))
      for (int s = 0; s < 4; s++) {
        const uint8_t *at = p + s * STREAM + i;
        __builtin_prefetch(at + READ_UNIT);
        v16i a;
        memcpy(&a, at, sizeof a);
        seen[s] ^= a;
      }
  v16i all = seen[0] ^ seen[1] ^ seen[2] ^ seen[3];
  uint64_t mixed = 0;
  for (int j = 0; j < LANES; j++)
    mixed = mixed * 31 + (uint32_t)all[j];
  return mixed;
}

const bg_ops BG_FOR_ISA(bg_ops) = {
    .rmsnorm = rmsnorm,
    .rmsnorm_heads = rmsnorm_heads,
    .quantise = quantise,
    .sums = &of_sums,
    .floats = &of_floats,
    .rope_halves = rope_halves,
    .rope_pairs = rope_pairs,
    .greatest = greatest,
    .exp_row = exp_row,
    .read = read,
    .attention_f16 = &BG_FOR_ISA(bg_attention_f16),
    .attention_f32 = &BG_FOR_ISA(bg_attention_f32),
    .attention_i8 = &BG_FOR_ISA(bg_attention_i8),
    .dense = BG_FOR_ISA(bg_dense),
    .head = &BG_FOR_ISA(bg_head),
    .delta = &BG_FOR_ISA(bg_delta),
    .hadamard = hadamard,
};
