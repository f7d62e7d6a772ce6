// windows.c: os.h for Windows, by MinGW-w64.
#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

#include <malloc.h>
#include <stdlib.h>

#include "bitgen.h"
#include "os/os.h"

// ---- files ----------------------------------------------------------------------------------------------

// A UTF-8 text in UTF-16, for free(); NULL when it is not UTF-8 or memory is short.
static wchar_t *wide(const char *text) {
  const int n = MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, text, -1, NULL, 0);
  wchar_t *made = n ? malloc((size_t)n * sizeof *made) : NULL;
  if (made)
    MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, text, -1, made, n);
  return made;
}

static int32_t map_opened(HANDLE file, const uint8_t **map, size_t *bytes) {
  LARGE_INTEGER size;
  if (GetFileType(file) != FILE_TYPE_DISK || !GetFileSizeEx(file, &size))
    return BG_E_IO;
  if (size.QuadPart == 0)
    return BG_E_FORMAT;
  HANDLE mapping = CreateFileMappingW(file, NULL, PAGE_READONLY, 0, 0, NULL);
  if (!mapping)
    return BG_E_MEMORY;
  *map = MapViewOfFile(mapping, FILE_MAP_READ, 0, 0, 0);
  *bytes = (size_t)size.QuadPart;
  CloseHandle(mapping); // the view keeps it
  return *map ? BG_OK : BG_E_MEMORY;
}

int32_t os_map(const char *path, const uint8_t **map, size_t *bytes) {
  wchar_t *name = wide(path);
  const DWORD shared = FILE_SHARE_READ | FILE_SHARE_DELETE;
  HANDLE file = INVALID_HANDLE_VALUE;
  if (name)
    file = CreateFileW(name, GENERIC_READ, shared, NULL, OPEN_EXISTING, 0, NULL);
  free(name);
  if (file == INVALID_HANDLE_VALUE)
    return BG_E_IO;
  const int32_t code = map_opened(file, map, bytes);
  CloseHandle(file);
  return code;
}

void os_unmap(const uint8_t *map, size_t bytes) {
  (void)bytes;
  UnmapViewOfFile(map);
}

void os_prefetch(const uint8_t *map, size_t bytes) {
  WIN32_MEMORY_RANGE_ENTRY all = {(void *)map, bytes};
  PrefetchVirtualMemory(GetCurrentProcess(), 1, &all, 0);
}

// ---- memory and threads ---------------------------------------------------------------------------------

void *os_alloc(size_t bytes) { return _aligned_malloc(bytes, 64); }

void os_free(void *p) { _aligned_free(p); }

int os_thread(pthread_t *id, const pthread_attr_t *attr, void *(*task)(void *), void *arg) {
  return pthread_create(id, attr, task, arg); // Windows has no signals
}

// ---- instruction sets -----------------------------------------------------------------------------------

int32_t os_runs(const char *isa, int32_t (*probe)(void)) {
  (void)isa;
  __try {
    return probe() == 1;
  } __except (GetExceptionCode() == EXCEPTION_ILLEGAL_INSTRUCTION ? EXCEPTION_EXECUTE_HANDLER
                                                                  : EXCEPTION_CONTINUE_SEARCH) {
    return 0;
  }
}
#else
typedef int nothing_here; // a translation unit holds a declaration
#endif
