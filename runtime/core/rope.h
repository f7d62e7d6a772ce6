// rope.h: cos and sin of the angles of rotary positions, in plain double arithmetic: no two mathematics libraries
// agree on them to the last bit, and logits must not depend on the host. Errors are below 1e-14, so the floats are
// the correctly rounded ones but in the rarest of cases, and always the same everywhere.
#ifndef BITGEN_ROPE_H
#define BITGEN_ROPE_H

#include <stdint.h>

enum { MAX_ANGLE = 1 << 24 };

// cos and sin of 0 <= angle <= MAX_ANGLE: angle = n pi / 2 + r with pi / 2 in three parts, the first two of 29
// bits, so that their products with n are exact; then the series of sin r and cos r for |r| <= pi / 4.
static inline void rope_cos_sin(float angle, float *c, float *s) {
  int64_t n = (int64_t)((double)angle * 0x1.45f306dc9c883p-1 + 0.5);
  double r = (double)angle - (double)n * 0x1.921fb54p0;
  r = r - (double)n * 0x1.10b4611p-30;
  r = r - (double)n * 0x1.4c4c6628b80dcp-59;
  double sine = 0, cosine = 0, square = r * r;
  for (int k = 18; k > 0; k -= 2)
    cosine = (1 - cosine) * square / ((k - 1) * k);
  for (int k = 19; k > 1; k -= 2)
    sine = (1 - sine) * square / ((k - 1) * k);
  cosine = 1 - cosine;
  sine = r * (1 - sine);
  double turned[4] = {cosine, -sine, -cosine, sine}; // cos(r + n pi / 2); sin is a quarter turn behind
  *c = (float)turned[n & 3];
  *s = (float)turned[(n + 3) & 3];
}

#endif
