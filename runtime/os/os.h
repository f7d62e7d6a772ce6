// os.h: what differs between operating systems, and nothing else. Threads and the monotonic clock are POSIX's
// everywhere: Linux and macOS have them, and so has the Windows that we compile for (MinGW-w64).
#ifndef BITGEN_OS_H
#define BITGEN_OS_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

// Map a regular file to be read; paths are UTF-8 on Windows. BG_OK, or BG_E_IO when it cannot be opened,
// BG_E_FORMAT when it is empty, BG_E_MEMORY.
int32_t os_map(const char *path, const uint8_t **map, size_t *bytes);
void os_unmap(const uint8_t *map, size_t bytes);
void os_prefetch(const uint8_t *map, size_t bytes); // all of it will be read soon: a hint

// What is freed by os_free, aligned to 64 bytes, or NULL.
void *os_alloc(size_t bytes);
void os_free(void *p);

// pthread_create, but the thread takes no signals: those belong to the threads of the host program. It does
// take those of faults, which are the thread's own: the host's handlers see them.
int os_thread(pthread_t *id, const pthread_attr_t *attr, void *(*task)(void *), void *arg);

// 1 when the probe of an ISA level says so; 0 when it does not, or meets an instruction that traps.
//
// Executing is the truth about the core that executes. Where cores differ (some phones pair old cores with
// new ones) the system speaks for all of them: Linux puts into HWCAP, and macOS into sysctl, what every core
// has. So a level that the system denies is not probed, and one that it names must still execute. Windows
// is not asked: IsProcessorFeaturePresent also denies what that version does not know yet, and Windows runs
// on no machine whose cores differ.
int32_t os_runs(const char *isa, int32_t (*probe)(void));

#endif
