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
// Numbers are decimal, 0 to 2^63 - 1. A span is uint64 n, n bytes, uint64 times, and one byte that is repeated `times` times.
#include <errno.h>
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

// A request's number as the library takes it; -1, which it refuses, where that has no room for it.
static int32_t int32(int64_t number) { return number <= INT32_MAX ? (int32_t)number : -1; }

// Allocate, without the old content. Of no bytes: free it.
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

static int32_t receive_spans(buffer *b) {
  for (size_t at = 0; at < b->bytes;) {
    uint64_t n, times;
    int byte;
    if (fread(&n, sizeof n, 1, stdin) != 1 || n > b->bytes - at || fread(b->at + at, 1, n, stdin) != n)
      return BG_E_IO;
    at += n;
    if (fread(&times, sizeof times, 1, stdin) != 1 || times > b->bytes - at || (byte = getchar()) == EOF)
      return BG_E_IO;
    memset(b->at + at, byte, times);
    at += times;
  }
  return BG_OK;
}

static int32_t receive_bytes(buffer *b) {
  return fread(b->at, 1, b->bytes, stdin) == b->bytes ? BG_OK : BG_E_IO;
}

// Take a buffer's content from stdin; what comes incomplete is dropped.
static int32_t receive(buffer *b, int64_t bytes, int32_t (*content)(buffer *)) {
  int32_t code = allocate(b, bytes);
  if (code == BG_OK)
    code = content(b);
  if (code == BG_OK)
    puts("ok");
  else
    allocate(b, 0);
  return code;
}

static int32_t receive_weights(const int64_t *a) { return receive(&weights, a[0], receive_spans); }
static int32_t receive_activations(const int64_t *a) { return receive(&activations, a[0], receive_bytes); }

static uint32_t crc32(uint32_t crc, const void *data, size_t bytes) {
  for (const uint8_t *p = data, *end = p + bytes; p < end; p++) {
    crc ^= *p;
    for (int bit = 0; bit < 8; bit++)
      crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
  }
  return crc;
}

static int32_t verify(const int64_t *a) {
  const int32_t kernel = int32(a[0]), n = int32(a[2]);
  bg_kernel_info k;
  if (bg_kernel_get(0, kernel, &k) != BG_OK || n < 1 || n > k.max_n ||
      (uint64_t)k.weight_bytes != weights.bytes)
    return BG_E_ARGUMENT;
  const int64_t row = a[1], rows = (int64_t)activations.bytes / k.row_bytes;
  if (row > rows || n > rows - row)
    return BG_E_ARGUMENT;
  const size_t y_bytes = (size_t)n * (size_t)k.m_pad * sizeof(int32_t);
  int32_t *y = malloc(y_bytes);
  if (!y)
    return BG_E_MEMORY;
  memset(y, 0xA5, y_bytes); // an element that the kernel leaves out is noticed
  const int32_t code = bg_kernel_run(0, kernel, weights.at,
                                     (const int8_t *)activations.at + row * k.row_bytes, n, y, int32(a[3]));
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
  uint64_t x = 88172645463325252u;                      // xorshift64 (Marsaglia, 2003)
  for (size_t i = 0; i < stream.bytes; i += sizeof x) { // there is room up to a multiple of 64
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
  const int32_t kernel = int32(a[0]), copies = int32(a[2]), n = int32(a[3]), reps = int32(a[5]);
  const int64_t at = a[1], bytes = (int64_t)stream.bytes;
  double seconds[MAX_REPS];
  bg_kernel_info k;
  if (bg_kernel_get(0, kernel, &k) != BG_OK || reps < 1 || reps > MAX_REPS || at % 64 || at > bytes ||
      copies < 1 || copies > (bytes - at) / k.weight_bytes || n < 1 || n > bytes / k.row_bytes)
    return BG_E_ARGUMENT;
  const int32_t code = bg_kernel_time(0, kernel, stream.at + at, copies, (const int8_t *)stream.at, n,
                                      int32(a[4]), reps, seconds);
  if (code != BG_OK)
    return code;
  printf("ok");
  for (int32_t i = 0; i < reps; i++)
    printf(" %.9e", seconds[i]);
  printf("\n");
  return BG_OK;
}

static int32_t bandwidth(const int64_t *a) {
  double rate;
  const int32_t code = bg_read_bandwidth(0, stream.at, stream.bytes, int32(a[0]), PASSES, &rate);
  if (code == BG_OK)
    printf("ok %.9e\n", rate);
  return code;
}

static int32_t peak(const int64_t *a) {
  double rate;
  const int32_t code = bg_peak_ops(0, int32(a[0]), PASSES, &rate);
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

// The numbers that follow a request's word, ARGUMENTS at the most. Their count, or -1.
static int numbers_of(const char *text, int64_t *out) {
  int n = 0;
  for (char *end; *text; text = end) {
    if (n == ARGUMENTS || text[0] != ' ' || text[1] < '0' || text[1] > '9')
      return -1;
    errno = 0;
    out[n++] = strtoll(text + 1, &end, 10);
    if (errno)
      return -1;
  }
  return n;
}

static int32_t answer(const char *line) {
  int64_t a[ARGUMENTS];
  if (strncmp(line, "file ", 5) == 0)
    return file(line + 5);
  const size_t word = strcspn(line, " ");
  const int n = numbers_of(line + word, a);
  for (size_t i = 0; i < sizeof requests / sizeof *requests; i++)
    if (n == requests[i].arguments && word == strlen(requests[i].name) &&
        memcmp(line, requests[i].name, word) == 0)
      return requests[i].answer(a);
  return BG_E_ARGUMENT;
}

// Read a line without its end, "" where it is longer than there is room for or has a NUL. 0 at the end.
static int read_line(char *line, size_t room) {
  size_t n = 0;
  int c;
  while ((c = getchar()) != EOF && c != '\n')
    if (n < room)
      line[n++] = (char)c;
  const int fits = n < room && !memchr(line, 0, n);
  line[fits ? n : 0] = 0;
  return n || c != EOF;
}

int main(void) {
  char line[4096];
  puts("bitgen-tuner 1");
  do {
    fflush(stdout);
    alarm(IDLE_SECONDS);
    if (!read_line(line, sizeof line))
      return 0;
    const int32_t code = answer(line);
    if (code != BG_OK)
      printf("error %s\n", code == BG_E_MEMORY ? "not enough memory" : bg_strerror(code));
  } while (!ferror(stdout) && !feof(stdin));
  return 1;
}
