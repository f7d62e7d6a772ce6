// tokenizer.c: a text becomes ids: special tokens are found, the rest is cut into words, and the parts of a
// word are joined pair by pair, the best-ranked pair first (byte-pair encoding).
#include "tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "bitgen.h"

enum { VERSION = 1, MAX_TEXT = 1 << 28 };

// ---- look-up ----------------------------------------------------------------------------------------------

uint32_t step_value(const uint32_t *steps, uint32_t n, uint32_t code) {
  uint32_t low = 0, high = n; // steps[low] starts at or before, steps[high] behind
  while (high - low > 1) {
    const uint32_t middle = low + (high - low) / 2;
    if ((steps[middle] & 0xffffff) <= code)
      low = middle;
    else
      high = middle;
  }
  return steps[low] >> 24;
}

// The token that is spelt so, or -1.
static int32_t find_token(const tokenizer *t, const uint8_t *spelling, size_t bytes) {
  uint32_t low = 0, high = t->v->sections[SPELLINGS].count;
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    const entry *e = t->spellings + middle;
    const size_t length = e->text.length;
    int order = memcmp(t->strings + e->text.start, spelling, length < bytes ? length : bytes);
    if (!order)
      order = (length > bytes) - (length < bytes);
    if (!order)
      return e->id;
    if (order < 0)
      low = middle + 1;
    else
      high = middle;
  }
  return -1;
}

static const merge *find_merge(const tokenizer *t, int32_t left, int32_t right) {
  uint32_t low = t->merge_first[left], high = t->merge_first[left + 1];
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    if (t->merges[middle].right == (uint32_t)right)
      return t->merges + middle;
    if (t->merges[middle].right < (uint32_t)right)
      low = middle + 1;
    else
      high = middle;
  }
  return NULL;
}

// The longest special token at the beginning of a text, or NULL. The specials that agree with the first `n`
// bytes are neighbours in the sorted table; the shortest of them, if it is no longer than that, comes first.
static const entry *find_special(const tokenizer *t, const uint8_t *text, size_t bytes) {
  const entry *found = NULL;
  uint32_t low = 0, high = t->v->sections[SPECIALS].count;
  for (size_t n = 0; n <= bytes && low < high; n++) {
    if (t->specials[low].text.length == n)
      found = t->specials + low++;
    if (n == bytes)
      break;
    uint32_t ends[2];
    for (int after = 0; after < 2; after++) { // the range whose byte n is the text's
      uint32_t a = low, b = high;
      while (a < b) {
        const uint32_t middle = a + (b - a) / 2;
        const span s = t->specials[middle].text;
        if (s.length <= n || t->strings[s.start + n] < text[n] + after)
          a = middle + 1;
        else
          b = middle;
      }
      ends[after] = a;
    }
    low = ends[0], high = ends[1];
  }
  return found;
}

void tokenizer_decode(const tokenizer *t, int32_t id, text_stream *stream, FILE *out) {
  if (id < 0 || (uint32_t)id >= t->v->tokens)
    text_stream_put(stream, (const uint8_t *)UTF8_REPLACEMENT, 3, out);
  else
    text_stream_put(stream, t->strings + t->pieces[id].start, t->pieces[id].length, out);
}

int tokenizer_stops(const tokenizer *t, int32_t id) {
  for (uint32_t i = 0; i < t->v->sections[STOPS].count; i++)
    if (t->stops[i] == id)
      return 1;
  return 0;
}

// ---- one word ---------------------------------------------------------------------------------------------

typedef struct {
  int32_t id, previous, next; // id -1: joined to the one before
} symbol;

typedef struct {
  uint64_t order; // rank of the merge, then place of its left symbol
  int32_t id;     // what the two become
} candidate;

typedef struct {
  const tokenizer *t;
  int32_t *ids;
  size_t n, room;
  symbol *symbols;
  candidate *heap; // the first is the least
  size_t n_symbols, n_heap, longest;
} encoder;

static int32_t emit(encoder *e, int32_t id) {
  if (e->n == e->room) {
    const size_t room = e->room ? 2 * e->room : 256;
    int32_t *more = realloc(e->ids, room * sizeof *more);
    if (!more)
      return BG_E_MEMORY;
    e->ids = more;
    e->room = room;
  }
  e->ids[e->n++] = id;
  return BG_OK;
}

// Room for a word: no more symbols than bytes, two candidates for each merge besides the first pairs.
static int32_t reserve(encoder *e, size_t bytes) {
  e->n_symbols = e->n_heap = 0;
  if (bytes <= e->longest)
    return BG_OK;
  free(e->symbols);
  free(e->heap);
  e->longest = 0;
  e->symbols = malloc(bytes * sizeof *e->symbols);
  e->heap = malloc(3 * bytes * sizeof *e->heap);
  if (!e->symbols || !e->heap)
    return BG_E_MEMORY;
  e->longest = bytes;
  return BG_OK;
}

