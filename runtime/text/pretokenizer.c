// pretokenizer.c: the regular expressions that cut text into words, spelt out.
//
// A function returns the bytes that its pattern matches at `at`, as a backtracking engine would, or 0. Where
// alternatives stand on lines of their own, the first that matches is taken.
#include "text/pretokenizer.h"

#include "bitgen.h"
#include "text/utf8.h"

static uint32_t class_of(const vocabulary *v, uint32_t code) {
  const uint32_t bits = code < 128 ? v->ascii[code] : step_value(v->classes, count_of(v, CLASSES), code);
  return bits & (LETTER | NUMBER | SPACE) ? bits : bits | OTHER;
}

// The class of the character at `at`, and where the next one is; 0 at the end.
static uint32_t class_at(const vocabulary *v, const uint8_t *at, const uint8_t *end, const uint8_t **next) {
  *next = at;
  return at == end ? 0 : class_of(v, utf8_next(next));
}

// The first character that is of none of some classes, or is of one of `but`.
static const uint8_t *skip_but(const vocabulary *v, const uint8_t *at, const uint8_t *end, uint32_t classes,
                               uint32_t but) {
  const uint8_t *next;
  for (uint32_t class; (class = class_at(v, at, end, &next)) & classes && !(class & but);)
    at = next;
  return at;
}

static const uint8_t *skip(const vocabulary *v, const uint8_t *at, const uint8_t *end, uint32_t classes) {
  return skip_but(v, at, end, classes, 0);
}

static int is_line_end(uint8_t c) { return c == '\r' || c == '\n'; }

// Whether a code point is a letter of a contraction.
static int matches(const vocabulary *v, uint32_t code, uint32_t letter, int any_case) {
  for (uint32_t i = 0; any_case && i < count_of(v, FOLDS); i++)
    if (v->folds[i].code == code && v->folds[i].letter == letter)
      return 1;
  return code == letter;
}

// 's|'t|'re|'ve|'m|'ll|'d
static size_t contraction(const vocabulary *v, const uint8_t *at, const uint8_t *end, int any_case) {
  static const char *const suffixes[] = {"s", "t", "re", "ve", "m", "ll", "d"};
  for (size_t i = 0; *at == '\'' && i < sizeof suffixes / sizeof *suffixes; i++) {
    const uint8_t *p = at + 1;
    const char *s = suffixes[i];
    while (*s && p < end && matches(v, utf8_next(&p), (uint8_t)*s, any_case))
      s++;
    if (!*s)
      return (size_t)(p - at);
  }
  return 0;
}

// \s*[\r\n]+    where `lines`
// \s+(?!\S)
// \s+
static size_t spaces(const vocabulary *v, const uint8_t *at, const uint8_t *end, int lines) {
  const uint8_t *stop = skip(v, at, end, SPACE), *last = stop;
  for (const uint8_t *p = stop; lines && p > at; p--)
    if (is_line_end(p[-1]))
      return (size_t)(p - at);
  if (stop == end || stop == at)
    return (size_t)(stop - at);
  do // a word follows: the last space belongs to it
    last--;
  while ((*last & 0xc0) == 0x80);
  return (size_t)((last > at ? last : stop) - at);
}

// (?i:'s|'t|'re|'ve|'m|'ll|'d)
// [^\r\n\p{L}\p{N}]?[\p{L}marks]+
// \p{N}{1,digits}
// [ ]?[^\s\p{L}marks\p{N}]+[\r\n]*
// spaces
// marks: MARK where they belong to words, or 0. A mark at the start is one, whether it is taken for what may stand
// before the letters or for the first of them.
static size_t modern(const vocabulary *v, const uint8_t *at, const uint8_t *end, int digits, uint32_t marks) {
  const uint8_t *next, *stop, *p;
  const uint32_t first = class_at(v, at, end, &next);
  const size_t contracted = contraction(v, at, end, 1);
  if (contracted)
    return contracted;
  if (!(first & NUMBER) && !is_line_end(*at)) {
    p = first & (LETTER | marks) ? at : next;
    if ((stop = skip(v, p, end, LETTER | marks)) > p)
      return (size_t)(stop - at);
  }
  for (p = at; digits && class_at(v, p, end, &next) & NUMBER; digits--)
    p = next;
  if (p > at)
    return (size_t)(p - at);
  p = *at == ' ' ? at + 1 : at;
  if ((stop = skip_but(v, p, end, OTHER, marks)) > p) {
    while (stop < end && is_line_end(*stop))
      stop++;
    return (size_t)(stop - at);
  }
  return spaces(v, at, end, 1);
}

static size_t llama3(const vocabulary *v, const uint8_t *at, const uint8_t *end) {
  return modern(v, at, end, 3, 0);
}
static size_t qwen2(const vocabulary *v, const uint8_t *at, const uint8_t *end) {
  return modern(v, at, end, 1, 0);
}
static size_t qwen35(const vocabulary *v, const uint8_t *at, const uint8_t *end) {
  return modern(v, at, end, 1, MARK);
}

