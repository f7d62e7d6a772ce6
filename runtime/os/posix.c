// posix.c: os.h for Linux, macOS and their like.
#if !defined(_WIN32)
#include "os/os.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#if defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__linux__)
#include <sys/auxv.h>
#endif

#include "bitgen.h"

// ---- files ----------------------------------------------------------------------------------------------

int32_t os_map(const char *path, const uint8_t **map, size_t *bytes) {
  struct stat info;
  int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); // a FIFO is not waited for
  if (file < 0)
    return BG_E_IO;
  int32_t code = fstat(file, &info) == 0 && S_ISREG(info.st_mode) ? BG_OK : BG_E_IO;
  if (code == BG_OK && info.st_size == 0)
    code = BG_E_FORMAT;
  if (code == BG_OK) {
    void *mapped = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED)
      code = BG_E_MEMORY;
    else
      *map = mapped, *bytes = (size_t)info.st_size;
  }
  close(file);
  return code;
}

void os_unmap(const uint8_t *map, size_t bytes) { munmap((void *)map, bytes); }

void os_prefetch(const uint8_t *map, size_t bytes) {
#ifdef MADV_HUGEPAGE
  madvise((void *)map, bytes, MADV_HUGEPAGE);
#endif
  madvise((void *)map, bytes, MADV_WILLNEED);
}

// ---- memory and threads ---------------------------------------------------------------------------------

void *os_alloc(size_t bytes) {
  void *p;
  return posix_memalign(&p, 64, bytes) == 0 ? p : NULL;
}

void os_free(void *p) { free(p); }

int os_thread(pthread_t *id, const pthread_attr_t *attr, void *(*task)(void *), void *arg) {
  static const int faults[] = {SIGBUS, SIGSEGV, SIGILL, SIGFPE};
  sigset_t others, old;
  sigfillset(&others);
  for (size_t i = 0; i < sizeof faults / sizeof *faults; i++)
    sigdelset(&others, faults[i]);
  pthread_sigmask(SIG_SETMASK, &others, &old);
  const int failed = pthread_create(id, attr, task, arg);
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  return failed;
}

// ---- instruction sets -----------------------------------------------------------------------------------

// 1 when the system knows of a core without this level. Values of HWCAP are those of Linux's <asm/hwcap.h>,
// spelt here since older headers lack the later ones.
static int denied(const char *isa) {
#if defined(__aarch64__) && defined(__linux__)
  static const struct {
    const char *isa;
    unsigned long word, bit;
  } named[] = {{"dotprod", AT_HWCAP, 1ul << 20}, {"i8mm", AT_HWCAP2, 1ul << 13}};
  for (size_t i = 0; i < sizeof named / sizeof *named; i++)
    if (strcmp(isa, named[i].isa) == 0)
      return !(getauxval(named[i].word) & named[i].bit);
#elif defined(__aarch64__) && defined(__APPLE__)
  static const struct {
    const char *isa, *name;
  } named[] = {{"dotprod", "hw.optional.arm.FEAT_DotProd"}, {"i8mm", "hw.optional.arm.FEAT_I8MM"}};
  int has = 0;
  size_t bytes = sizeof has;
  for (size_t i = 0; i < sizeof named / sizeof *named; i++)
    if (strcmp(isa, named[i].isa) == 0) // a system that does not know the name denies nothing
      return sysctlbyname(named[i].name, &has, &bytes, NULL, 0) == 0 && !has;
#else
  (void)isa;
#endif
  return 0;
}

static pthread_mutex_t probing = PTHREAD_MUTEX_INITIALIZER; // one signal handler at a time
static _Thread_local sigjmp_buf *escape;                    // set in the thread that is probing

static void on_sigill(int signal_) {
  if (escape)
    siglongjmp(*escape, 1);
  signal(signal_, SIG_DFL); // not ours: the faulting instruction runs again and ends the program as it should
}

static int32_t guarded(int32_t (*probe)(void)) {
  sigjmp_buf here;
  struct sigaction ours = {.sa_handler = on_sigill}, old;
  volatile int32_t runs = 0;
  sigemptyset(&ours.sa_mask);
  escape = &here;
  if (sigaction(SIGILL, &ours, &old) == 0) {
    if (sigsetjmp(here, 1) == 0)
      runs = probe() == 1;
    sigaction(SIGILL, &old, NULL);
  }
  escape = NULL;
  return runs;
}

int32_t os_runs(const char *isa, int32_t (*probe)(void)) {
  if (denied(isa))
    return 0;
  pthread_mutex_lock(&probing);
  const int32_t runs = guarded(probe);
  pthread_mutex_unlock(&probing);
  return runs;
}

#else
typedef int nothing_here; // a translation unit holds a declaration
#endif
