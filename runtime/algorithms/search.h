// search.h: binary search.
#ifndef BITGEN_SEARCH_H
#define BITGEN_SEARCH_H

#include <stdint.h>

// Search first .. end of a sorted table for the element whose `order` is 0. `order` is an expression in the
// index i: negative for the elements before that one, positive for those behind. Gives 1, and i is its index;
// or 0, and i is where it would be: at the first element of positive order, or end.
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
