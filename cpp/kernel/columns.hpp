// Small things asked of the columns of a segment, at less cost than an array library's.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "simd.hpp"

namespace bptt {

// Adds the values to the total: `unit` after `unit`, counted from the first, the last of them first.
inline double add_units(const double* values, std::int64_t count, std::int64_t unit, double total) {
  for (std::int64_t end = count; end > 0;) {
    const std::int64_t begin = (end - 1) / unit * unit;
    Vector<double> sums{};
    std::int64_t i = begin;
    for (; i + lanes<double> <= end; i += lanes<double>) sums += load(values + i);
    double sum = 0;
    for (int lane = 0; lane < lanes<double>; ++lane) sum += sums[lane];
    for (; i < end; ++i) sum += values[i];
    total += sum;
    end = begin;
  }
  return total;
}

// Writes the first n numbers of each row times the factor, rounded once. Returns whether all of them are finite.
template <class From, class To>
bool scale(const From* values, std::int64_t rows, std::int64_t width, double factor, To* scaled, std::int64_t n) {
  bool finite = true;
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t i = 0; i < n; ++i) {
      const To product = To(double(values[r * width + i]) * factor);
      scaled[r * n + i] = product;
      finite &= std::abs(product) <= std::numeric_limits<To>::max();
    }
  return finite;
}

// The first index that is not in 0..limit-1, or -1.
template <class Integer>
std::int64_t find_outside(const Integer* indices, std::int64_t count, std::int64_t limit) {
  using Natural = std::make_unsigned_t<Integer>;  // what is negative is huge there
  constexpr std::int64_t many = 1024;
  for (std::int64_t begin = 0; begin < count; begin += many) {
    const std::int64_t end = std::min(count, begin + many);
    Natural most = 0;
    for (std::int64_t i = begin; i < end; ++i) most = std::max(most, Natural(indices[i]));
    if (most < Natural(limit)) continue;
    for (std::int64_t i = begin;; ++i)
      if (Natural(indices[i]) >= Natural(limit)) return i;
  }
  return -1;
}

}  // namespace bptt
