// options.c: --name VALUE, --name=VALUE, -n VALUE and switches.
#include "programs/options.h"

#include <errno.h>
#include <float.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int refuse(option_error *error, const char *what, const char *why) {
  error->what = what;
  snprintf(error->why, sizeof error->why, "%s", why);
  return -1;
}

static int refuse_number(option_error *error, const option *o) {
  char least[40] = "above 0", most[40] = "";
  if (o->least != FLT_MIN)
    snprintf(least, sizeof least, "from %g", o->least);
  if (o->most < FLT_MAX)
    snprintf(most, sizeof most, " to %.10g", o->most);
  snprintf(error->why, sizeof error->why, "must be a %snumber %s%s", o->kind == OPTION_COUNT ? "whole " : "",
           least, most);
  error->what = o->name;
  return -1;
}

// Whether a text has some characters and no others: strtod and strtoull also take spaces, 0x10 and inf.
static int is_of(const char *text, const char *characters) {
  return *text && !text[strspn(text, characters)];
}

static int read_seed(const char *text, option_seed *out) {
  errno = 0;
  *out = (option_seed){strtoull(text, NULL, 10), 1};
  return is_of(text, "0123456789") && errno == 0;
}

static int read_number(const option *o, const char *text, double *out) {
  char *end;
  *out = strtod(text, &end);
  return is_of(text, o->kind == OPTION_COUNT ? "0123456789" : "0123456789.eE+-") && !*end &&
         *out >= o->least && *out <= o->most;
}

int option_set(const option *o, const char *text, option_error *error) {
  switch (o->kind) {
  case OPTION_TEXT:
    *(const char **)o->value = text;
    return 0;
  case OPTION_SEED:
    return read_seed(text, o->value) ? 0
                                     : refuse(error, o->name, "must be a whole number from 0 to 2^64 - 1");
  default:
    return read_number(o, text, o->value) ? 0 : refuse_number(error, o);
  }
}

static int is_named(const option *o, const char *name, size_t n) {
  return n && ((strlen(o->name) == n && memcmp(o->name, name, n) == 0) ||
               (strlen(o->letter) == n && memcmp(o->letter, name, n) == 0));
}

int options_parse(const option *options, int n, int argc, char **argv, option_error *error) {
  uint64_t seen = 0;
  for (int i = 1; i < argc; i++) {
    const char *equals = strncmp(argv[i], "--", 2) == 0 ? strchr(argv[i], '=') : NULL;
    const size_t length = equals ? (size_t)(equals - argv[i]) : strlen(argv[i]);
    const option *o = options, *end = options + n;
    while (o < end && !is_named(o, argv[i], length))
      o++;
    if (o == end)
      return refuse(error, argv[i], "no such option; --help lists them");
    if (o->kind == OPTION_ABSENT)
      return refuse(error, o->name, o->help);
    if (seen >> (o - options) & 1)
      return refuse(error, o->name, "is given more than once");
    seen |= UINT64_C(1) << (o - options);
    if (o->kind == OPTION_SWITCH) {
      if (equals)
        return refuse(error, o->name, "takes no value");
      *(int *)o->value = 1;
      continue;
    }
    const char *value = equals ? equals + 1 : ++i < argc ? argv[i] : NULL;
    if (!value)
      return refuse(error, o->name, "its value is missing");
    if (option_set(o, value, error))
      return -1;
  }
  return 0;
}

void options_print(const option *options, int n) {
  for (const option *o = options; o < options + n; o++)
    if (o->kind != OPTION_ABSENT)
      printf("  %2s %-17s%s\n", o->letter, o->name, o->help);
}
