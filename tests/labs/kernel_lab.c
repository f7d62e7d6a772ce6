// Runs the kernels of a table on data from stdin and writes what they give to stdout: `kernel_lab.py`'s other
// half.
//
//   probe   exits with 0 when the ISA's probe gives 1 (a CPU without the ISA may die of SIGILL instead)
//   run     jobs until end of file: int32 kernel, runs; packed weights; and for each run int32 n, splits and
//           rows of q [n]. Answer: int32 y [n][m_pad] of each run.
//   unpack  jobs: int32 kernel; packed weights. Answer: the kernel's rows as floats [m][k].
//
// Every buffer that a kernel sees ends at an inaccessible page, and every range of panels runs on a y of its
// own that must be written within the range's rows and nowhere else.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kernel.h"

extern const bg_kernel *const lab_kernels[];
extern const int32_t lab_count;
int32_t lab_probe(void);

enum { UNWRITTEN = 0x5a5a5a5a };

static void die(const char *what, const char *symbol) {
  fprintf(stderr, "%s: %s\n", symbol, what);
  exit(1);
}

static void *guarded(size_t bytes, size_t *mapped) {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE), body = (bytes + page - 1) / page * page;
  *mapped = body + page;
  uint8_t *base = mmap(NULL, *mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED || mprotect(base + body, page, PROT_NONE))
    die("out of memory", "lab");
  return base + body - bytes;
}

static void release(void *end_of_body, size_t bytes, size_t mapped) {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE);
  munmap((uint8_t *)end_of_body + bytes + page - mapped, mapped);
}

static void fetch(void *to, size_t bytes) {
  if (fread(to, 1, bytes, stdin) != bytes)
    die("input cut short", "lab");
}

// One range of panels on a fresh y; its rows are copied to `out`.
static void run_range(const bg_kernel *k, const uint8_t *w, const uint8_t *operand, int32_t n, int32_t p0,
                      int32_t p1, int32_t *y, int32_t *out, void *scratch) {
  const int32_t bm = k->m_pad / k->panels;
  for (int32_t i = 0; i < n * k->m_pad; i++)
    y[i] = UNWRITTEN;
  k->run(w, operand, n, y, p0, p1, scratch);
  for (int32_t i = 0; i < n * k->m_pad; i++) {
    const int32_t row = i % k->m_pad;
    if (row >= p0 * bm && row < p1 * bm)
      out[i] = y[i];
    else if (y[i] != UNWRITTEN)
      die("wrote outside its panels", k->symbol);
  }
}

static void run_kernel(const bg_kernel *k, const uint8_t *w, const int8_t *q, int32_t n, int32_t splits) {
  const size_t operand_bytes = k->operand_bytes * (size_t)n,
               y_bytes = sizeof(int32_t) * (size_t)n * (size_t)k->m_pad;
  size_t operand_mapped, y_mapped, scratch_mapped;
  uint8_t *operand = guarded(operand_bytes, &operand_mapped);
  int32_t *y = guarded(y_bytes, &y_mapped), *out = malloc(y_bytes);
  void *scratch = guarded(k->scratch_bytes, &scratch_mapped);
  memset(operand, 0xa5, operand_bytes);
  memset(scratch, 0xa5, k->scratch_bytes);
  k->pack_activations(q, n, operand);
  for (int32_t s = splits - 1; s >= 0; s--)
    run_range(k, w, operand, n, k->panels * s / splits, k->panels * (s + 1) / splits, y, out, scratch);
  fwrite(out, 1, y_bytes, stdout);
  free(out);
  release(y, y_bytes, y_mapped);
  release(scratch, k->scratch_bytes, scratch_mapped);
  release(operand, operand_bytes, operand_mapped);
}

static void run_job(const bg_kernel *k, int32_t runs) {
  size_t w_mapped, q_mapped;
  uint8_t *w = guarded(k->weight_bytes, &w_mapped);
  fetch(w, k->weight_bytes);
  while (runs-- > 0) {
    int32_t how[2]; // n, splits
    fetch(how, sizeof how);
    const size_t q_bytes = (size_t)how[0] * bg_row_bytes(k);
    int8_t *q = guarded(q_bytes, &q_mapped);
    fetch(q, q_bytes);
    run_kernel(k, w, q, how[0], how[1]);
    release(q, q_bytes, q_mapped);
  }
  release(w, k->weight_bytes, w_mapped);
}

// All rows, each alone at the end of a page.
static void unpack(const bg_kernel *k) {
  size_t w_mapped, row_mapped;
  const size_t row_bytes = (size_t)k->k * sizeof(float);
  uint8_t *w = guarded(k->weight_bytes, &w_mapped);
  float *out = guarded(row_bytes, &row_mapped);
  fetch(w, k->weight_bytes);
  for (int32_t row = 0; row < k->m; row++) {
    memset(out, 0xa5, row_bytes);
    k->unpack_row(w, row, out);
    fwrite(out, 1, row_bytes, stdout);
  }
  release(out, row_bytes, row_mapped);
  release(w, k->weight_bytes, w_mapped);
}

static void check(int32_t kernel) {
  if (kernel < 0 || kernel >= lab_count)
    die("no such kernel", "lab");
}

int main(int argc, char **argv) {
  const int32_t probed = lab_probe(); // which also asks the system for the level's registers, where it must
  if (argc == 2 && strcmp(argv[1], "probe") == 0)
    return probed == 1 ? 0 : 1;
  int32_t head[2];
  if (argc == 2 && strcmp(argv[1], "unpack") == 0) {
    while (fread(head, sizeof *head, 1, stdin) == 1) {
      check(head[0]);
      unpack(lab_kernels[head[0]]);
    }
    return 0;
  }
  while (fread(head, sizeof head, 1, stdin) == 1) {
    check(head[0]);
    run_job(lab_kernels[head[0]], head[1]);
  }
  return 0;
}
