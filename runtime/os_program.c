// os_program.c: what programs need of the system and libraries do not: those leave their host's streams
// alone.
#include "os.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static char path[4096]; // of this program

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

#include <fcntl.h>
#include <io.h>
#include <shellapi.h>

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

const char *os_self(const char *argv0) {
  wchar_t wide[4096];
  const DWORD n = GetModuleFileNameW(NULL, wide, 4096);
  if (n > 0 && n < 4096 && WideCharToMultiByte(CP_UTF8, 0, wide, -1, path, sizeof path, NULL, NULL))
    return path;
  return argv0;
}

int32_t os_cpus(void) {
  DWORD_PTR mine, all;
  return GetProcessAffinityMask(GetCurrentProcess(), &mine, &all) && mine ? __builtin_popcountll(mine) : 1;
}

uint32_t os_random(void) {
  LARGE_INTEGER ticks;
  QueryPerformanceCounter(&ticks);
  return ((uint32_t)ticks.QuadPart ^ (uint32_t)time(NULL)) * 2654435761u;
}
#else
#include <unistd.h>
#if defined(__APPLE__)
#include <mach-o/dyld.h>
#elif defined(__linux__)
#include <sched.h>
#endif

void os_program(int *argc, char ***argv) { (void)argc, (void)argv; }

const char *os_self(const char *argv0) {
#if defined(__APPLE__)
  uint32_t bytes = sizeof path;
  if (_NSGetExecutablePath(path, &bytes) == 0)
    return path;
#elif defined(__linux__)
  const ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
  if (n > 0)
    return path;
#endif
  snprintf(path, sizeof path, "%s", argv0);
  return path;
}

int32_t os_cpus(void) {
#if defined(__linux__)
  cpu_set_t mine;
  if (sched_getaffinity(0, sizeof mine, &mine) == 0)
    return CPU_COUNT(&mine);
#endif
  const long n = sysconf(_SC_NPROCESSORS_ONLN);
  return n > 0 ? (int32_t)n : 1;
}

uint32_t os_random(void) {
  uint32_t number = (uint32_t)time(NULL) * 2654435761u;
  FILE *source = fopen("/dev/urandom", "rb");
  if (source && fread(&number, sizeof number, 1, source) != 1)
    number ^= 1;
  if (source)
    fclose(source);
  return number;
}
#endif
