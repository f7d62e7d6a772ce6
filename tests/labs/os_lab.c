// os_lab.c: what runtime/os/os.h promises, tried on the system that this runs on. One line per result.
//
//   os_lab FILE EMPTY MISSING FOLDER      files to map
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bitgen.h"
#include "os/os.h"
#include "programs/system.h"

// In place of the system's own, where os/posix.c was compiled with -Dgetauxval=told_hwcap.
unsigned long told_hwcap(unsigned long word);
unsigned long told_hwcap(unsigned long word) {
  const char *told = getenv("TOLD_HWCAP");
  (void)word;
  return told ? strtoul(told, NULL, 0) : ~0ul;
}

static int32_t right(void) { return 1; }
static int32_t wrong(void) { return 0; }
static int32_t traps(void) {
#if defined(__x86_64__)
  __asm__ volatile("ud2");
#elif defined(__aarch64__)
  __asm__ volatile(".inst 0"); // udf
#else
  __asm__ volatile(".word 0"); // defined to be illegal
#endif
  return 1;
}

// Whether a thread takes a request to end, and a fault of its own.
static void print_signals(void) {
#if defined(_WIN32)
  printf("signals 0 1\n"); // there are none, and faults are not signals
#else
  sigset_t blocked;
  pthread_sigmask(SIG_SETMASK, NULL, &blocked);
  printf("signals %d %d\n", !sigismember(&blocked, SIGINT), !sigismember(&blocked, SIGBUS));
#endif
}

static void *double_it(void *arg) {
  *(int *)arg *= 2;
  print_signals();
  return NULL;
}

int main(int argc, char **argv) {
  static const char *const names[] = {"file", "empty", "missing", "folder"};
  os_program(&argc, &argv);
  for (int i = 0; i < 4 && i + 1 < argc; i++) {
    const uint8_t *map = NULL;
    size_t bytes = 0;
    const int32_t code = os_map(argv[i + 1], &map, &bytes);
    printf("%s %d", names[i], code);
    if (code == BG_OK) {
      os_prefetch(map, bytes);
      printf(" %.*s", (int)bytes, (const char *)map);
      os_unmap(map, bytes);
    }
    printf("\n");
  }
  void *blocks[3];
  uintptr_t misaligned = 0;
  for (size_t i = 0; i < 3; i++) {
    blocks[i] = os_alloc(100 * i + 1);
    memset(blocks[i], 1, 100 * i + 1);
    misaligned |= (uintptr_t)blocks[i] % 64;
  }
  for (size_t i = 0; i < 3; i++)
    os_free(blocks[i]);
  printf("misaligned %d\n", misaligned != 0);
  pthread_t id;
  int number = 21;
  os_thread(&id, NULL, double_it, &number);
  pthread_join(id, NULL);
  printf("thread %d\n", number);
  for (int again = 0; again < 2; again++)
    printf("probes %d %d %d\n", os_runs("neon", right), os_runs("neon", wrong), os_runs("neon", traps));
  printf("named %d %d\n", os_runs("dotprod", right), os_runs("i8mm", right));
  printf("and traps %d\n", os_runs("dotprod", traps));
  return 0;
}
