// Rows that move back through time: v P(k,t) = v P(k+1,t) M_k for k = t-1, t-2, ..., their norms, and the gradients
// they make.
#pragma once

#include "scaled.hpp"

namespace bptt {

// Factors M_k of a chain, for k = first .. first + count - 1: W diag(d_k 2^e_k), or a matrix for each k.
struct Factors {
  int n;
  std::int64_t first, count;
  const double* matrices;      // W (n, n); without d (count, n, n)
  Rows<const double> d;        // (count) at least 2^-512, or 0, or with an exponent
  Rows<const std::int64_t> e;  // (count); absent: 0

  bool share_one() const { return bool(d); }
};

// Bundles of `height` rows that move together: all rows of a matrix P (height n), or one row vector.
struct Bundles {
  std::int64_t count;
  std::int64_t height;
  const std::int64_t* stops;  // (count) t of each, not decreasing
  std::int64_t lags;          // bundle s meets the factors k = stops[s] - 1, ..., stops[s] - lags + 1
  Rows<double>
      rows;  // (count * height) in range (scaled.hpp); moved. What has met its last factor is left as it may be
  std::int64_t* exponents;  // (count * height); moved

  std::int64_t size() const { return count * height; }
};

// What is recorded at every factor: norms[s * lags + stops[s] - k] = log norm of bundle s after M_k, + offsets[k -
// first].
struct Norms {
  double* logs;           // (count, lags); null: nothing is recorded
  const double* offsets;  // (factors.count); null: 0
  Rows<double> leads;  // (count) where present, norms are spectral (spectral_norm.hpp), else Frobenius: directions to
                       // start from, such as were left by the factor before; moved
};

// Moves the bundles through the factors, which are finite, last factor first.
void advance(const Factors& factors, const Bundles& bundles, const Norms& norms, int threads);

// The same for bundles of height 1, and gradients[s] += sum_k v_k^T a_{k-1}^T, v_k the row after M_k.
//   a: (factors.count) a_{k-1} for each factor;  gradients: (count, n, n)
void accumulate(const Factors& factors, const Bundles& bundles, Rows<const double> a, double* gradients, int threads);

}  // namespace bptt
