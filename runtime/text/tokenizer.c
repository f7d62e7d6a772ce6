// tokenizer.c: byte-pair encoding. Special tokens are found in a text, the rest is cut into words, and the
// symbols of a word are merged pair by pair, the pair of the lowest rank first.
#include "text/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "algorithms/search.h"
#include "bitgen.h"
#include "text/nfc.h"
#include "text/pretokenizer.h"

enum { MAX_TEXT = 1 << 28, MAX_WORDS = 1 << 30 }; // bytes; with spaces spelt, or normalised

// ---- one word ---------------------------------------------------------------------------------------------

typedef struct {
  int32_t id;             // -1: merged into the one before
  int32_t previous, next; // symbols of the word, or -1
} symbol;

typedef struct {
  uint64_t order; // rank of the merge << 32 | its left symbol
  int32_t id;     // what the pair becomes
} candidate;

#define HEAP_OF candidate
#define HEAP_ABOVE(a, b) ((a).order < (b).order)
#include "algorithms/heap.h"

typedef struct {
  const vocabulary *v;
  int32_t *ids; // [room]: the n of the text so far
  size_t n, room;
  symbol *symbols; // [longest]: the word's
  candidate *heap; // [3 longest]: merges that may apply, the lowest order first
  size_t n_symbols, n_heap, longest;
} encoder;

