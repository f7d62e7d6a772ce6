// nfc.c: decompose, order the marks, compose.
#include "text/nfc.h"

#include <stdlib.h>
#include <string.h>

#include "algorithms/search.h"
#include "bitgen.h"
#include "text/utf8.h"

// Below the first of these no code point decomposes; below the second none is a mark, or composes with the
// one before it.
enum { FIRST_DECOMPOSED = 0xc0, FIRST_MARK = 0x300 };

// Hangul syllables and their parts: leading consonants, vowels, trailing consonants.
enum { S_BASE = 0xac00, L_BASE = 0x1100, V_BASE = 0x1161, T_BASE = 0x11a7 };
enum { L_COUNT = 19, V_COUNT = 21, T_COUNT = 28, S_COUNT = L_COUNT * V_COUNT * T_COUNT };

// A code point, its index in the text above it and its rank on top: marks in order are numbers in order.
typedef uint64_t item;
static item make_item(uint32_t rank, size_t index, uint32_t code) {
  return (item)rank << 56 | (item)index << 21 | code;
}
static uint32_t code_of(item i) { return (uint32_t)i & 0x1fffff; }
static uint32_t rank_of(item i) { return (uint32_t)(i >> 56); }

// ---- one character ----------------------------------------------------------------------------------------

// The order of a combining mark among those behind a letter, or 0.
static uint32_t find_rank(const vocabulary *v, uint32_t code) {
  return code < FIRST_MARK ? 0 : step_value(v->ranks, count_of(v, RANKS), code);
}

static const decomposition *find_decomposition(const vocabulary *v, uint32_t code) {
  const decomposition *d = v->decomposed;
  uint32_t i;
  return SEARCH(i, 0, count_of(v, DECOMPOSED), (int64_t)d[i].code - code) ? d + i : NULL;
}

static size_t decompose_hangul(uint32_t syllable, uint32_t *out) {
  out[0] = L_BASE + syllable / (V_COUNT * T_COUNT);
  out[1] = V_BASE + syllable / T_COUNT % V_COUNT;
  out[2] = T_BASE + syllable % T_COUNT;
  return syllable % T_COUNT ? 3 : 2;
}

// Write the full decomposition of a code point, or itself: 1 .. MAX_DECOMPOSED of them. Their number.
static size_t decompose(const vocabulary *v, uint32_t code, uint32_t *out) {
  out[0] = code;
  if (code < FIRST_DECOMPOSED)
    return 1;
  if (code >= S_BASE && code < S_BASE + S_COUNT)
    return decompose_hangul(code - S_BASE, out);
  const decomposition *d = find_decomposition(v, code);
  if (!d)
    return 1;
  memcpy(out, v->codes + d->start, d->length * sizeof *out);
  return d->length;
}

// The syllable of two parts of Hangul, or 0.
static uint32_t compose_hangul(uint32_t first, uint32_t second) {
  const uint32_t leading = first - L_BASE, vowel = second - V_BASE; // of others: beyond the counts
  if (leading < L_COUNT && vowel < V_COUNT)
    return S_BASE + (leading * V_COUNT + vowel) * T_COUNT;
  const uint32_t syllable = first - S_BASE, trailing = second - T_BASE;
  if (syllable < S_COUNT && syllable % T_COUNT == 0 && trailing > 0 && trailing < T_COUNT)
    return first + trailing;
  return 0;
}

// What two code points compose to, or 0.
static uint32_t compose(const vocabulary *v, uint32_t first, uint32_t second) {
  if (second < FIRST_MARK)
    return 0;
  const uint32_t hangul = compose_hangul(first, second);
  return hangul ? hangul : find_composition(v, first, second);
}

// ---- a text -----------------------------------------------------------------------------------------------

static size_t decompose_all(const vocabulary *v, const uint8_t *text, size_t bytes, item *items) {
  size_t n = 0;
  for (const uint8_t *p = text; p < text + bytes;) {
    uint32_t codes[MAX_DECOMPOSED];
    const size_t parts = decompose(v, utf8_next(&p), codes);
    for (size_t i = 0; i < parts; i++, n++)
      items[n] = make_item(find_rank(v, codes[i]), n, codes[i]);
  }
  return n;
}

static int ascending(const void *a, const void *b) {
  const item x = *(const item *)a, y = *(const item *)b;
  return (x > y) - (x < y);
}

// Sort every run of marks by rank; marks of one rank keep their order.
static void order_marks(item *items, size_t n) {
  for (size_t i = 0, run; i < n; i += run + 1) {
    for (run = 0; i + run < n && rank_of(items[i + run]);)
      run++;
    if (run > 1)
      qsort(items + i, run, sizeof *items, ascending);
  }
}

// Join each mark or letter with the last letter before it, unless something of its rank or a higher one
// stands between. The number of items left.
static size_t compose_all(const vocabulary *v, item *items, size_t n) {
  size_t left = 0, letter = 0;
  uint32_t last = 0; // rank of the mark before
  int open = 0;      // whether there is a letter to join with
  for (size_t i = 0; i < n; i++) {
    const uint32_t rank = rank_of(items[i]);
    if (open && (left == letter + 1 || last < rank)) {
      const uint32_t joined = compose(v, code_of(items[letter]), code_of(items[i]));
      if (joined) {
        items[letter] = joined;
        continue;
      }
    }
    if (!rank)
      letter = left, open = 1;
    last = rank;
    items[left++] = items[i];
  }
  return left;
}

int nfc_is_normal(const uint8_t *text, size_t bytes) {
  while (bytes && text[bytes - 1] < 0xcc) // the first byte of FIRST_MARK
    bytes--;
  return bytes == 0;
}

int64_t nfc_normalize(const vocabulary *v, const uint8_t *text, size_t bytes, uint8_t **out) {
  size_t room = 0, written = 0;
  uint32_t codes[MAX_DECOMPOSED];
  for (const uint8_t *p = text; p < text + bytes;)
    room += decompose(v, utf8_next(&p), codes);
  item *items = malloc((room + 1) * sizeof *items);
  *out = malloc(4 * room + 1);
  if (!items || !*out) {
    free(items);
    free(*out);
    *out = NULL;
    return BG_E_MEMORY;
  }
  size_t n = decompose_all(v, text, bytes, items);
  order_marks(items, n);
  n = compose_all(v, items, n);
  for (size_t i = 0; i < n; i++)
    written += utf8_put(code_of(items[i]), *out + written);
  free(items);
  return (int64_t)written;
}