static void push(encoder *e, candidate c) {
  size_t at = e->n_heap++;
  for (; at && e->heap[(at - 1) / 2].order > c.order; at = (at - 1) / 2)
    e->heap[at] = e->heap[(at - 1) / 2];
  e->heap[at] = c;
}

static candidate pop(encoder *e) {
  const candidate least = e->heap[0], last = e->heap[--e->n_heap];
  size_t at = 0;
  for (size_t child; (child = 2 * at + 1) < e->n_heap; at = child) {
    child += child + 1 < e->n_heap && e->heap[child + 1].order < e->heap[child].order;
    if (last.order <= e->heap[child].order)
      break;
    e->heap[at] = e->heap[child];
  }
  e->heap[at] = last;
  return least;
}

static void consider(encoder *e, int32_t left) {
  const int32_t right = e->symbols[left].next;
  const merge *m = find_merge(e->t, e->symbols[left].id, e->symbols[right].id);
  if (m)
    push(e, (candidate){(uint64_t)m->rank << 32 | (uint32_t)left, m->id});
}

static void join(encoder *e, int32_t left, int32_t id) {
  symbol *s = e->symbols, *a = s + left, *b = s + a->next;
  a->id = id;
  a->next = b->next;
  b->id = -1;
  if (a->next >= 0)
    s[a->next].previous = left;
  if (a->previous >= 0)
    consider(e, a->previous);
  if (a->next >= 0)
    consider(e, left);
}

// Join the symbols as long as a merge applies; the ids of those left.
static int32_t merge_symbols(encoder *e) {
  symbol *s = e->symbols;
  const int32_t n = (int32_t)e->n_symbols;
  for (int32_t i = 0; i < n; i++)
    s[i].previous = i - 1, s[i].next = i + 1 < n ? i + 1 : -1;
  for (int32_t i = 0; i + 1 < n; i++)
    consider(e, i);
  while (e->n_heap) {
    const candidate c = pop(e);
    const int32_t left = (int32_t)(uint32_t)c.order;
    if (s[left].id < 0 || s[left].next < 0)
      continue;
    const merge *m = find_merge(e->t, s[left].id, s[s[left].next].id);
    if (m && m->id == c.id) // else the pair has changed since
      join(e, left, c.id);
  }
  int32_t code = BG_OK;
  for (int32_t i = 0; i < n && code == BG_OK; i = s[i].next < 0 ? n : s[i].next)
    code = emit(e, s[i].id);
  return code;
}

static void add_symbol(encoder *e, int32_t id) { e->symbols[e->n_symbols++].id = id; }

// A word of a byte-level vocabulary. Bytes that are no token are dropped.
static int32_t encode_bytes(void *arg, const uint8_t *word, size_t bytes) {
  encoder *e = arg;
  const int32_t whole = e->t->v->flags & WHOLE_WORDS ? find_token(e->t, word, bytes) : -1;
  if (whole >= 0)
    return emit(e, whole);
  if (reserve(e, bytes) != BG_OK)
    return BG_E_MEMORY;
  for (size_t i = 0; i < bytes; i++)
    if (e->t->bytes[word[i]] >= 0)
      add_symbol(e, e->t->bytes[word[i]]);
  return merge_symbols(e);
}

static int all_bytes_are_tokens(const tokenizer *t, const uint8_t *bytes, size_t n) {
  while (n && t->bytes[bytes[n - 1]] >= 0)
    n--;
  return n == 0;
}

// A SentencePiece text. A character that is no token becomes its bytes, if those are; else unknown, one for
// many in a row.
// (`tokenizers` puts an unknown before the next known character: behind bytes that come between.)
static int32_t encode_characters(encoder *e, const uint8_t *text, size_t bytes) {
  const tokenizer *t = e->t;
  const uint8_t *end = text + bytes, *next = text;
  int pending = 0;
  if (reserve(e, bytes) != BG_OK)
    return BG_E_MEMORY;
  for (const uint8_t *p = text; p < end; p = next) {
    utf8_next(&next);
    const size_t length = (size_t)(next - p);
    const int32_t id = find_token(t, p, length);
    if (id >= 0) {
      if (pending)
        add_symbol(e, t->v->unknown);
      pending = 0;
      add_symbol(e, id);
    } else if (t->v->flags & BYTE_FALLBACK && all_bytes_are_tokens(t, p, length)) {
      for (size_t i = 0; i < length; i++)
        add_symbol(e, t->bytes[p[i]]);
    } else if (t->v->unknown >= 0) {
      pending = 1;
    }
  }
  if (pending)
    add_symbol(e, t->v->unknown);
  return merge_symbols(e);
}

