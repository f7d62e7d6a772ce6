// heap.h: a binary heap of whatever a file puts in order before it includes this:
//
//   #define HEAP_OF float
//   #define HEAP_ABOVE(a, b) ((a) < (b)) // the least on top
//   #include "algorithms/heap.h"
//
// heap[0] is the top; below heap[i] are heap[2 i + 1] and heap[2 i + 2].
#include <stddef.h>

// Put a value where heap[at] is, in a heap of n, or below: what belongs above it moves up.
static inline void heap_sink(HEAP_OF *heap, size_t n, size_t at, HEAP_OF value) {
  for (size_t child; (child = 2 * at + 1) < n; at = child) {
    child += child + 1 < n && HEAP_ABOVE(heap[child + 1], heap[child]);
    if (!HEAP_ABOVE(heap[child], value))
      break;
    heap[at] = heap[child];
  }
  heap[at] = value;
}

// Put a value at heap[at], behind all others, or above: what belongs below it moves down.
static inline void heap_rise(HEAP_OF *heap, size_t at, HEAP_OF value) {
  for (size_t parent; at && HEAP_ABOVE(value, heap[parent = (at - 1) / 2]); at = parent)
    heap[at] = heap[parent];
  heap[at] = value;
}
