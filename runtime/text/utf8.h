// utf8.h: code points as bytes, and text that comes in parts.
#ifndef BITGEN_UTF8_H
#define BITGEN_UTF8_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

// Length of the character at p; 0 when the n bytes are the beginning of one; -k when k bytes begin none.
int32_t utf8_length(const uint8_t *p, size_t n);

// Whether n bytes are whole characters.
int utf8_valid(const uint8_t *p, size_t n);

// The code point at *p, which is valid UTF-8; *p moves behind it.
static inline uint32_t utf8_next(const uint8_t **p) {
  const uint8_t *at = *p;
  const int length = at[0] < 0x80 ? 1 : at[0] < 0xe0 ? 2 : at[0] < 0xf0 ? 3 : 4;
  uint32_t code = length == 1 ? at[0] : at[0] & (0x7f >> length);
  for (int i = 1; i < length; i++)
    code = code << 6 | (at[i] & 0x3f);
  *p += length;
  return code;
}

// Write a code point; the number of bytes, 1 to 4.
size_t utf8_put(uint32_t code, uint8_t *out);

// Text that is written as its bytes come: a character waits until it is complete, and what is not UTF-8
// becomes U+FFFD.
typedef struct {
  uint8_t held[4];
  int32_t n;
} text_stream;
void text_stream_put(text_stream *s, const uint8_t *bytes, size_t n, FILE *out);
void text_stream_end(text_stream *s, FILE *out);

#define UTF8_REPLACEMENT "\xef\xbf\xbd" // U+FFFD

#endif
