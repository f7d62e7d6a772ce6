// os_program.c: what a program does before anything else. Libraries leave their host's streams alone.
#include "os.h"

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

#include <fcntl.h>
#include <io.h>
#include <shellapi.h>
#include <stdio.h>
#include <stdlib.h>

// A UTF-16 text in UTF-8, or NULL.
static char *narrow(const wchar_t *text) {
  const int n = WideCharToMultiByte(CP_UTF8, 0, text, -1, NULL, 0, NULL, NULL);
  char *made = n ? malloc((size_t)n) : NULL;
  if (made)
    WideCharToMultiByte(CP_UTF8, 0, text, -1, made, n, NULL, NULL);
  return made;
}

// The arguments that main gets are in some code page of old; these are kept until the program ends.
static char **utf8_arguments(int *argc) {
  wchar_t **given = CommandLineToArgvW(GetCommandLineW(), argc);
  char **made = given ? calloc((size_t)*argc + 1, sizeof *made) : NULL;
  for (int i = 0; made && i < *argc; i++)
    if (!(made[i] = narrow(given[i])))
      return NULL;
  return made;
}

void os_program(int *argc, char ***argv) {
  int count;
  char **arguments = utf8_arguments(&count);
  if (arguments)
    *argc = count, *argv = arguments;
  SetConsoleOutputCP(CP_UTF8);
  _setmode(_fileno(stdin), _O_BINARY);
  _setmode(_fileno(stdout), _O_BINARY);
}
#else
void os_program(int *argc, char ***argv) { (void)argc, (void)argv; }
#endif
