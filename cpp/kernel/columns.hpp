// Small things asked of the columns of a segment, at less cost than an array library's.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <type_traits>

#include "team.hpp"
#include "view.hpp"

namespace bptt {

// Chains of additions under way at once, so that none waits for its last.
inline constexpr int chains = 4;

// Adds the values to the total: `unit` after `unit`, counted from the first, the last of them first.
inline double add_units(const double* values, std::int64_t count, std::int64_t unit, double total) {
  for (std::int64_t end = count; end > 0;) {
    const std::int64_t begin = (end - 1) / unit * unit;
    constexpr int many = chains * lanes<double>;
    Vector<double> chain[chains] = {};
    std::int64_t i = begin;
    for (; i + many <= end; i += many)
      for (int k = 0; k < chains; ++k) chain[k] += load(values + i + k * lanes<double>);
    double sum = 0;
    for (int lane = 0; lane < many; ++lane) sum += chain[lane / lanes<double>][lane % lanes<double>];
    for (; i < end; ++i) sum += values[i];
    total += sum;
    end = begin;
  }
  return total;
}

// A byte from afar takes as long as so many multiply-adds.
inline constexpr double adds_of_a_byte = 8;

// Writes the first n numbers of each row, more's added where there is more, times the factor, rounded once. Returns
// whether all of them are finite.
template <class From, class To>
bool scale(const From* values, const From* more, std::int64_t rows, std::int64_t width, double factor, To* scaled,
           std::int64_t n, int threads) {
  std::atomic<bool> all_finite = true;
  const double bytes = double(rows * n) * double(sizeof(From) * (more ? 2 : 1) + sizeof(To));
  Team::run(team_size(threads, adds_of_a_byte * bytes), [&](const Team& team, int rank) {
    const Range own = part(n, line<To>, rank, team.size());
    bool finite = true;
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t i = own.begin; i < own.end; ++i) {
        From value = values[r * width + i];
        if (more) value += more[r * width + i];
        const To product = To(double(value) * factor);
        scaled[r * n + i] = product;
        finite &= std::abs(product) <= std::numeric_limits<To>::max();
      }
    if (!finite) all_finite = false;
  });
  return all_finite;
}

// How sequences of these lengths lie, the longest first (python/bptt/_columns.py).
//   order: (B) the sequence of each rank;  ascending: (B) the lengths;  prefix: (B + 1) of them, each plus one, the
//   sums over the shortest;  finals: (B) the row of each rank's last step
inline void arrange(const std::int64_t* lengths, std::int64_t B, std::int64_t* order, std::int64_t* ascending,
                    std::int64_t* prefix, std::int64_t* finals) {
  std::iota(order, order + B, std::int64_t{0});
  std::stable_sort(order, order + B, [&](std::int64_t b, std::int64_t c) { return lengths[b] > lengths[c]; });
  prefix[0] = 0;
  for (std::int64_t i = 0, shorter = 0; i < B; ++i) {
    const std::int64_t rank = B - 1 - i, length = lengths[order[rank]];
    ascending[i] = length;
    prefix[i + 1] = prefix[i] + length + 1;
    if (i && ascending[i - 1] < length) shorter = i;
    finals[rank] = prefix[shorter] + length * (B - shorter) + rank;
  }
}

// How many of B sequences of these lengths have a step t0 + i, for each of `steps` i.
inline void count_present(const std::int64_t* ascending, std::int64_t B, std::int64_t t0, std::int64_t steps,
                          std::int64_t* counts) {
  std::int64_t shorter = std::lower_bound(ascending, ascending + B, t0) - ascending;
  for (std::int64_t i = 0; i < steps; ++i) {
    while (shorter < B && ascending[shorter] < t0 + i) ++shorter;
    counts[i] = B - shorter;
  }
}

// Of a block (steps, B) of items of `size` bytes: those of step s's first counts[s] sequences in this order, step by
// step.
inline void pick(const std::byte* block, std::int64_t steps, std::int64_t B, const std::int64_t* order,
                 const std::int64_t* counts, std::size_t size, std::byte* to) {
  const auto pick_each = [&](auto known) {  // a size known beforehand is copied without a call
    const std::size_t bytes = known ? std::size_t{known} : size;
    std::byte* end = to;
    for (std::int64_t s = 0; s < steps; ++s)
      for (std::int64_t j = 0; j < counts[s]; ++j, end += bytes)
        std::memcpy(end, block + std::size_t(s * B + order[j]) * bytes, bytes);
  };
  if (size == 4) return pick_each(std::integral_constant<std::size_t, 4>{});
  if (size == 8) return pick_each(std::integral_constant<std::size_t, 8>{});
  pick_each(std::integral_constant<std::size_t, 0>{});
}

// The first index that is not in 0..limit-1, or -1.
template <class Integer>
std::int64_t find_outside(const Integer* indices, std::int64_t count, std::int64_t limit) {
  using Natural = std::make_unsigned_t<Integer>;  // what is negative is huge there
  const Natural last = Natural(limit) - 1;
  constexpr std::int64_t many = 1024;
  for (std::int64_t begin = 0; begin < count; begin += many) {
    const std::int64_t end = std::min(count, begin + many);
    Natural signs = 0;  // of i or last - i, where one of them is negative
    for (std::int64_t i = begin; i < end; ++i) signs |= Natural(indices[i]) | (last - Natural(indices[i]));
    if (Integer(signs) >= 0) continue;
    for (std::int64_t i = begin;; ++i)
      if (Natural(indices[i]) >= Natural(limit)) return i;
  }
  return -1;
}

// Index of the first (or last) row among `count` that holds a number that is not finite, or -1.
template <class Real>
std::int64_t find_nonfinite(Rows<const Real> rows, std::int64_t count, int n, bool from_end) {
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t j = from_end ? count - 1 - i : i;
    Real sum = 0;
    for (int r = 0; r < n; ++r) sum += rows[j][r] * Real(0);
    if (sum != 0) return j;
  }
  return -1;
}

// Adds up numbers first..last over the columns. False if a sum is not finite: then one of them may not be.
template <class Real>
bool column_sums(Rows<const Real> rows, std::int64_t columns, Range numbers, std::int64_t valid, double* sums) {
  bool finite = true;
  for (std::int64_t r = numbers.begin; r < numbers.end; r += lanes<Real>) {
    Vector<Real> chain[chains] = {};
    std::int64_t j = 0;
    for (; j + chains <= columns; j += chains)
      for (int k = 0; k < chains; ++k) chain[k] += load(rows[j + k] + r);
    for (; j < columns; ++j) chain[0] += load(rows[j] + r);
    const Vector<Real> sum = (chain[0] + chain[1]) + (chain[2] + chain[3]);
    for (std::int64_t i = r; i < std::min(valid, r + lanes<Real>); ++i) {
      if (sums) sums[i] += double(sum[i - r]);
      finite &= std::abs(sum[i - r]) <= std::numeric_limits<Real>::max();
    }
  }
  return finite;
}

inline void raise_to(std::atomic<std::int64_t>& most, std::int64_t value) {
  for (std::int64_t seen = most; seen < value && !most.compare_exchange_weak(seen, value);) {
  }
}

}  // namespace bptt
