// Rows of numbers with a binary exponent each: row * 2^exponent cannot leave the range.
//
// A row is in range when the sum of its squares lies between the bounds below, or is an exact zero. The bounds leave
// room for one step of a chain, whose matrix has its largest number in [1/2, 1) and whose slopes below 2^-512 come with
// exponents of their own. Within a row, a number some 2^900 times smaller than the largest counts as zero.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "view.hpp"

namespace bptt {

inline constexpr double least_square = 0x1p-128, most_square = 0x1p128;

inline bool in_range(double square) { return square >= least_square && square <= most_square; }

// x * 2^exponent, any exponent.
inline double times_power(double x, std::int64_t exponent) {
  return exponent == 0 ? x : std::ldexp(x, int(std::clamp<std::int64_t>(exponent, -5000, 5000)));
}

// The sum of the lanes.
[[gnu::always_inline]] inline double total(Vector<double> v) {
  double flat[lanes<double>];
  std::memcpy(flat, &v, sizeof flat);
  for (int half = lanes<double> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) flat[i] += flat[i + half];
  return flat[0];
}

namespace detail {

// The sum of what term(i) gives for the numbers i, i + 1, ... of a row: one order for every length.
template <class Term>
[[gnu::always_inline]] inline double sum_terms(std::int64_t length, Term term) {
  constexpr int ways = line<double> / lanes<double>;
  Vector<double> sum[ways] = {};
  for (std::int64_t i = 0; i < length; i += line<double>)
#pragma GCC unroll 4
    for (int w = 0; w < ways; ++w) sum[w] += term(i + w * lanes<double>);
  for (int w = 1; w < ways; ++w) sum[0] += sum[w];
  return total(sum[0]);
}

}  // namespace detail

// Rows are padded with zeros to `length`, a multiple of line<double>.
inline double dot(const double* u, const double* v, std::int64_t length) {
  return detail::sum_terms(length, [=](std::int64_t i) { return load(u + i) * load(v + i); });
}

// row *= d. Returns the sum of squares.
inline double multiply(double* row, const double* d, std::int64_t length) {
  return detail::sum_terms(length, [=](std::int64_t i) {
    const Vector<double> product = load(row + i) * load(d + i);
    store(row + i, product);
    return product * product;
  });
}

// to = from * 2^exponent; they may be the same row.
inline void shift(const double* from, std::int64_t exponent, double* to, std::int64_t length) {
  if (std::abs(exponent) <= 1000) {  // where the factor is a number
    const Vector<double> factor = broadcast(std::ldexp(1.0, int(exponent)));
    for (std::int64_t i = 0; i < length; i += lanes<double>) store(to + i, load(from + i) * factor);
  } else {
    for (std::int64_t i = 0; i < length; ++i) to[i] = times_power(from[i], exponent);
  }
}

// row *= d * 2^e, for slopes that float64 does not hold. Returns the sum of squares.
inline double multiply(double* row, const double* d, const std::int64_t* e, std::int64_t& exponent,
                       std::int64_t length) {
  constexpr std::int64_t none = std::numeric_limits<std::int64_t>::min();
  std::int64_t top = none;
  for (std::int64_t i = 0; i < length; ++i) {
    row[i] *= d[i];
    if (row[i] != 0 && std::isfinite(row[i])) top = std::max(top, e[i] + std::ilogb(row[i]));
  }
  if (top != none) {
    exponent += top;
    for (std::int64_t i = 0; i < length; ++i) row[i] = times_power(row[i], e[i] - top);
  }
  return dot(row, row, length);
}

// Brings a row into range. Returns the sum of squares: 0 for an exact zero, not finite where a number is not.
inline double rescale(double* row, std::int64_t& exponent, std::int64_t length) {
  double largest = 0;
  for (std::int64_t i = 0; i < length; ++i) largest = std::max(largest, std::fabs(row[i]));
  if (largest > 0 && std::isfinite(largest)) {
    const int top = std::ilogb(largest);
    exponent += top;
    shift(row, -top, row, length);
  }
  return dot(row, row, length);
}

}  // namespace bptt
