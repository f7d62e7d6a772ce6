// system.c: what a program does before anything else and asks of the system.
// Libraries leave their host's streams alone, and do not link what this needs.
#include "programs/system.h"

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

const char *os_own_path(const char *argv0) {
  wchar_t path[4096];
  const DWORD n = GetModuleFileNameW(NULL, path, 4096);
  const char *made = n && n < 4096 ? narrow(path) : NULL;
  return made ? made : argv0;
}

int32_t os_cpus(void) { return (int32_t)GetActiveProcessorCount(ALL_PROCESSOR_GROUPS); }

void os_guard_mapping(const char *program, const char *file) { (void)program, (void)file; }
#else
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#if defined(__APPLE__)
#include <mach-o/dyld.h>
#endif

void os_program(int *argc, char ***argv) { (void)argc, (void)argv; }

const char *os_own_path(const char *argv0) {
  static char path[4096];
#if defined(__APPLE__)
  uint32_t room = sizeof path;
  return _NSGetExecutablePath(path, &room) == 0 ? path : argv0;
#else
  return readlink("/proc/self/exe", path, sizeof path - 1) > 0 ? path : argv0;
#endif
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

static char cut_short[8192]; // what is said; made beforehand, since a signal handler may only write

static void on_sigbus(int signal_, siginfo_t *info, void *context) {
  (void)context;
  if (info->si_code == BUS_ADRERR && write(STDERR_FILENO, cut_short, strlen(cut_short)))
    _exit(1);
  signal(signal_, SIG_DFL); // something else: the faulting instruction runs again and ends the program
}

void os_guard_mapping(const char *program, const char *file) {
  const struct sigaction ours = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO};
  snprintf(cut_short, sizeof cut_short, "%s: %s: was cut short or cannot be read any more; write it again\n",
           program, file);
  sigaction(SIGBUS, &ours, NULL);
}
#endif
