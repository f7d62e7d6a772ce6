// vocabulary.h: a tokenizer's tables, used where they lie in the file that bitgen/text/tables.py wrote.
#ifndef BITGEN_VOCABULARY_H
#define BITGEN_VOCABULARY_H

#include <stddef.h>
#include <stdint.h>

// ---- the file ---------------------------------------------------------------------------------------------
//
// Little-endian: the header, then sections at multiples of SECTION_ALIGN bytes.
// bitgen/text/tables.py writes it by what stands between these two lines.
// <cdef>
// Elements of each section, and what they are sorted by.
enum section {
  STRINGS,     // uint8: the bytes that spans point into
  PIECES,      // span [tokens]: what a token says
  SPELLINGS,   // entry, by spelling: tokens that a word may be made of
  SPECIALS,    // entry, by spelling: tokens that are found in a text before it is cut
  BYTES,       // int32 [256]: the token that a word's byte begins as, or -1
  MERGE_FIRST, // uint32 [tokens + 1]: where the merges of a left token start
  MERGES,      // merge, by right token within a left one's
  CLASSES,     // step, by code point: enum character_class, or-ed
  FOLDS,       // fold: characters that a contraction's letter matches in any case
  STOPS,       // int32: tokens that end a text
  RANKS,       // step, by code point: order of combining marks; 0: not one
  DECOMPOSED,  // decomposition, by code point
  CODES,       // uint32: the code points that decompositions point into
  COMPOSED,    // composition, by first and second
  SECTIONS
};

enum flag { BYTE_LEVEL = 1, WHOLE_WORDS = 2, NFC = 4, SPACE_PREFIX = 8, ADD_BOS = 16, BYTE_FALLBACK = 32 };

// OTHER is not in the file: no letter, number or space.
enum character_class {
  LETTER = 1,
  NUMBER = 2,
  PUNCTUATION = 4,
  SPACE = 8,
  OTHER = 16,
  MARK = 32,
  SIGN = 64 // Unicode's punctuation and symbols
};

// Patterns of the pre-tokenizer.
enum split {
  SPLIT_NONE,
  SPLIT_LLAMA3,
  SPLIT_QWEN2,
  SPLIT_GPT2,
  SPLIT_PUNCTUATION,
  SPLIT_NUMBERS,
  SPLIT_DIGITS,
  SPLIT_FEW_NUMBERS,
  SPLIT_CJK,
  SPLIT_HUNYUAN,
  SPLIT_QWEN35,
  SPLITS
};

enum vocabulary_file {
  VOCABULARY_VERSION = 2,
  SECTION_ALIGN = 64,
  MAX_SPLITS = 8,
  MAX_DECOMPOSED = 8, // code points that one decomposes to
  LAST_CODE = 0x10ffff,
  STEP_SHIFT = 24,
};

typedef uint32_t step; // value << STEP_SHIFT | the first code point that has it
typedef struct {
  uint32_t start, length;
} span;
typedef struct {
  span text;
  int32_t id;
} entry;
typedef struct {
  uint32_t right, rank;
  int32_t id; // what left and right become
} merge;
typedef struct {
  uint32_t code, letter;
} fold;
typedef struct {
  uint32_t code, start, length;
} decomposition;
typedef struct {
  uint32_t first, second, code;
} composition;

typedef struct {
  char magic[8]; // "BITGENTK"
  uint32_t version;
  uint32_t bytes; // of the whole file
  uint32_t tokens;
  uint32_t flags;             // enum flag, or-ed
  int32_t bos, unknown;       // token ids, or -1
  uint8_t splits[MAX_SPLITS]; // enum split, applied one after the other; SPLIT_NONE ends them
  struct {
    uint32_t offset, count; // in bytes, in elements
  } sections[SECTIONS];
  uint32_t zero[10];
} vocabulary_header;

// ---- the tables -------------------------------------------------------------------------------------------

// Each pointer has the name of its section and the type of its elements.
typedef struct {
  const vocabulary_header *header;
  const uint8_t *strings;
  const span *pieces;
  const entry *spellings;
  const entry *specials;
  const int32_t *bytes;
  const uint32_t *merge_first;
  const merge *merges;
  const step *classes;
  const fold *folds;
  const int32_t *stops;
  const step *ranks;
  const decomposition *decomposed;
  const uint32_t *codes;
  const composition *composed;
  uint8_t ascii[128];          // classes of the first characters
  uint8_t begins_special[256]; // whether a special token starts with this byte
} vocabulary;
// </cdef>
_Static_assert(sizeof(vocabulary_header) == 192, "the header as written");

// Check a file and point into it; it must outlive the vocabulary, which owns nothing. BG_OK or BG_E_FORMAT.
int32_t vocabulary_open(vocabulary *v, const void *file, size_t bytes);

// The number of elements of a section.
static inline uint32_t count_of(const vocabulary *v, enum section s) { return v->header->sections[s].count; }

// The value of the last of n steps that starts at or before a code point.
uint32_t step_value(const step *steps, uint32_t n, uint32_t code);

// The token with this spelling, or -1.
int32_t find_token(const vocabulary *v, const uint8_t *spelling, size_t bytes);

// The longest special token at the beginning of a text, or NULL.
const entry *find_special(const vocabulary *v, const uint8_t *text, size_t bytes);

// The code point that two compose to, or 0.
uint32_t find_composition(const vocabulary *v, uint32_t first, uint32_t second);

// Whether a token ends a text.
int is_stop(const vocabulary *v, int32_t id);

#endif
