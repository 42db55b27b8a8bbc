// How fast one thread can read: the ceiling of work that meets each number once, measured with this level's registers.
#pragma once

#include <cstdint>

#include "simd.hpp"

namespace bptt {

// Reads `bytes` (a multiple of row_bytes) `repeats` times. The result depends on all of them, or they would not be
// read.
inline std::int64_t read_stream(const double* from, std::int64_t bytes, std::int64_t repeats) {
  constexpr int ways = 8;  // enough independent loads in flight
  constexpr std::int64_t step = ways * lanes<double>;
  using Bits = Mask<double>;
  const std::int64_t size = bytes / std::int64_t(sizeof(double));
  Bits sums[ways] = {};
  for (std::int64_t repeat = 0; repeat < repeats; ++repeat) {
    std::int64_t i = 0;
    for (; i + step <= size; i += step)
      for (int way = 0; way < ways; ++way) sums[way] ^= bits<Bits>(load(from + i + way * lanes<double>));
    for (; i < size; i += lanes<double>) sums[0] ^= bits<Bits>(load(from + i));
    asm volatile("" : "+m"(sums) : : "memory");  // each repeat reads again
  }
  std::int64_t total = 0;
  for (const Bits& sum : sums)
    for (int lane = 0; lane < lanes<double>; ++lane) total ^= sum[lane];
  return total;
}

}  // namespace bptt