// ---- a text -----------------------------------------------------------------------------------------------

static int32_t encode_spaced(encoder *e, const uint8_t *text, size_t bytes) {
  static const uint8_t space[] = {0xe2, 0x96, 0x81}; // U+2581
  uint8_t *spelt = malloc(3 * bytes + 3);
  size_t n = 0;
  if (!spelt)
    return BG_E_MEMORY;
  if (e->t->v->flags & SPACE_PREFIX)
    memcpy(spelt, space, n = 3);
  for (size_t i = 0; i < bytes; i++)
    if (text[i] == ' ') {
      memcpy(spelt + n, space, 3);
      n += 3;
    } else {
      spelt[n++] = text[i];
    }
  const int32_t code = encode_characters(e, spelt, n);
  free(spelt);
  return code;
}

static int is_below_u0300(const uint8_t *text, size_t bytes) { // which form C leaves alone
  while (bytes && text[bytes - 1] < 0xcc)
    bytes--;
  return bytes == 0;
}

static int32_t encode_words(encoder *e, const uint8_t *text, size_t bytes) {
  if (!(e->t->v->flags & NFC) || is_below_u0300(text, bytes))
    return split_words(e->t, text, bytes, encode_bytes, e);
  uint8_t *normal = NULL;
  const int64_t n = normalize(e->t, text, bytes, &normal);
  const int32_t code = n < 0 ? (int32_t)n : split_words(e->t, normal, (size_t)n, encode_bytes, e);
  free(normal);
  return code;
}

// Text without special tokens.
static int32_t encode_plain(encoder *e, const uint8_t *text, size_t bytes) {
  if (!bytes)
    return BG_OK;
  return (e->t->v->flags & BYTE_LEVEL ? encode_words : encode_spaced)(e, text, bytes);
}

static int32_t encode_text(encoder *e, const uint8_t *text, size_t bytes) {
  const uint8_t *plain = text, *at = text, *end = text + bytes;
  int32_t code = BG_OK;
  while (at < end && code == BG_OK) {
    const entry *special = e->t->begins_special[*at] ? find_special(e->t, at, (size_t)(end - at)) : NULL;
    if (!special) {
      at++;
      continue;
    }
    code = encode_plain(e, plain, (size_t)(at - plain));
    if (code == BG_OK)
      code = emit(e, special->id);
    plain = at += special->text.length;
  }
  return code == BG_OK ? encode_plain(e, plain, (size_t)(end - plain)) : code;
}

int32_t tokenizer_encode(const tokenizer *t, const char *text, size_t bytes, int32_t **ids) {
  encoder e = {.t = t};
  const uint8_t *bytes_ = (const uint8_t *)text;
  const int32_t bos = t->v->flags & ADD_BOS ? t->v->bos : -1;
  int32_t code = bytes >= MAX_TEXT ? BG_E_ARGUMENT : !utf8_valid(bytes_, bytes) ? BG_E_VALUE : BG_OK;
  if (code == BG_OK && bos >= 0)
    code = emit(&e, bos);
  if (code == BG_OK)
    code = encode_text(&e, bytes_, bytes);
  if (bos >= 0 && e.n > 1 && e.ids[1] == bos) // the text has one itself
    memmove(e.ids, e.ids + 1, --e.n * sizeof *e.ids);
  free(e.symbols);
  free(e.heap);
  if (code != BG_OK) {
    free(e.ids);
    e.ids = NULL;
  }
  *ids = e.ids;
  return code == BG_OK ? (int32_t)e.n : code;
}

// ---- opening ----------------------------------------------------------------------------------------------

static const uint32_t element_bytes[SECTIONS] = {
    [STRINGS] = 1,
    [PIECES] = sizeof(span),
    [SPELLINGS] = sizeof(entry),
    [SPECIALS] = sizeof(entry),
    [BYTES] = 4,
    [MERGE_FIRST] = 4,
    [MERGES] = sizeof(merge),
    [CLASSES] = 4,
    [FOLDS] = sizeof(fold),
    [STOPS] = 4,
    [RANKS] = 4,
    [DECOMPOSED] = sizeof(decomposition),
    [CODES] = 4,
    [COMPOSED] = sizeof(composition),
};

