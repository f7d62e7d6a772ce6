// tokenizer.h: text to token ids and back, by the vocabulary that bitgen/engine/vocabulary.py wrote.
//
// The ids are those of the Python package `tokenizers`. Two kinds: byte-level BPE, where patterns cut words
// (words.c), and SentencePiece BPE, where all of a text is one word and spaces are spelt U+2581.
#ifndef BITGEN_TOKENIZER_H
#define BITGEN_TOKENIZER_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "utf8.h"

// ---- the vocabulary as written ----------------------------------------------------------------------------

// Elements of each section, and what they are sorted by.
enum {
  STRINGS,     // uint8: the bytes that the others point into
  PIECES,      // span [tokens]: what a token says
  SPELLINGS,   // entry, by spelling: token ids
  SPECIALS,    // entry, by spelling: tokens that are found in a text before it is cut
  BYTES,       // int32 [256]: the token that a word's byte begins as, or -1
  MERGE_FIRST, // uint32 [tokens + 1]: where the merges of a left token start
  MERGES,      // merge, by right token within a left one's
  CLASSES,     // uint32 step, by code point: LETTER | NUMBER | ...
  FOLDS,       // fold: characters that a contraction's letter matches in any case
  STOPS,       // int32: tokens that end a text
  RANKS,       // uint32 step, by code point: order of combining marks; 0: not one
  DECOMPOSED,  // decomposition, by code point
  CODES,       // uint32: the code points that decompositions point into
  COMPOSED,    // composition, by first and second
  SECTIONS
};

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

enum { BYTE_LEVEL = 1, WHOLE_WORDS = 2, NFC = 4, SPACE_PREFIX = 8, ADD_BOS = 16, BYTE_FALLBACK = 32 };
enum { LETTER = 1, NUMBER = 2, PUNCTUATION = 4, SPACE = 8, OTHER = 16 }; // OTHER: no letter, number or space
enum { MAX_SPLITS = 8, MAX_DECOMPOSED = 8, LAST_CODE = 0x10ffff };

// Little-endian; sections lie at multiples of 64 bytes. A step is value << 24 | the code point it starts at.
typedef struct {
  char magic[8]; // "BITGENTK"
  uint32_t version, bytes;
  uint32_t tokens, flags;
  int32_t bos, unknown;       // or -1
  uint8_t splits[MAX_SPLITS]; // patterns applied one after the other, numbered as in words.c; 0 ends them
  struct {
    uint32_t offset, count;
  } sections[SECTIONS];
  uint32_t zero[10];
} vocabulary;
_Static_assert(sizeof(vocabulary) == 192, "the header as written");

// ---- what is made of it -----------------------------------------------------------------------------------

typedef struct {
  const vocabulary *v;
  const uint8_t *strings;
  const span *pieces;
  const entry *spellings, *specials;
  const int32_t *bytes, *stops;
  const uint32_t *merge_first, *classes, *ranks, *codes;
  const merge *merges;
  const fold *folds;
  const decomposition *decomposed;
  const composition *composed;
  uint8_t ascii[128];          // classes of the first characters
  uint8_t begins_special[256]; // whether a special token starts with this byte
} tokenizer;

// Check a vocabulary and point into it; it must outlive the tokenizer, which owns nothing.
// BG_OK or BG_E_FORMAT.
int32_t tokenizer_open(tokenizer *t, const void *blob, size_t bytes);

// The ids of a text, with the begin-of-text token where the model wants it. *ids is the caller's to free.
// Returns their number, BG_E_VALUE when the text is not UTF-8, BG_E_ARGUMENT for 256 MiB of it, BG_E_MEMORY.
int32_t tokenizer_encode(const tokenizer *t, const char *text, size_t bytes, int32_t **ids);

// Whether a model has nothing more to say after this token.
int tokenizer_stops(const tokenizer *t, int32_t id);

// Write what a token says. One that the vocabulary lacks becomes U+FFFD.
void tokenizer_decode(const tokenizer *t, int32_t id, text_stream *stream, FILE *out);

// ---- within the tokenizer ---------------------------------------------------------------------------------

// The value of the last step that starts at or before a code point.
uint32_t step_value(const uint32_t *steps, uint32_t n, uint32_t code);

// words.c: cut a text by the vocabulary's patterns; `take` gets the words in order.
// Stops at the first negative code.
typedef int32_t word_taker(void *arg, const uint8_t *word, size_t bytes);
int32_t split_words(const tokenizer *t, const uint8_t *text, size_t bytes, word_taker *take, void *arg);
enum {
  SPLIT_NONE,
  SPLIT_LLAMA3,
  SPLIT_QWEN2,
  SPLIT_GPT2,
  SPLIT_PUNCTUATION,
  SPLIT_NUMBERS,
  SPLIT_DIGITS,
  SPLITS
};

// nfc.c: Unicode normalisation form C of valid UTF-8. *out is the caller's to free.
// The number of bytes, or BG_E_MEMORY.
int64_t normalize(const tokenizer *t, const uint8_t *text, size_t bytes, uint8_t **out);

#endif