// 's|'t|'re|'ve|'m|'ll|'d
// [ ]?\p{L}+
// [ ]?\p{N}+
// [ ]?[^\s\p{L}\p{N}]+
// spaces
static size_t gpt2(const vocabulary *v, const uint8_t *at, const uint8_t *end) {
  static const uint32_t kinds[] = {LETTER, NUMBER, OTHER};
  const size_t contracted = contraction(v, at, end, 0);
  if (contracted)
    return contracted;
  const uint8_t *p = *at == ' ' ? at + 1 : at;
  for (int i = 0; i < 3; i++) {
    const uint8_t *stop = skip(v, p, end, kinds[i]);
    if (stop > p)
      return (size_t)(stop - at);
  }
  return spaces(v, at, end, 0);
}

// [\p{P}\$\+<=>\^~\|]+
static size_t punctuation(const vocabulary *v, const uint8_t *at, const uint8_t *end) {
  return (size_t)(skip(v, at, end, PUNCTUATION) - at);
}

// \p{N}+
static size_t numbers(const vocabulary *v, const uint8_t *at, const uint8_t *end) {
  return (size_t)(skip(v, at, end, NUMBER) - at);
}

// [0-9][0-9][0-9]
static size_t three_digits(const vocabulary *v, const uint8_t *at, const uint8_t *end) {
  (void)v;
  size_t n = 0;
  while (n < 3 && at + n < end && '0' <= at[n] && at[n] <= '9')
    n++;
  return n == 3 ? 3 : 0;
}

// \p{N}{1,3}
static size_t few_numbers(const vocabulary *v, const uint8_t *at, const uint8_t *end) {
  const uint8_t *p = at, *next;
  for (int few = 3; few && class_at(v, p, end, &next) & NUMBER; few--)
    p = next;
  return (size_t)(p - at);
}

// [\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+
static size_t cjk(const vocabulary *v, const uint8_t *at, const uint8_t *end) {
  (void)v;
  const uint8_t *p = at;
  for (const uint8_t *next = at; p < end; p = next) {
    const uint32_t code = utf8_next(&next);
    if (!(0x4e00 <= code && code <= 0x9fa5) && !(0x3040 <= code && code <= 0x30ff))
      break;
  }
  return (size_t)(p - at);
}

static int is_ascii_letter(uint8_t c) { return ('a' <= c && c <= 'z') || ('A' <= c && c <= 'Z'); }

// A mark of ASCII, then [A-Za-z]+
// [^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+
// [ ]?[\p{P}\p{S}]+[\r\n]*
// spaces
static size_t hunyuan(const vocabulary *v, const uint8_t *at, const uint8_t *end) {
  const uint8_t *next, *stop, *p = at + 1;
  const uint32_t first = class_at(v, at, end, &next);
  if (*at < 128 && first & SIGN) {
    while (p < end && is_ascii_letter(*p))
      p++;
    if (p > at + 1)
      return (size_t)(p - at);
  }
  p = first & (LETTER | MARK | SIGN) || is_line_end(*at) ? at : next;
  if ((stop = skip(v, p, end, LETTER | MARK)) > p)
    return (size_t)(stop - at);
  p = *at == ' ' ? at + 1 : at;
  if ((stop = skip(v, p, end, SIGN)) > p) {
    while (stop < end && is_line_end(*stop))
      stop++;
    return (size_t)(stop - at);
  }
  return spaces(v, at, end, 1);
}

typedef size_t matcher(const vocabulary *v, const uint8_t *at, const uint8_t *end);
static matcher *const matchers[SPLITS] = {
    [SPLIT_LLAMA3] = llama3,           [SPLIT_QWEN2] = qwen2,     [SPLIT_GPT2] = gpt2,
    [SPLIT_PUNCTUATION] = punctuation, [SPLIT_NUMBERS] = numbers, [SPLIT_DIGITS] = three_digits,
    [SPLIT_FEW_NUMBERS] = few_numbers, [SPLIT_CJK] = cjk,         [SPLIT_HUNYUAN] = hunyuan,
    [SPLIT_QWEN35] = qwen35,
};

// Cut by the first pattern; its matches and what lies between them are cut by the next one, each by itself.
static int32_t split(const vocabulary *v, const uint8_t *patterns, const uint8_t *at, const uint8_t *end,
                     word_function *on_word, void *arg) {
  if (!*patterns)
    return on_word(arg, at, (size_t)(end - at));
  const uint8_t *between = at;
  int32_t code = BG_OK;
  while (at < end && code == BG_OK) {
    const size_t n = matchers[*patterns](v, at, end);
    if (!n) {
      utf8_next(&at);
      continue;
    }
    if (between < at)
      code = split(v, patterns + 1, between, at, on_word, arg);
    if (code == BG_OK)
      code = split(v, patterns + 1, at, at + n, on_word, arg);
    between = at += n;
  }
  return code == BG_OK && between < end ? split(v, patterns + 1, between, end, on_word, arg) : code;
}

int32_t pretokenize(const vocabulary *v, const uint8_t *text, size_t bytes, word_function *on_word,
                    void *arg) {
  return bytes ? split(v, v->header->splits, text, text + bytes, on_word, arg) : BG_OK;
}
