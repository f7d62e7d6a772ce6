// system.h: what programs ask of the operating system, beyond os.h.
#ifndef BITGEN_SYSTEM_H
#define BITGEN_SYSTEM_H

#include <stdint.h>

// Called before anything else: stdin and stdout carry bytes as they are, arguments are UTF-8.
void os_program(int *argc, char ***argv);
const char *os_own_path(const char *argv0); // this program's file, as well as the system knows
int32_t os_cpus(void);                      // those that this process may use

// From now on a mapped file that is cut short while it is read ends the program with exit code 1 and a sentence,
// which names the program and the file. Windows does not let anybody cut one.
void os_guard_mapping(const char *program, const char *file);

#endif
