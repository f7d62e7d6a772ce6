// rope.h: the angles of rotary positions, in plain double arithmetic: no two mathematics libraries agree on
// pow, sin and cos to the last bit, and logits must not depend on the host. Errors are below 1e-14, so the
// floats are the correctly rounded ones but in the rarest of cases, and always the same everywhere.
#ifndef BITGEN_ROPE_H
#define BITGEN_ROPE_H

#include <stdint.h>
#include <string.h>

// ln a for a finite a >= 1: a = m 2^e with m in [0.7, 1.4], and with z = (m - 1) / (m + 1)
// ln m = 2 artanh z by its series.
static inline double rope_log(double a) {
  int e = 0;
  for (; a > 1.4; a *= 0.5)
    e++;
  double z = (a - 1) / (a + 1), sum = 0;
  for (int n = 27; n > 0; n -= 2)
    sum = sum * (z * z) + 1.0 / n;
  return 2 * z * sum + e * 0x1.62e42fefa39efp-1;
}

// e^-a for a in [0, 700]: a = n ln 2 + r, the series of e^-r, and 2^-n.
static inline double rope_exp_minus(double a) {
  int64_t n = (int64_t)(a * 0x1.71547652b82fep0 + 0.5);
  double r = (double)n * 0x1.62e42fefa39efp-1 - a, sum = 1;
  for (int k = 16; k > 0; k--)
    sum = 1 + sum * r / k;
  uint64_t bits = (uint64_t)(1023 - n) << 52;
  double power;
  memcpy(&power, &bits, sizeof power);
  return sum * power;
}

// theta^(-2i / d) for theta >= 1, rounded to float as the reference model keeps it.
static inline float rope_frequency(float theta, int32_t i, int32_t d) {
  return (float)rope_exp_minus(rope_log((double)theta) * 2 * i / d);
}

// cos and sin of 0 <= angle < 2^24: angle = n pi / 2 + r with pi / 2 in three parts, the first two of 29
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
