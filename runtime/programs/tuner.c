// tuner.c: the far side of `bitgen tune --remote`: runs and times the kernels of this program where it is.
//
// It says "bitgen-tuner 1" and answers requests until its input ends. A request is a line on stdin, a word and
// numbers; the answer is a line on stdout, "ok" and words or "error" and why. Kernels are those of level 0.
//
//   request                               answer
//   levels                                ok NAME=1 NAME=0 ...  ISA levels, best first; 1 where the probe ran
//   cpus                                  ok COUNT              CPUs that this process may use
//   file PATH                             ok BYTES              then the file's bytes; 0 when there is none
//   weights BYTES                         ok                    spans (below) follow the request, until BYTES
//   activations BYTES                     ok                    int8 [rows][k] follows the request
//   verify KERNEL ROW N THREADS           ok CRC                CRC-32 of y int32 [N][m], of N rows from ROW
//   stream BYTES                          ok                    random bytes for the requests below
//   time KERNEL AT COPIES N THREADS REPS  ok SECONDS ...        of each of REPS runs; weights at AT in the stream
//   bandwidth THREADS                     ok BYTES_PER_S        of reading the stream
//   peak THREADS                          ok OPERATIONS_PER_S
//
// A span is uint64 n, n bytes, uint64 times, and one byte that is repeated `times` times.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bitgen.h"
#include "programs/system.h"

enum {
  ARGUMENTS = 6,
  MAX_REPS = 64,
  PASSES = 5,         // the best of them is the answer
  IDLE_SECONDS = 600, // without a request, or within one: the other side has gone
};

typedef struct {
  uint8_t *at;
  size_t bytes;
} buffer;

static buffer weights, activations, stream;

// Allocate, without the old content.
static int32_t allocate(buffer *b, int64_t bytes) {
  free(b->at);
  *b = (buffer){0};
  if (bytes < 1 || (uint64_t)bytes > SIZE_MAX / 2)
    return BG_E_ARGUMENT;
  b->at = aligned_alloc(64, ((size_t)bytes + 63) / 64 * 64);
  if (!b->at)
    return BG_E_MEMORY;
  b->bytes = (size_t)bytes;
  return BG_OK;
}

static int32_t levels(const int64_t *a) {
  (void)a;
  printf("ok");
  for (int32_t i = 0; i < bg_isa_count(); i++)
    printf(" %s=%d", bg_isa_name(i), bg_isa_runs(i));
  printf("\n");
  return BG_OK;
}

static int32_t cpus(const int64_t *a) {
  (void)a;
  printf("ok %d\n", os_cpus());
  return BG_OK;
}

static int32_t receive_weights(const int64_t *a) {
  const int32_t code = allocate(&weights, a[0]);
  for (size_t at = 0; code == BG_OK && at < weights.bytes;) {
    uint64_t n, times;
    if (fread(&n, sizeof n, 1, stdin) != 1 || n > weights.bytes - at ||
        fread(weights.at + at, 1, n, stdin) != n)
      return BG_E_IO;
    at += n;
    if (fread(&times, sizeof times, 1, stdin) != 1 || times > weights.bytes - at)
      return BG_E_IO;
    memset(weights.at + at, getchar(), times);
    at += times;
  }
  if (code == BG_OK)
    puts("ok");
  return code;
}

static int32_t receive_activations(const int64_t *a) {
  const int32_t code = allocate(&activations, a[0]);
  if (code == BG_OK && fread(activations.at, 1, activations.bytes, stdin) != activations.bytes)
    return BG_E_IO;
  if (code == BG_OK)
    puts("ok");
  return code;
}

static uint32_t crc32(uint32_t crc, const void *data, size_t bytes) {
  for (const uint8_t *p = data, *end = p + bytes; p < end; p++) {
    crc ^= *p;
    for (int bit = 0; bit < 8; bit++)
      crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
  }
  return crc;
}

static int32_t verify(const int64_t *a) {
  bg_kernel_info k;
  int32_t code = bg_kernel_get(0, (int32_t)a[0], &k);
  const int64_t row = a[1], n = a[2];
  if (code != BG_OK || row < 0 || n < 1 || (uint64_t)k.weight_bytes != weights.bytes ||
      row + n > (int64_t)activations.bytes / k.row_bytes)
    return BG_E_ARGUMENT;
  const size_t y_bytes = (size_t)n * (size_t)k.m_pad * sizeof(int32_t);
  int32_t *y = malloc(y_bytes);
  if (!y)
    return BG_E_MEMORY;
  memset(y, 0xA5, y_bytes); // an element that the kernel leaves out is noticed
  code = bg_kernel_run(0, (int32_t)a[0], weights.at, (const int8_t *)activations.at + row * k.row_bytes,
                       (int32_t)n, y, (int32_t)a[3]);
  uint32_t crc = UINT32_MAX;
  for (int64_t i = 0; i < n; i++)
    crc = crc32(crc, y + i * k.m_pad, (size_t)k.m * sizeof *y);
  free(y);
  if (code == BG_OK)
    printf("ok %" PRIu32 "\n", ~crc);
  return code;
}

