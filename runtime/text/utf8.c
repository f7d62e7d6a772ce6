// utf8.c: UTF-8 by table 3-7 of the Unicode Standard.
#include "text/utf8.h"

#include <string.h>

int32_t utf8_length(const uint8_t *p, size_t n) {
  const uint8_t b = p[0];
  const int32_t length = b < 0x80 ? 1 : b < 0xc2 ? 0 : b < 0xe0 ? 2 : b < 0xf0 ? 3 : b < 0xf5 ? 4 : 0;
  if (!length)
    return -1;
  for (int32_t i = 1; i < length; i++) {
    const uint8_t low = i > 1 ? 0x80 : b == 0xe0 ? 0xa0 : b == 0xf0 ? 0x90 : 0x80;
    const uint8_t high = i > 1 ? 0xbf : b == 0xed ? 0x9f : b == 0xf4 ? 0x8f : 0xbf;
    if ((size_t)i == n)
      return 0;
    if (p[i] < low || p[i] > high)
      return -i;
  }
  return length;
}

int utf8_valid(const uint8_t *p, size_t n) {
  for (int32_t length; n; p += length, n -= (size_t)length)
    if ((length = utf8_length(p, n)) <= 0)
      return 0;
  return 1;
}

size_t utf8_put(uint32_t code, uint8_t *out) {
  const int length = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
  for (int i = length - 1; i > 0; i--, code >>= 6)
    out[i] = 0x80 | (code & 0x3f);
  out[0] = (uint8_t)(length == 1 ? code : code | (0xf00u >> length & 0xffu));
  return (size_t)length;
}

void text_stream_put(text_stream *s, const uint8_t *bytes, size_t n, FILE *out) {
  while (n--) {
    int32_t length;
    s->held[s->n++] = *bytes++;
    while (s->n && (length = utf8_length(s->held, (size_t)s->n)) != 0) {
      if (length > 0)
        fwrite(s->held, 1, (size_t)length, out);
      else
        fputs(UTF8_REPLACEMENT, out);
      length = length < 0 ? -length : length;
      s->n -= length;
      memmove(s->held, s->held + length, (size_t)s->n);
    }
  }
}

void text_stream_end(text_stream *s, FILE *out) {
  if (s->n)
    fputs(UTF8_REPLACEMENT, out);
  s->n = 0;
}
