// options.h: the command line of a program as a table.
#ifndef BITGEN_OPTIONS_H
#define BITGEN_OPTIONS_H

#include <stdint.h>

typedef struct {
  uint64_t value;
  int given;
} option_seed;

typedef struct {
  const char *name, *letter; // "--name"; "-n", or ""
  enum { OPTION_TEXT, OPTION_COUNT, OPTION_NUMBER, OPTION_SEED, OPTION_SWITCH, OPTION_ABSENT } kind;
  void *value; // const char *; double, a whole number; double; option_seed; int, 1 when given; absent: NULL
  double least, most; // of a count or a number. FLT_MIN: above 0; FLT_MAX: no limit
  const char *help;   // absent: why it is refused
} option;

typedef struct {
  const char *what; // an option, or an argument that is none
  char why[120];
} option_error;

// Set the values of n options (64 at most) from a program's arguments. 0, or -1 and the error.
int options_parse(const option *options, int n, int argc, char **argv, option_error *error);

// Set the value of one from its text; likewise.
int option_set(const option *o, const char *text, option_error *error);

// Print a line for each option that there is.
void options_print(const option *options, int n);

#endif
