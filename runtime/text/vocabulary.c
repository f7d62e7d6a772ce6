// vocabulary.c: check the tables of a vocabulary, and look things up in them.
#include "text/vocabulary.h"

#include <string.h>

#include "algorithms/search.h"
#include "bitgen.h"
#include "text/utf8.h"

// ---- opening ----------------------------------------------------------------------------------------------

// Where the pointer to a section is in a vocabulary, and the bytes of an element.
#define TABLE(section, field) [section] = {offsetof(vocabulary, field), sizeof *((vocabulary *)0)->field}
static const struct {
  size_t pointer, element;
} tables[SECTIONS] = {
    TABLE(STRINGS, strings),   TABLE(PIECES, pieces),     TABLE(SPELLINGS, spellings),
    TABLE(SPECIALS, specials), TABLE(BYTES, bytes),       TABLE(MERGE_FIRST, merge_first),
    TABLE(MERGES, merges),     TABLE(CLASSES, classes),   TABLE(FOLDS, folds),
    TABLE(STOPS, stops),       TABLE(RANKS, ranks),       TABLE(DECOMPOSED, decomposed),
    TABLE(CODES, codes),       TABLE(COMPOSED, composed),
};

static int is_token(const vocabulary *v, int32_t id) { return id >= 0 && (uint32_t)id < v->header->tokens; }

static int is_token_or_none(const vocabulary *v, int32_t id) { return id == -1 || is_token(v, id); }

static int header_is_valid(const vocabulary *v, size_t bytes) {
  const vocabulary_header *h = v->header;
  if (memcmp(h->magic, "BITGENTK", 8) != 0 || h->version != VOCABULARY_VERSION || h->bytes != bytes ||
      h->tokens < 1 || h->tokens > INT32_MAX - 1 || h->flags >= 2 * BYTE_FALLBACK ||
      !is_token_or_none(v, h->bos) || !is_token_or_none(v, h->unknown) ||
      h->splits[MAX_SPLITS - 1] != SPLIT_NONE)
    return 0;
  for (int i = 0; i < MAX_SPLITS; i++)
    if (h->splits[i] >= SPLITS)
      return 0;
  for (int i = 0; i < SECTIONS; i++) {
    const uint64_t size = (uint64_t)h->sections[i].count * tables[i].element;
    if (h->sections[i].offset % SECTION_ALIGN || h->sections[i].offset + size > bytes)
      return 0;
  }
  return count_of(v, PIECES) == h->tokens && count_of(v, BYTES) == 256 &&
         count_of(v, MERGE_FIRST) == h->tokens + 1;
}

static int is_inside(const vocabulary *v, span s) {
  return (uint64_t)s.start + s.length <= count_of(v, STRINGS);
}

static int pieces_are_valid(const vocabulary *v) {
  for (uint32_t i = 0; i < v->header->tokens; i++)
    if (!is_inside(v, v->pieces[i]))
      return 0;
  return 1;
}

static int64_t compare_text(const vocabulary *v, span s, const uint8_t *text, size_t bytes) {
  const int order = memcmp(v->strings + s.start, text, s.length < bytes ? s.length : bytes);
  return order ? order : (int64_t)s.length - (int64_t)bytes;
}

static int entries_are_valid(const vocabulary *v, const entry *entries, uint32_t n) {
  for (uint32_t i = 0; i < n; i++) {
    const span text = entries[i].text;
    if (!is_inside(v, text) || !text.length || !is_token(v, entries[i].id) ||
        (i && compare_text(v, entries[i - 1].text, v->strings + text.start, text.length) > 0))
      return 0;
  }
  return 1;
}

// A text is cut at special tokens, and what lies between them must be whole characters.
static int specials_are_text(const vocabulary *v) {
  for (uint32_t i = 0; i < count_of(v, SPECIALS); i++)
    if (!utf8_valid(v->strings + v->specials[i].text.start, v->specials[i].text.length))
      return 0;
  return 1;
}

static int ids_are_valid(const vocabulary *v, const int32_t *ids, uint32_t n) {
  for (uint32_t i = 0; i < n; i++)
    if (!is_token_or_none(v, ids[i]))
      return 0;
  return 1;
}

static int merges_are_valid(const vocabulary *v) {
  const uint32_t n = count_of(v, MERGES), tokens = v->header->tokens;
  const merge *m = v->merges;
  for (uint32_t i = 0; i < tokens; i++) {
    const uint32_t first = v->merge_first[i], end = v->merge_first[i + 1];
    if (first > end || end > n)
      return 0;
    for (uint32_t j = first; j < end; j++)
      if (!is_token(v, m[j].id) || (j > first && m[j - 1].right >= m[j].right))
        return 0;
  }
  return 1;
}

static uint32_t start_of(step s) { return s & ((1u << STEP_SHIFT) - 1); }

static int steps_are_valid(const step *steps, uint32_t n) {
  for (uint32_t i = 1; i < n; i++)
    if (start_of(steps[i - 1]) >= start_of(steps[i]))
      return 0;
  return n && start_of(steps[0]) == 0;
}

