// search.h: binary search.
#ifndef BITGEN_SEARCH_H
#define BITGEN_SEARCH_H

#include <stdint.h>

// Search first .. end of a sorted table for an element whose `order` is 0: an expression in the index i that
// is negative for the elements before it and positive for those behind. 1 and its index in i; else 0, and i is
// where it would be: the first element of positive order, or end.
//
//   uint32_t i;
//   return SEARCH(i, 0, n, (int64_t)table[i].code - code) ? table + i : NULL;
#define SEARCH(i, first, end, order)                                                                         \
  ({                                                                                                         \
    __typeof__(i) low_ = (first), high_ = (end);                                                             \
    int64_t order_ = 1;                                                                                      \
    while (low_ < high_) {                                                                                   \
      (i) = low_ + (high_ - low_) / 2;                                                                       \
      order_ = (order);                                                                                      \
      if (order_ == 0)                                                                                       \
        break;                                                                                               \
      if (order_ < 0)                                                                                        \
        low_ = (i) + 1;                                                                                      \
      else                                                                                                   \
        high_ = (i);                                                                                         \
    }                                                                                                        \
    if (order_ != 0)                                                                                         \
      (i) = low_;                                                                                            \
    order_ == 0;                                                                                             \
  })

#endif
