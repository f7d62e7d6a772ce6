// machine.c: runs one static Linux program on a bare x86-64 CPU, for an emulator of CPUs we do not have.
//
// rom.S enters `start` with all memory mapped. `start` maps it again in pages that mprotect can take away,
// and jumps into the program, whose system calls come back to `linux_call`: as many of Linux's as a C library
// needs to read files, allocate memory and write results. One thread; everything runs in ring 0 with
// interrupts off; a fault ends the emulator. Standard output and error leave through the two parallel ports.
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>

typedef struct {
  uint64_t name, data, size;
} file;

typedef struct { // written by emulate_avx512.py
  uint64_t entry, stack, heap, files;
  file file[]; // file[0] is standard input
} boot;

typedef struct { // of a system call, as `enter` pushes them
  uint64_t r9, r8, r10, rdx, rsi, rdi;
} arguments;

typedef struct {
  const file *file;
  uint64_t at;
} descriptor;

enum { PAGE = 4096, MEMORY = 256 << 20, FIRST_PAGE = PAGE, DESCRIPTORS = 32, HERTZ = 10000000 };
enum { PRESENT = 1, WRITABLE = 2, MAPPED = 1 << 9 }; // bits of a page table's entry; the last is ours
enum { LPT1 = 0x378, LPT2 = 0x278, STROBE = 1, NO_RESET = 4, SELECT = 8, SHUTDOWN = 0x8900 };
enum { SET_FS = 0x1002, ASK_FOR_TILES = 0x1023, CODE = 24 };
enum { MSR_STAR = 0xc0000081, MSR_LSTAR, MSR_FS_BASE = 0xc0000100 };

static const boot *machine;
static descriptor descriptors[DESCRIPTORS];
static uint64_t heap_end, heap_limit, map_end; // memory: program and files, heap, mappings
static _Alignas(PAGE) uint64_t root[512], gigabytes[512], megabytes[512], pages[MEMORY / PAGE];

static inline void out(int port, int value) { asm volatile("outb %b0, %w1" ::"a"(value), "d"(port)); }

static inline void wrmsr(uint32_t msr, uint64_t value) {
  asm volatile("wrmsr" ::"c"(msr), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)));
}

