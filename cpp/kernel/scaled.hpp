// Rows of numbers with a binary exponent each: row * 2^exponent cannot leave the range.
//
// A row is in range when the sum of its squares lies between the bounds below, or is an exact zero. The bounds leave room for one
// step of a chain, whose matrix is brought below 1 and whose slopes below 2^-512 come with exponents of their own; within a row a
// number counts as zero where it is 2^-900 of the largest or less.
#pragma once

#include <cmath>
#include <limits>

#include "view.hpp"

namespace bptt {

inline constexpr double least_square = 0x1p-128, most_square = 0x1p128;

inline bool in_range(double square) { return square >= least_square && square <= most_square; }

namespace detail {

// The sum over the row of what term(i) gives for the numbers i, i+1, ...: one order for every length.
template <class Term>
[[gnu::always_inline]] inline double sum_terms(std::int64_t length, Term term) {
  constexpr int ways = line<double> / lanes<double>;
  Vector<double> sum[ways] = {};
  for (std::int64_t i = 0; i < length; i += line<double>)
#pragma GCC unroll 4
    for (int w = 0; w < ways; ++w) sum[w] += term(i + w * lanes<double>);
  alignas(row_bytes) double flat[line<double>];
  std::memcpy(flat, sum, sizeof flat);
  return ((flat[0] + flat[1]) + (flat[2] + flat[3])) + ((flat[4] + flat[5]) + (flat[6] + flat[7]));
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

// to = from * 2^exponent; they may be the same row. Returns the sum of squares.
inline double shift(const double* from, std::int64_t exponent, double* to, std::int64_t length) {
  const int bounded = int(std::clamp<std::int64_t>(exponent, -5000, 5000));
  for (std::int64_t i = 0; i < length; ++i) to[i] = std::ldexp(from[i], bounded);
  return dot(to, to, length);
}

// Brings a row into range. Returns the sum of squares: 0 for an exact zero, not finite where a number is not.
inline double rescale(double* row, std::int64_t& exponent, std::int64_t length) {
  double largest = 0;
  for (std::int64_t i = 0; i < length; ++i) largest = std::max(largest, std::fabs(row[i]));
  if (largest == 0 || !(largest <= std::numeric_limits<double>::max())) return dot(row, row, length);
  const int top = std::ilogb(largest);
  exponent += top;
  return shift(row, -top, row, length);
}

// row *= d * 2^e, for numbers d * 2^e that float64 cannot hold. Returns the sum of squares of a row in range.
inline double multiply(double* row, const double* d, const std::int64_t* e, std::int64_t& exponent, std::int64_t length) {
  std::int64_t top = std::numeric_limits<std::int64_t>::min();
  for (std::int64_t i = 0; i < length; ++i) {
    row[i] *= d[i];
    if (row[i] != 0) top = std::max(top, e[i] + (std::isfinite(row[i]) ? std::ilogb(row[i]) : 0));
  }
  if (top == std::numeric_limits<std::int64_t>::min()) return 0;
  for (std::int64_t i = 0; i < length; ++i)
    row[i] = std::ldexp(row[i], int(std::clamp<std::int64_t>(e[i] - top, -5000, 5000)));
  exponent += top;
  return dot(row, row, length);
}

}  // namespace bptt
