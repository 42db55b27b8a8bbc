#include "spectral_norm.hpp"

namespace bptt {
namespace {

inline constexpr double bound = 1e-12;       // of the error of sigma_max^2, relative
inline constexpr double negligible = 1e-44;  // squares of numbers in M M^T, where |M|_F is at least 1
inline constexpr int most_iterations = 8;    // about the price of the reduction

// sum_i c_i row_i of the rows of M.
void combine(Rows<const double> M, const double* c, double* result, std::int64_t length) {
  constexpr int ways = 4;
  std::fill_n(result, length, 0.0);
  std::int64_t i = 0;
  for (; i + ways <= M.count; i += ways)
    for (std::int64_t j = 0; j < length; j += lanes<double>) {
      Vector<double> sum = load(result + j);
#pragma GCC unroll 4
      for (int w = 0; w < ways; ++w) sum += load(M[i + w] + j) * broadcast(c[i + w]);
      store(result + j, sum);
    }
  for (; i < M.count; ++i)
    for (std::int64_t j = 0; j < length; j += lanes<double>)
      store(result + j, load(result + j) + load(M[i] + j) * broadcast(c[i]));
}

// The products of v with the rows of M.
void dots(Rows<const double> M, const double* v, double* result, std::int64_t length) {
  for (std::int64_t i = 0; i < M.count; ++i) result[i] = dot(M[i], v, length);
}

}  // namespace

SpectralNorm::SpectralNorm(int rows, int columns)
    : rows_(rows),
      length_(row_length<double>(columns)),
      matrix_(rows * length_),
      gram_(rows * length_),
      vectors_(7 * length_),
      packed_(rows, columns) {
  std::fill_n(matrix_.data(), rows * length_, 0.0);
  std::fill_n(vectors_.data(), 7 * length_, 0.0);
}

double SpectralNorm::square(double frobenius) {
  if (rows_ == 1 || frobenius == 0 || !std::isfinite(frobenius)) return frobenius;
  const std::optional<double> found = by_iteration(frobenius);
  return found ? *found : by_reduction(frobenius);
}

std::optional<double> SpectralNorm::by_iteration(double frobenius) {
  double *u = lead(), *v = u + length_, *back = v + length_;
  const Rows<double> M = matrix();
  combine(M, u, v, length_);
  for (int i = 0; i < most_iterations; ++i) {
    const double norm = std::sqrt(dot(v, v, length_));
    if (!(norm > 0)) return {};
    for (std::int64_t j = 0; j < length_; ++j) v[j] /= norm;
    dots(M, v, u, length_);
    combine(M, u, back, length_);
    const double theta2 = dot(u, u, length_), phi = frobenius - theta2;
    double rest = 0;
    for (std::int64_t j = 0; j < length_; ++j) rest += (back[j] - theta2 * v[j]) * (back[j] - theta2 * v[j]);
    if (phi < theta2 && rest <= bound * theta2 * (theta2 - phi)) return theta2;
    if (phi >= theta2 && i > 0) return {};
    std::swap(v, back);
  }
  return {};
}

double SpectralNorm::by_reduction(double frobenius) {
  const Rows<double> M = matrix();
  packed_.pack(M.data, length_, 1, {0, packed_.panels()});
  packed_.multiply_add(M, {}, {gram_.data(), rows_, length_});
  reduce();
  return largest_eigenvalue(frobenius / rows_, frobenius);
}

// Leaves the diagonal, and the squares of what stands beside it, of a tridiagonal matrix with the eigenvalues of M M^T.
//
// Each reflection I - v v^T / h makes of the rows and columns that are left G - v q^T - q v^T. It is applied while the
// next one's product G v is taken, so that every number is read and written once for each column that leaves.
void SpectralNorm::reduce() {
  double *diagonal = lead() + length_, *beside2 = diagonal + length_;
  double *v = beside2 + length_, *q = v + length_, *next = q + length_, *p = next + length_;
  std::fill_n(v, 2 * length_, 0.0);
  for (int j = 0; j < rows_; ++j) {
    double* row = gram_.data() + j * length_;
    for (int i = j; i < rows_; ++i) row[i] -= v[j] * q[i] + q[j] * v[i];
    diagonal[j] = row[j];
    if (j == rows_ - 1) break;
    std::fill_n(next, length_, 0.0);
    std::copy(row + j + 1, row + rows_, next + j + 1);
    const double first = std::exchange(next[j + 1], 0.0), tail = dot(next, next, length_);
    double h = 0;
    beside2[j] = first * first;
    if (tail > negligible) {
      beside2[j] += tail;
      const double alpha = first > 0 ? -std::sqrt(beside2[j]) : std::sqrt(beside2[j]);
      next[j + 1] = first - alpha;
      h = beside2[j] - alpha * first;
    }
    eliminate(j + 1, v, q, next, p);
    const double K = h > 0 ? dot(next, p, length_) / (2 * h * h) : 0;
    for (int i = 0; i < rows_; ++i) q[i] = h > 0 ? p[i] / h - K * next[i] : 0;
    std::swap(v, next);
  }
}

// For the rows from `first` on: G -= v q^T + q v^T, then p = G u.
void SpectralNorm::eliminate(int first, const double* v, const double* q, const double* u, double* p) {
  constexpr int ways = 4;
  const std::int64_t from = first / line<double> * line<double>, end = row_length<double>(rows_);
  std::fill_n(p, first, 0.0);
  int i = first;
  const auto pass = [&](auto count) {
    constexpr int N = count;
    double* row[N];
    Vector<double> vi[N], qi[N], sum[N] = {};
#pragma GCC unroll 4
    for (int w = 0; w < N; ++w) {
      row[w] = gram_.data() + (i + w) * length_;
      vi[w] = broadcast(v[i + w]);
      qi[w] = broadcast(q[i + w]);
    }
    for (std::int64_t j = from; j < end; j += lanes<double>) {
      const Vector<double> vj = load(v + j), qj = load(q + j), uj = load(u + j);
#pragma GCC unroll 4
      for (int w = 0; w < N; ++w) {
        const Vector<double> g = load(row[w] + j) - vi[w] * qj - qi[w] * vj;
        store(row[w] + j, g);
        sum[w] += g * uj;
      }
    }
#pragma GCC unroll 4
    for (int w = 0; w < N; ++w) p[i + w] = total(sum[w]);
  };
  for (; i + ways <= rows_; i += ways) pass(std::integral_constant<int, ways>{});
  for (; i < rows_; ++i) pass(std::integral_constant<int, 1>{});
}

// The largest eigenvalue of the tridiagonal matrix, known to lie between `least` and `most`. x lies above it exactly if
// all pivots of T - x I are negative (Sturm); as many x are tried at once as keep the units busy.
double SpectralNorm::largest_eigenvalue(double least, double most) const {
  constexpr int vectors = 4, points = vectors * lanes<double>;
  const double *diagonal = lead() + length_, *beside2 = diagonal + length_;
  double low = least, high = most * (1 + 1e-12);
  while (high - low > 0x1p-50 * high) {
    alignas(row_bytes) double at[points];
    for (int i = 0; i < points; ++i) at[i] = low + (high - low) * (i + 1) / (points + 1);
    Vector<double> x[vectors], pivot[vectors];
    Mask<double> below[vectors];
#pragma GCC unroll 4
    for (int i = 0; i < vectors; ++i) {
      x[i] = load(at + i * lanes<double>);
      pivot[i] = diagonal[0] - x[i];
      below[i] = pivot[i] >= 0.0;
    }
    for (int j = 1; j < rows_; ++j)
#pragma GCC unroll 4
      for (int i = 0; i < vectors; ++i) {
        pivot[i] = diagonal[j] - x[i] - beside2[j - 1] / pivot[i];
        below[i] |= pivot[i] >= 0.0;
      }
    int least_above = points;
    for (int i = points - 1; i >= 0 && !below[i / lanes<double>][i % lanes<double>]; --i) least_above = i;
    const double new_low = least_above > 0 ? at[least_above - 1] : low;
    high = least_above < points ? at[least_above] : high;
    if (low == new_low && least_above == points) break;
    low = new_low;
  }
  return high;
}

}  // namespace bptt
