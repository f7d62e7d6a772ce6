// nfc.c: Unicode normalisation form C (UAX 15): decompose, order the marks, compose.
#include "text/nfc.h"

#include <stdlib.h>
#include <string.h>

#include "bitgen.h"
#include "text/utf8.h"

// Hangul syllables and their parts.
enum { S_BASE = 0xac00, L_BASE = 0x1100, V_BASE = 0x1161, T_BASE = 0x11a7 };
enum { L_COUNT = 19, V_COUNT = 21, T_COUNT = 28, S_COUNT = L_COUNT * V_COUNT * T_COUNT };

// A code point with its rank above and its place between: marks in order are numbers in order.
typedef uint64_t item;
static uint32_t code_of(item i) { return (uint32_t)i & 0x1fffff; }
static uint32_t rank_of(item i) { return (uint32_t)(i >> 56); }

static uint32_t rank(const vocabulary *v, uint32_t code) {
  return step_value(v->ranks, count_of(v, RANKS), code);
}

static const decomposition *find_decomposition(const vocabulary *v, uint32_t code) {
  uint32_t low = 0, high = count_of(v, DECOMPOSED);
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    if (v->decomposed[middle].code < code)
      low = middle + 1;
    else
      high = middle;
  }
  return low < count_of(v, DECOMPOSED) && v->decomposed[low].code == code ? v->decomposed + low : NULL;
}

// The code points of one, fully decomposed, into out; their number. out: NULL only to count.
static size_t decompose(const vocabulary *v, uint32_t code, uint32_t *out) {
  uint32_t hangul[3];
  const uint32_t *codes = &code, s = code - S_BASE;
  size_t n = 1;
  const decomposition *found = find_decomposition(v, code);
  if (code >= S_BASE && s < S_COUNT) {
    hangul[0] = L_BASE + s / (V_COUNT * T_COUNT);
    hangul[1] = V_BASE + s / T_COUNT % V_COUNT;
    hangul[2] = T_BASE + s % T_COUNT;
    codes = hangul;
    n = s % T_COUNT ? 3 : 2;
  } else if (found) {
    codes = v->codes + found->start;
    n = found->length;
  }
  if (out)
    memcpy(out, codes, n * sizeof *out);
  return n;
}

// What two code points compose to, or 0.
static uint32_t compose(const vocabulary *v, uint32_t first, uint32_t second) {
  const uint32_t l = first - L_BASE, vowel = second - V_BASE, s = first - S_BASE, tail = second - T_BASE;
  if (first >= L_BASE && l < L_COUNT && second >= V_BASE && vowel < V_COUNT)
    return S_BASE + (l * V_COUNT + vowel) * T_COUNT;
  if (first >= S_BASE && s < S_COUNT && s % T_COUNT == 0 && second > T_BASE && tail < T_COUNT)
    return first + tail;
  uint32_t low = 0, high = count_of(v, COMPOSED);
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    const composition *c = v->composed + middle;
    if (c->first == first && c->second == second)
      return c->code;
    if (c->first < first || (c->first == first && c->second < second))
      low = middle + 1;
    else
      high = middle;
  }
  return 0;
}

static int ascending(const void *a, const void *b) {
  const item x = *(const item *)a, y = *(const item *)b;
  return (x > y) - (x < y);
}

// Sort every run of marks by rank, equals as they stand.
static void order_marks(item *items, size_t n) {
  for (size_t i = 0, run; i < n; i += run + 1) {
    for (run = 0; i + run < n && rank_of(items[i + run]);)
      run++;
    if (run > 1)
      qsort(items + i, run, sizeof *items, ascending);
  }
}

// Join each mark or letter with the last letter before it, unless something of its rank or a higher one
// stands between; the number of items left.
static size_t compose_all(const vocabulary *v, item *items, size_t n) {
  size_t kept = 0, letter = 0;
  uint32_t last = 0; // rank of the mark before
  int open = 0;      // whether there is a letter to join with
  for (size_t i = 0; i < n; i++) {
    const uint32_t r = rank_of(items[i]);
    const uint32_t joined =
        open && (kept == letter + 1 || last < r) ? compose(v, code_of(items[letter]), code_of(items[i])) : 0;
    if (joined) {
      items[letter] = joined;
      continue;
    }
    if (!r)
      letter = kept, open = 1;
    last = r;
    items[kept++] = items[i];
  }
  return kept;
}

int64_t nfc_normalize(const vocabulary *v, const uint8_t *text, size_t bytes, uint8_t **out) {
  const uint8_t *end = text + bytes;
  size_t n = 0, written = 0, room = 0;
  for (const uint8_t *p = text; p < end;)
    room += decompose(v, utf8_next(&p), NULL);
  item *items = malloc((room + 1) * sizeof *items);
  uint8_t *made = malloc(4 * room + 1);
  if (!items || !made) {
    free(items);
    free(made);
    return BG_E_MEMORY;
  }
  for (const uint8_t *p = text; p < end;) {
    uint32_t codes[MAX_DECOMPOSED];
    const size_t some = decompose(v, utf8_next(&p), codes);
    for (size_t i = 0; i < some; i++, n++)
      items[n] = (item)rank(v, codes[i]) << 56 | (item)n << 21 | codes[i];
  }
  order_marks(items, n);
  n = compose_all(v, items, n);
  for (size_t i = 0; i < n; i++)
    written += utf8_put(code_of(items[i]), made + written);
  free(items);
  *out = made;
  return (int64_t)written;
}