// Whether UTF-8 spells a code point: it has no surrogates.
static int is_character(uint32_t code) { return code <= LAST_CODE && (code < 0xd800 || code > 0xdfff); }

static int decompositions_are_valid(const vocabulary *v) {
  const decomposition *d = v->decomposed;
  const uint32_t codes = count_of(v, CODES);
  for (uint32_t i = 0; i < count_of(v, DECOMPOSED); i++)
    if (d[i].length < 1 || d[i].length > MAX_DECOMPOSED || (uint64_t)d[i].start + d[i].length > codes ||
        (i && d[i - 1].code >= d[i].code))
      return 0;
  for (uint32_t i = 0; i < codes; i++)
    if (!is_character(v->codes[i]))
      return 0;
  return 1;
}

static int64_t compare_pair(const composition *c, uint32_t first, uint32_t second) {
  return c->first == first ? (int64_t)c->second - second : (int64_t)c->first - first;
}

static int compositions_are_valid(const vocabulary *v) {
  const composition *c = v->composed;
  for (uint32_t i = 0; i < count_of(v, COMPOSED); i++)
    if (!is_character(c[i].code) || (i && compare_pair(c + i - 1, c[i].first, c[i].second) >= 0))
      return 0;
  return 1;
}

int32_t vocabulary_open(vocabulary *v, const void *file, size_t bytes) {
  *v = (vocabulary){.header = file};
  if (!file || bytes < sizeof *v->header || !header_is_valid(v, bytes))
    return BG_E_FORMAT;
  for (int i = 0; i < SECTIONS; i++) {
    const void *table = (const uint8_t *)file + v->header->sections[i].offset;
    memcpy((uint8_t *)v + tables[i].pointer, &table, sizeof table);
  }
  if (!pieces_are_valid(v) || !entries_are_valid(v, v->spellings, count_of(v, SPELLINGS)) ||
      !entries_are_valid(v, v->specials, count_of(v, SPECIALS)) || !specials_are_text(v) ||
      !ids_are_valid(v, v->bytes, count_of(v, BYTES)) || !ids_are_valid(v, v->stops, count_of(v, STOPS)) ||
      !merges_are_valid(v) || !steps_are_valid(v->classes, count_of(v, CLASSES)) ||
      !steps_are_valid(v->ranks, count_of(v, RANKS)) || !decompositions_are_valid(v) ||
      !compositions_are_valid(v))
    return BG_E_FORMAT;
  for (uint32_t code = 0; code < sizeof v->ascii; code++)
    v->ascii[code] = (uint8_t)step_value(v->classes, count_of(v, CLASSES), code);
  for (uint32_t i = 0; i < count_of(v, SPECIALS); i++)
    v->begins_special[v->strings[v->specials[i].text.start]] = 1;
  return BG_OK;
}

// ---- look-up ----------------------------------------------------------------------------------------------

uint32_t step_value(const step *steps, uint32_t n, uint32_t code) {
  uint32_t i;
  SEARCH(i, 0, n, start_of(steps[i]) <= code ? -1 : 1);
  return steps[i - 1] >> STEP_SHIFT; // the first step starts at 0
}

int32_t find_token(const vocabulary *v, const uint8_t *spelling, size_t bytes) {
  const entry *e = v->spellings;
  uint32_t i;
  return SEARCH(i, 0, count_of(v, SPELLINGS), compare_text(v, e[i].text, spelling, bytes)) ? e[i].id : -1;
}

// Byte n of a special token, or -1 behind its end.
static int special_byte(const vocabulary *v, uint32_t i, size_t n) {
  const span s = v->specials[i].text;
  return n < s.length ? v->strings[s.start + n] : -1;
}

// The specials that agree with the first n bytes of the text are neighbours in the sorted table, from i to
// end; the shortest of them, if it is no longer than that, comes first.
const entry *find_special(const vocabulary *v, const uint8_t *text, size_t bytes) {
  const entry *found = NULL;
  uint32_t i = 0, end = count_of(v, SPECIALS);
  for (size_t n = 0; i < end; n++) {
    if (v->specials[i].text.length == n)
      found = v->specials + i++;
    if (n == bytes)
      break;
    uint32_t behind;
    SEARCH(behind, i, end, special_byte(v, behind, n) <= text[n] ? -1 : 1);
    end = behind;
    SEARCH(i, i, end, special_byte(v, i, n) < text[n] ? -1 : 1);
  }
  return found;
}

uint32_t find_composition(const vocabulary *v, uint32_t first, uint32_t second) {
  const composition *c = v->composed;
  uint32_t i;
  return SEARCH(i, 0, count_of(v, COMPOSED), compare_pair(c + i, first, second)) ? c[i].code : 0;
}

int is_stop(const vocabulary *v, int32_t id) {
  for (uint32_t i = 0; i < count_of(v, STOPS); i++)
    if (v->stops[i] == id)
      return 1;
  return 0;
}