static int32_t append(encoder *e, int32_t id) {
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

// Make room for a word: at most a symbol for each byte, and two candidates for each merge besides the first
// pairs.
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

// What two tokens become, or NULL.
static const merge *find_merge(const vocabulary *v, int32_t left, int32_t right) {
  const uint32_t *first = v->merge_first + left;
  const merge *m = v->merges;
  uint32_t i;
  return SEARCH(i, first[0], first[1], (int64_t)m[i].right - right) ? m + i : NULL;
}

static void queue_pair(encoder *e, int32_t left) {
  const int32_t right = e->symbols[left].next;
  const merge *m = find_merge(e->v, e->symbols[left].id, e->symbols[right].id);
  if (m)
    heap_rise(e->heap, e->n_heap++, (candidate){(uint64_t)m->rank << 32 | (uint32_t)left, m->id});
}

static void apply(encoder *e, int32_t left, int32_t id) {
  symbol *s = e->symbols, *a = s + left, *b = s + a->next;
  a->id = id;
  a->next = b->next;
  b->id = -1;
  if (a->next >= 0)
    s[a->next].previous = left;
  if (a->previous >= 0)
    queue_pair(e, a->previous);
  if (a->next >= 0)
    queue_pair(e, left);
}

// Merge the word's symbols as long as a pair has a merge, and append the ids of those left.
static int32_t merge_symbols(encoder *e) {
  symbol *s = e->symbols;
  const int32_t n = (int32_t)e->n_symbols;
  for (int32_t i = 0; i < n; i++)
    s[i].previous = i - 1, s[i].next = i + 1 < n ? i + 1 : -1;
  for (int32_t i = 0; i + 1 < n; i++)
    queue_pair(e, i);
  while (e->n_heap) {
    const candidate c = e->heap[0];
    e->n_heap--;
    heap_sink(e->heap, e->n_heap, 0, e->heap[e->n_heap]);
    const int32_t left = (int32_t)(uint32_t)c.order;
    if (s[left].id < 0 || s[left].next < 0)
      continue;
    const merge *m = find_merge(e->v, s[left].id, s[s[left].next].id);
    if (m && m->id == c.id) // else the pair has changed since
      apply(e, left, c.id);
  }
  int32_t code = BG_OK;
  for (int32_t i = 0; i < n && code == BG_OK; i = s[i].next < 0 ? n : s[i].next)
    code = append(e, s[i].id);
  return code;
}

static void add_symbol(encoder *e, int32_t id) { e->symbols[e->n_symbols++].id = id; }

// Encode a word of a byte-level vocabulary. Bytes that are no token are dropped.
static int32_t encode_word(void *arg, const uint8_t *word, size_t bytes) {
  encoder *e = arg;
  const int32_t whole = e->v->header->flags & WHOLE_WORDS ? find_token(e->v, word, bytes) : -1;
  if (whole >= 0)
    return append(e, whole);
  if (reserve(e, bytes) != BG_OK)
    return BG_E_MEMORY;
  for (size_t i = 0; i < bytes; i++)
    if (e->v->bytes[word[i]] >= 0)
      add_symbol(e, e->v->bytes[word[i]]);
  return merge_symbols(e);
}

static int all_bytes_are_tokens(const vocabulary *v, const uint8_t *bytes, size_t n) {
  while (n && v->bytes[bytes[n - 1]] >= 0)
    n--;
  return n == 0;
}

// Encode a SentencePiece text as one word. A character that is no token becomes its bytes where those are
// tokens; other characters become one unknown token for all in a row. `tokenizers` puts that before the next
// known character, which is behind the bytes of others that come between.
static int32_t encode_whole(encoder *e, const uint8_t *text, size_t bytes) {
  const vocabulary *v = e->v;
  const uint8_t *end = text + bytes, *next = text;
  int pending = 0;
  if (reserve(e, bytes) != BG_OK)
    return BG_E_MEMORY;
  for (const uint8_t *p = text; p < end; p = next) {
    utf8_next(&next);
    const size_t length = (size_t)(next - p);
    const int32_t id = find_token(v, p, length);
    if (id >= 0) {
      if (pending)
        add_symbol(e, v->header->unknown);
      pending = 0;
      add_symbol(e, id);
    } else if (v->header->flags & BYTE_FALLBACK && all_bytes_are_tokens(v, p, length)) {
      for (size_t i = 0; i < length; i++)
        add_symbol(e, v->bytes[p[i]]);
    } else if (v->header->unknown >= 0) {
      pending = 1;
    }
  }
  if (pending)
    add_symbol(e, v->header->unknown);
  return merge_symbols(e);
}

// ---- a text -----------------------------------------------------------------------------------------------

// Spell spaces U+2581.
static int32_t encode_sentencepiece(encoder *e, const uint8_t *text, size_t bytes) {
  static const uint8_t space[] = {0xe2, 0x96, 0x81}; // U+2581
  uint8_t *spelt = malloc(3 * bytes + 3);
  size_t n = 0;
  if (!spelt)
    return BG_E_MEMORY;
  if (e->v->header->flags & SPACE_PREFIX)
    memcpy(spelt, space, n = 3);
  for (size_t i = 0; i < bytes; i++)
    if (text[i] == ' ') {
      memcpy(spelt + n, space, 3);
      n += 3;
    } else {
      spelt[n++] = text[i];
    }
  const int32_t code = encode_whole(e, spelt, n);
  free(spelt);
  return code;
}

static int32_t encode_byte_level(encoder *e, const uint8_t *text, size_t bytes) {
  if (!(e->v->header->flags & NFC) || nfc_is_normal(text, bytes))
    return pretokenize(e->v, text, bytes, encode_word, e);
  uint8_t *normal = NULL;
  const int64_t n = nfc_normalize(e->v, text, bytes, &normal);
  const int32_t code = n < 0            ? (int32_t)n
                       : n >= MAX_WORDS ? BG_E_ARGUMENT
                                        : pretokenize(e->v, normal, (size_t)n, encode_word, e);
  free(normal);
  return code;
}

// Encode text without special tokens.
static int32_t encode_plain(encoder *e, const uint8_t *text, size_t bytes) {
  if (!bytes)
    return BG_OK;
  return (e->v->header->flags & BYTE_LEVEL ? encode_byte_level : encode_sentencepiece)(e, text, bytes);
}

static int32_t encode_text(encoder *e, const uint8_t *text, size_t bytes) {
  const uint8_t *plain = text, *at = text, *end = text + bytes;
  int32_t code = BG_OK;
  while (at < end && code == BG_OK) {
    const entry *special = e->v->begins_special[*at] ? find_special(e->v, at, (size_t)(end - at)) : NULL;
    if (!special) {
      at++;
      continue;
    }
    code = encode_plain(e, plain, (size_t)(at - plain));
    if (code == BG_OK)
      code = append(e, special->id);
    plain = at += special->text.length;
  }
  return code == BG_OK ? encode_plain(e, plain, (size_t)(end - plain)) : code;
}

int32_t tokenizer_encode(const vocabulary *v, const char *text, size_t bytes, int32_t **ids) {
  encoder e = {.v = v};
  const uint8_t *bytes_ = (const uint8_t *)text;
  const int32_t bos = v->header->flags & ADD_BOS ? v->header->bos : -1;
  int32_t code = bytes >= MAX_TEXT ? BG_E_ARGUMENT : !utf8_valid(bytes_, bytes) ? BG_E_VALUE : BG_OK;
  if (code == BG_OK && bos >= 0)
    code = append(&e, bos);
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

// ---- ids to text ------------------------------------------------------------------------------------------

void tokenizer_decode(const vocabulary *v, int32_t id, text_stream *stream, FILE *out) {
  if (id < 0 || (uint32_t)id >= v->header->tokens)
    text_stream_put(stream, (const uint8_t *)UTF8_REPLACEMENT, 3, out);
  else
    text_stream_put(stream, v->strings + v->pieces[id].start, v->pieces[id].length, out);
}