static inline uint32_t xcr0(void) {
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

static inline void copy(uint64_t to, uint64_t from, uint64_t bytes) {
  uint64_t words = bytes / 8, rest = bytes % 8;
  asm volatile("rep movsq\n\tmovq %3, %%rcx\n\trep movsb"
               : "+D"(to), "+S"(from), "+c"(words)
               : "r"(rest)
               : "memory");
}

static inline void clear(uint64_t to, uint64_t bytes) {
  uint64_t words = bytes / 8, rest = bytes % 8;
  asm volatile("rep stosq\n\tmovq %2, %%rcx\n\trep stosb"
               : "+D"(to), "+c"(words)
               : "r"(rest), "a"(0)
               : "memory");
}

static uint64_t min(uint64_t a, uint64_t b) { return a < b ? a : b; }
static uint64_t round_up(uint64_t n) { return (n + PAGE - 1) & -(uint64_t)PAGE; }

// ---- what leaves the machine

static void print(int port, const char *data, uint64_t bytes) {
  while (bytes--) {
    out(port, *data++);
    out(port + 2, SELECT | NO_RESET | STROBE);
    out(port + 2, SELECT | NO_RESET);
  }
}

// The last five bytes of the second port tell an orderly end from a crash.
static __attribute__((noreturn)) void end(int status) {
  const char last[] = {'e', 'x', 'i', 't', (char)status};
  print(LPT2, last, sizeof last);
  for (const char *word = "Shutdown"; *word; word++)
    out(SHUTDOWN, *word);
  for (;;)
    ;
}

static int64_t not_emulated(uint64_t number) {
  char text[] = "machine: system call ... is not emulated\n";
  for (int i = 23; i > 20; i--, number /= 10)
    text[i] = (char)('0' + number % 10);
  print(LPT2, text, sizeof text - 1);
  return -ENOSYS;
}

// ---- memory

static void map(uint64_t at, uint64_t bytes, uint64_t bits) {
  for (const uint64_t last = at + bytes; at < last && at < MEMORY; at += PAGE) {
    pages[at / PAGE] = bits ? at | bits : 0;
    asm volatile("invlpg (%0)" ::"r"(at) : "memory");
  }
}

static uint64_t mapped(int prot) {
  return MAPPED | (prot & PROT_WRITE ? WRITABLE : 0) | (prot == PROT_NONE ? 0 : PRESENT);
}

static int64_t move_heap_end(uint64_t to) {
  if (to < machine->heap || to > heap_limit)
    return (int64_t)heap_end;
  if (to > heap_end)
    clear(heap_end, to - heap_end);
  return (int64_t)(heap_end = to);
}

static int64_t map_memory(uint64_t bytes, int prot, int flags, uint64_t fd, uint64_t offset) {
  const uint64_t at = map_end, size = round_up(bytes);
  const file *f = !(flags & MAP_ANONYMOUS) && fd < DESCRIPTORS ? descriptors[fd].file : 0;
  if (!size || flags & MAP_FIXED || !(f || flags & MAP_ANONYMOUS))
    return -EINVAL;
  if (size > MEMORY - at)
    return -ENOMEM;
  map(at, size, mapped(PROT_WRITE));
  clear(at, size);
  if (f && offset < f->size)
    copy(at, f->data + offset, min(size, f->size - offset));
  map(at, size, mapped(prot));
  map_end += size;
  return (int64_t)at;
}

static int64_t unmap_memory(uint64_t at, uint64_t bytes) {
  map(at, round_up(bytes), 0);
  while (map_end > heap_limit && !pages[map_end / PAGE - 1])
    map_end -= PAGE;
  return 0;
}

// ---- files

static int same(const char *a, const char *b) {
  while (*a && *a == *b)
    a++, b++;
  return *a == *b;
}

static int64_t open_file(const char *path, int flags) {
  int fd = 3;
  while (fd < DESCRIPTORS && descriptors[fd].file)
    fd++;
  if (fd == DESCRIPTORS)
    return -EMFILE;
  if ((flags & O_ACCMODE) != O_RDONLY)
    return -EROFS;
  for (const file *f = machine->file + 1; f < machine->file + machine->files; f++)
    if (same((const char *)f->name, path)) {
      descriptors[fd] = (descriptor){f, 0};
      return fd;
    }
  return -ENOENT;
}

static int64_t read_file(descriptor *d, uint64_t to, uint64_t bytes) {
  const uint64_t n = min(bytes, d->at < d->file->size ? d->file->size - d->at : 0);
  copy(to, d->file->data + d->at, n);
  d->at += n;
  return (int64_t)n;
}

static int64_t read_vector(descriptor *d, const struct iovec *parts, uint64_t count) {
  int64_t total = 0;
  for (uint64_t i = 0; i < count; i++)
    total += read_file(d, (uint64_t)parts[i].iov_base, parts[i].iov_len);
  return total;
}

static int64_t write_vector(uint64_t fd, const struct iovec *parts, uint64_t count) {
  int64_t total = 0;
  for (uint64_t i = 0; i < count; i++, total += (int64_t)parts[i - 1].iov_len)
    print(fd == 1 ? LPT1 : LPT2, parts[i].iov_base, parts[i].iov_len);
  return total;
}

static int64_t seek(descriptor *d, uint64_t offset, uint64_t whence) {
  const uint64_t from[] = {0, d->at, d->file->size};
  if (whence > 2 || (int64_t)(from[whence] + offset) < 0)
    return -EINVAL;
  return (int64_t)(d->at = from[whence] + offset);
}

static int64_t describe(const descriptor *d, struct stat *to) {
  clear((uint64_t)to, sizeof *to);
  to->st_mode = d->file ? S_IFREG | 0444 : S_IFIFO | 0600;
  to->st_size = d->file ? (off_t)d->file->size : 0;
  to->st_blksize = PAGE;
  return 0;
}

// ---- system calls

static int64_t tell_time(struct timespec *to) {
  uint32_t low, high;
  asm volatile("rdtsc" : "=a"(low), "=d"(high));
  const uint64_t cycles = (uint64_t)high << 32 | low;
  *to = (struct timespec){(time_t)(cycles / HERTZ), (long)(cycles % HERTZ * (1000000000 / HERTZ))};
  return 0;
}

// Calls on an open file; descriptors 1 and 2 are the ports.
static int64_t file_call(uint64_t number, const arguments *a) {
  const uint64_t fd = a->rdi;
  if (fd >= DESCRIPTORS)
    return -EBADF;
  descriptor *d = &descriptors[fd];
  if (fd == 1 || fd == 2)
    switch (number) {
    case SYS_write:
      return write_vector(fd, &(struct iovec){(void *)a->rsi, a->rdx}, 1);
    case SYS_writev:
      return write_vector(fd, (const struct iovec *)a->rsi, a->rdx);
    case SYS_fstat:
      return describe(d, (struct stat *)a->rsi);
    case SYS_newfstatat:
      return describe(d, (struct stat *)a->rdx);
    case SYS_lseek:
      return -ESPIPE;
    case SYS_ioctl:
      return -ENOTTY;
    }
  else if (d->file)
    switch (number) {
    case SYS_read:
      return read_file(d, a->rsi, a->rdx);
    case SYS_readv:
      return read_vector(d, (const struct iovec *)a->rsi, a->rdx);
    case SYS_pread64:
      return read_file(&(descriptor){d->file, a->r10}, a->rsi, a->rdx);
    case SYS_lseek:
      return seek(d, a->rsi, a->rdx);
    case SYS_fstat:
      return describe(d, (struct stat *)a->rsi);
    case SYS_newfstatat:
      return describe(d, (struct stat *)a->rdx);
    case SYS_ioctl:
      return -ENOTTY;
    case SYS_close:
      d->file = 0;
      return 0;
    }
  return -EBADF;
}

__attribute__((used)) static int64_t linux_call(const arguments *a, uint64_t number) {
  switch (number) {
  case SYS_read:
  case SYS_readv:
  case SYS_pread64:
  case SYS_write:
  case SYS_writev:
  case SYS_lseek:
  case SYS_fstat:
  case SYS_ioctl:
  case SYS_close:
    return file_call(number, a);
  case SYS_newfstatat: // of a path, or with an empty one of a descriptor
    return *(const char *)a->rsi ? -ENOENT : file_call(number, a);
  case SYS_open:
    return open_file((const char *)a->rdi, (int)a->rsi);
  case SYS_openat:
    return open_file((const char *)a->rsi, (int)a->rdx);
  case SYS_readlink:
  case SYS_readlinkat:
    return -ENOENT;
  case SYS_brk:
    return move_heap_end(a->rdi);
  case SYS_mmap:
    return map_memory(a->rsi, (int)a->rdx, (int)a->r10, a->r8, a->r9);
  case SYS_munmap:
    return unmap_memory(a->rdi, a->rsi);
  case SYS_mprotect:
    map(a->rdi, round_up(a->rsi), mapped((int)a->rdx));
    return 0;
  case SYS_mremap: // the C library then copies
    return -ENOMEM;
  case SYS_arch_prctl:
    if (a->rdi == ASK_FOR_TILES) // rom.S has turned on what there is
      return xcr0() >> 18 & 1 ? 0 : -EINVAL;
    if (a->rdi != SET_FS)
      return -EINVAL;
    wrmsr(MSR_FS_BASE, a->rsi);
    return 0;
  case SYS_clock_gettime:
    return tell_time((struct timespec *)a->rsi);
  case SYS_sched_getaffinity: // one CPU
    clear(a->rdx, min(a->rsi, 8));
    *(char *)a->rdx = 1;
    return 8;
  case SYS_getrandom:
    clear(a->rdi, a->rsi);
    return (int64_t)a->rsi;
  case SYS_clone:
  case SYS_clone3: // no second thread
    return -EAGAIN;
  case SYS_prlimit64:
  case SYS_rseq:
    return -ENOSYS;
  case SYS_exit:
  case SYS_exit_group:
    end((int)a->rdi);
  case SYS_kill: // itself, as a shell would report it
  case SYS_tkill:
    end(128 + (int)a->rsi);
  case SYS_tgkill:
    end(128 + (int)a->rdx);
  case SYS_madvise: // what one thread without signals may ignore
  case SYS_futex:
  case SYS_gettid:
  case SYS_getpid:
  case SYS_rt_sigaction:
  case SYS_rt_sigprocmask:
  case SYS_sched_setaffinity:
  case SYS_sched_yield:
  case SYS_set_robust_list:
  case SYS_set_tid_address:
    return 0;
  default:
    return not_emulated(number);
  }
}

// What `syscall` jumps to. A stack of our own: the program's may be in use below its pointer.
void enter(void) __attribute__((visibility("hidden"))); // no table of addresses, so no relocation
__attribute__((used)) static _Alignas(16) char stack[1 << 16];
__attribute__((used)) static uint64_t program_stack;
asm("enter:\n"
    "  movq %rsp, program_stack(%rip)\n"
    "  leaq stack+65536(%rip), %rsp\n"
    "  pushq %rcx\n" // where the program goes on
    "  pushq %rcx\n" // twice: 16-byte alignment
    "  pushq %rdi\n  pushq %rsi\n  pushq %rdx\n  pushq %r10\n  pushq %r8\n  pushq %r9\n"
    "  movq %rsp, %rdi\n"
    "  movq %rax, %rsi\n"
    "  cld\n"
    "  callq linux_call\n"
    "  popq %r9\n  popq %r8\n  popq %r10\n  popq %rdx\n  popq %rsi\n  popq %rdi\n"
    "  popq %rcx\n"
    "  movq program_stack(%rip), %rsp\n"
    "  jmpq *%rcx\n");

static void map_all(void) {
  map(FIRST_PAGE, MEMORY - FIRST_PAGE, PRESENT | WRITABLE); // page 0 traps null pointers
  map(heap_limit, MEMORY - heap_limit, 0);
  for (uint64_t i = 0; i < MEMORY >> 21; i++)
    megabytes[i] = (uint64_t)&pages[512 * i] | PRESENT | WRITABLE;
  gigabytes[0] = (uint64_t)megabytes | PRESENT | WRITABLE;
  root[0] = (uint64_t)gigabytes | PRESENT | WRITABLE;
  asm volatile("movq %0, %%cr3" ::"r"(root) : "memory");
}

__attribute__((used)) static void run(const boot *made) {
  machine = made;
  heap_end = machine->heap;
  heap_limit = map_end = round_up(heap_end + (MEMORY - heap_end) / 2);
  descriptors[0].file = &machine->file[0];
  map_all();
  wrmsr(MSR_STAR, (uint64_t)CODE << 32);
  wrmsr(MSR_LSTAR, (uint64_t)enter);
  asm volatile("movq %0, %%rsp\n\txorl %%edx, %%edx\n\tjmpq *%1" ::"r"(machine->stack), "r"(machine->entry)
               : "rdx");
}

// Where rom.S jumps to, with `boot *` in rdi.
asm(".globl start\n"
    "start:\n"
    "  leaq stack+65536(%rip), %rsp\n"
    "  callq run\n");
