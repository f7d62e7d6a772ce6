// edits.h: a fuzzer's input as edits of a file that is right, so that few bytes reach what a header guards.
#ifndef BITGEN_EDITS_H
#define BITGEN_EDITS_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  const uint8_t *bytes;
  size_t size;
} file;
extern const file seeds[]; // the right files: seeds.c, which libfuzzer.py writes
extern const uint32_t n_seeds;

// What is left of an input.
typedef struct {
  const uint8_t *at;
  size_t left;
} input;

// The next n <= 4 bytes as a number, little-endian; zeros follow the last.
static inline uint32_t take(input *in, int n) {
  uint32_t number = 0;
  for (int i = 0; i < n && in->left; i++, in->left--)
    number |= (uint32_t)*in->at++ << 8 * i;
  return number;
}

// Where an edit's place, u24, is in a seed.
typedef size_t place_function(const file *seed, uint32_t place);

static inline size_t least(size_t a, size_t b) { return a < b ? a : b; }

// The next n bytes, or as many as are left; their number becomes n.
static inline const uint8_t *take_bytes(input *in, size_t *n) {
  const uint8_t *bytes = in->at;
  *n = least(*n, in->left);
  in->at += *n;
  in->left -= *n;
  return bytes;
}

// Apply edits {u8 kind, u24 at, u8 n, payload} until the input ends. Kinds: n bytes; 16 n bytes of noise; the
// file ends here; likewise, and its header, whose low bytes of the size are at size_at, says so; 4 n bytes from
// another place, u24. The size that it then has.
static inline size_t edit(input *in, const file *seed, place_function *place, uint8_t *to, size_t size_at) {
  size_t size = seed->size;
  while (in->left) {
    const uint32_t kind = take(in, 1) % 5;
    const size_t at = least(place(seed, take(in, 3)), size);
    size_t n = take(in, 1);
    if (kind == 0) {
      const uint8_t *bytes = take_bytes(in, &n);
      memcpy(to + at, bytes, least(n, size - at));
    } else if (kind == 1) {
      uint32_t x = take(in, 1) * 2654435761u + 1;
      for (size_t i = at; i < least(size, at + 16 * n); i++) {
        x = x * 1664525 + 1013904223;
        to[i] = (uint8_t)(x >> 24);
      }
    } else if (kind == 4) {
      const size_t from = least(place(seed, take(in, 3)), size);
      memmove(to + at, to + from, least(4 * n, size - (at > from ? at : from)));
    } else {
      size = at;
      const uint32_t said = (uint32_t)size;
      if (kind == 3 && size >= size_at + sizeof said)
        memcpy(to + size_at, &said, sizeof said);
    }
  }
  return size;
}

// A copy of the seed that the input names, edited, 64-byte aligned, to free(): what lies behind it is poisoned.
static inline uint8_t *edited(input *in, place_function *place, size_t size_at, size_t *size) {
  const file *seed = &seeds[take(in, 1) % n_seeds];
  uint8_t *whole = malloc(seed->size);
  void *exact = NULL;
  memcpy(whole, seed->bytes, seed->size);
  *size = edit(in, seed, place, whole, size_at);
  if (posix_memalign(&exact, 64, *size ? *size : 1) == 0)
    memcpy(exact, whole, *size);
  free(whole);
  return exact;
}

#endif
