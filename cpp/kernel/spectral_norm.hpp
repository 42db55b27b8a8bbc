// The spectral norm (largest singular value) of a matrix with at most as many rows as columns, with a bound on its
// error.
//
// First by power iteration on M M^T, from a direction that is nearly right when M is a chain with one more factor on
// its right. With v a unit vector, theta^2 = |Mv|^2 and r = M^T M v - theta^2 v, what M does on the complement of v has
// a square norm of at most phi = |M|_F^2 - theta^2. M^T M is then a 2 x 2 form of theta^2, |r| and at most phi, so that
// where phi < theta^2
//
//     theta^2 <= sigma_max^2 <= theta^2 + |r|^2 / (theta^2 - phi),
//
// and the iteration ends when the bound does. Where the largest singular value does not stand out enough for that, it
// comes from the whole spectrum of M^T M: Householder's reduction to a tridiagonal form, and Sturm's test at many
// points at once. Either way sigma_max is right to 1e-12 of itself and a few n roundings.
#pragma once

#include <optional>

#include "packed_matrix.hpp"
#include "scaled.hpp"

namespace bptt {

class SpectralNorm {
 public:
  SpectralNorm(int rows, int columns);

  // Rows of the matrix, padded with zeros: the caller fills them.
  Rows<double> matrix() const { return {matrix_.data(), rows_, length_}; }

  // (rows) A direction to start from, which the caller fills in; left nearer to the first left singular vector.
  double* lead() const { return vectors_.data(); }

  // sigma_max^2, from |M|_F^2 in [1, 4), or 0.
  double square(double frobenius);

 private:
  std::optional<double> by_iteration(double frobenius);
  double by_reduction(double frobenius);
  void reduce();
  void eliminate(int first, const double* v, const double* q, const double* u, double* p);
  double largest_eigenvalue(double least, double most) const;

  int rows_;
  std::int64_t length_;
  Buffer<double> matrix_, gram_, vectors_;
  PackedMatrix<double> packed_;
};

}  // namespace bptt