static int32_t make_stream(const int64_t *a) {
  const int32_t code = allocate(&stream, a[0]);
  uint64_t x = 88172645463325252u; // xorshift64 (Marsaglia, 2003)
  for (size_t i = 0; i + sizeof x <= stream.bytes; i += sizeof x) {
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    memcpy(stream.at + i, &x, sizeof x);
  }
  if (code == BG_OK)
    puts("ok");
  return code;
}

static int32_t time_kernel(const int64_t *a) {
  const int64_t at = a[1], copies = a[2], n = a[3], reps = a[5];
  const int64_t bytes = (int64_t)stream.bytes;
  double seconds[MAX_REPS];
  bg_kernel_info k;
  if (bg_kernel_get(0, (int32_t)a[0], &k) != BG_OK || reps < 1 || reps > MAX_REPS || copies < 1 || at < 0 ||
      at % 64 || at > bytes || copies > (bytes - at) / k.weight_bytes || n < 1 || n > bytes / k.row_bytes)
    return BG_E_ARGUMENT;
  const int32_t code =
      bg_kernel_time(0, (int32_t)a[0], stream.at + at, (int32_t)copies, (const int8_t *)stream.at, (int32_t)n,
                     (int32_t)a[4], (int32_t)reps, seconds);
  if (code != BG_OK)
    return code;
  printf("ok");
  for (int64_t i = 0; i < reps; i++)
    printf(" %.9e", seconds[i]);
  printf("\n");
  return BG_OK;
}

static int32_t bandwidth(const int64_t *a) {
  double rate;
  const int32_t code = bg_read_bandwidth(0, stream.at, stream.bytes, (int32_t)a[0], PASSES, &rate);
  if (code == BG_OK)
    printf("ok %.9e\n", rate);
  return code;
}

static int32_t peak(const int64_t *a) {
  double rate;
  const int32_t code = bg_peak_ops(0, (int32_t)a[0], PASSES, &rate);
  if (code == BG_OK)
    printf("ok %.9e\n", rate);
  return code;
}

static int32_t file(const char *path) {
  enum { MAX_BYTES = 1 << 20 };
  char *text = malloc(MAX_BYTES);
  FILE *f = text ? fopen(path, "rb") : NULL;
  const size_t bytes = f ? fread(text, 1, MAX_BYTES, f) : 0;
  if (f)
    fclose(f);
  printf("ok %zu\n", bytes);
  if (bytes)
    fwrite(text, 1, bytes, stdout);
  free(text);
  return BG_OK;
}

static const struct {
  const char *name;
  int arguments;
  int32_t (*answer)(const int64_t *arguments);
} requests[] = {
    {"levels", 0, levels},
    {"cpus", 0, cpus},
    {"weights", 1, receive_weights},
    {"activations", 1, receive_activations},
    {"verify", 4, verify},
    {"stream", 1, make_stream},
    {"time", 6, time_kernel},
    {"bandwidth", 1, bandwidth},
    {"peak", 1, peak},
};

static int32_t answer(const char *line) {
  char word[16];
  int64_t a[ARGUMENTS];
  if (strncmp(line, "file ", 5) == 0)
    return file(line + 5);
  const int found = sscanf(line, "%15s %" SCNd64 " %" SCNd64 " %" SCNd64 " %" SCNd64 " %" SCNd64 " %" SCNd64,
                           word, a, a + 1, a + 2, a + 3, a + 4, a + 5);
  for (size_t i = 0; i < sizeof requests / sizeof *requests; i++)
    if (found == 1 + requests[i].arguments && strcmp(word, requests[i].name) == 0)
      return requests[i].answer(a);
  return BG_E_ARGUMENT;
}

int main(void) {
  char line[4096];
  puts("bitgen-tuner 1");
  do {
    fflush(stdout);
    alarm(IDLE_SECONDS);
    if (!fgets(line, sizeof line, stdin))
      return 0;
    line[strcspn(line, "\n")] = 0;
    const int32_t code = answer(line);
    if (code != BG_OK)
      printf("error %s\n", code == BG_E_MEMORY ? "not enough memory" : bg_strerror(code));
  } while (!ferror(stdout) && !feof(stdin));
  return 1;
}