static int header_is_sane(const vocabulary *v, size_t bytes) {
  if (memcmp(v->magic, "BITGENTK", 8) != 0 || v->version != VERSION || v->bytes != bytes || v->tokens < 1 ||
      v->tokens > INT32_MAX - 1 || v->bos < -1 || v->bos >= (int32_t)v->tokens || v->unknown < -1 ||
      v->unknown >= (int32_t)v->tokens || v->splits[MAX_SPLITS - 1])
    return 0;
  for (int i = 0; i < MAX_SPLITS; i++)
    if (v->splits[i] >= SPLITS)
      return 0;
  for (int i = 0; i < SECTIONS; i++) {
    const uint64_t size = (uint64_t)v->sections[i].count * element_bytes[i];
    if (v->sections[i].offset % 64 || v->sections[i].offset + size > bytes)
      return 0;
  }
  return v->sections[PIECES].count == v->tokens && v->sections[BYTES].count == 256 &&
         v->sections[MERGE_FIRST].count == v->tokens + 1;
}

static int inside(const tokenizer *t, span s) {
  return (uint64_t)s.start + s.length <= t->v->sections[STRINGS].count;
}

static int entries_are_sane(const tokenizer *t, const entry *entries, uint32_t n) {
  for (uint32_t i = 0; i < n; i++)
    if (!inside(t, entries[i].text) || !entries[i].text.length || (uint32_t)entries[i].id >= t->v->tokens)
      return 0;
  return 1;
}

static int ids_are_sane(const tokenizer *t, const int32_t *ids, uint32_t n) {
  for (uint32_t i = 0; i < n; i++)
    if (ids[i] < -1 || ids[i] >= (int32_t)t->v->tokens)
      return 0;
  return 1;
}

static int merges_are_sane(const tokenizer *t) {
  const uint32_t n = t->v->sections[MERGES].count;
  for (uint32_t i = 0; i < t->v->tokens; i++)
    if (t->merge_first[i] > t->merge_first[i + 1])
      return 0;
  for (uint32_t i = 0; i < n; i++)
    if ((uint32_t)t->merges[i].id >= t->v->tokens)
      return 0;
  return t->merge_first[t->v->tokens] <= n;
}

static int steps_are_sane(const uint32_t *steps, uint32_t n) {
  for (uint32_t i = 1; i < n; i++)
    if ((steps[i - 1] & 0xffffff) >= (steps[i] & 0xffffff))
      return 0;
  return n && (steps[0] & 0xffffff) == 0;
}

static int decompositions_are_sane(const tokenizer *t) {
  const uint32_t codes = t->v->sections[CODES].count;
  for (uint32_t i = 0; i < t->v->sections[DECOMPOSED].count; i++) {
    const decomposition *d = t->decomposed + i;
    if (d->length > MAX_DECOMPOSED || (uint64_t)d->start + d->length > codes)
      return 0;
  }
  for (uint32_t i = 0; i < codes; i++)
    if (t->codes[i] > LAST_CODE)
      return 0;
  for (uint32_t i = 0; i < t->v->sections[COMPOSED].count; i++)
    if (t->composed[i].code > LAST_CODE)
      return 0;
  return 1;
}

static const void *section(const vocabulary *v, int i) { return (const uint8_t *)v + v->sections[i].offset; }

int32_t tokenizer_open(tokenizer *t, const void *blob, size_t bytes) {
  const vocabulary *v = blob;
  if (!blob || bytes < sizeof *v || !header_is_sane(v, bytes))
    return BG_E_FORMAT;
  *t = (tokenizer){
      .v = v,
      .strings = section(v, STRINGS),
      .pieces = section(v, PIECES),
      .spellings = section(v, SPELLINGS),
      .specials = section(v, SPECIALS),
      .bytes = section(v, BYTES),
      .stops = section(v, STOPS),
      .merge_first = section(v, MERGE_FIRST),
      .classes = section(v, CLASSES),
      .ranks = section(v, RANKS),
      .codes = section(v, CODES),
      .merges = section(v, MERGES),
      .folds = section(v, FOLDS),
      .decomposed = section(v, DECOMPOSED),
      .composed = section(v, COMPOSED),
  };
  for (uint32_t i = 0; i < v->tokens; i++)
    if (!inside(t, t->pieces[i]))
      return BG_E_FORMAT;
  if (!entries_are_sane(t, t->spellings, v->sections[SPELLINGS].count) ||
      !entries_are_sane(t, t->specials, v->sections[SPECIALS].count) || !ids_are_sane(t, t->bytes, 256) ||
      !ids_are_sane(t, t->stops, v->sections[STOPS].count) || !merges_are_sane(t) ||
      !steps_are_sane(t->classes, v->sections[CLASSES].count) ||
      !steps_are_sane(t->ranks, v->sections[RANKS].count) || !decompositions_are_sane(t))
    return BG_E_FORMAT;
  for (uint32_t i = 0; i < 128; i++)
    t->ascii[i] = (uint8_t)step_value(t->classes, v->sections[CLASSES].count, i);
  for (uint32_t i = 0; i < v->sections[SPECIALS].count; i++)
    t->begins_special[t->strings[t->specials[i].text.start]] = 1;
  return BG_OK;
}
