#include "lyapunov.hpp"

#include "elimination.hpp"
#include "scaled.hpp"

namespace bptt {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

// Nats that steps taken together may spread: what is least is then right to eps e^12 = 4e-11. Planned are two thirds of
// that, since the next may spread further than the last; where they did, steps are taken one by one for a while.
constexpr double most_spread = 12, planned_spread = 8;
constexpr double most_steps = 16;  // that go together: numbers that grow n-fold at each stay in range
constexpr int rest = 16;

// Multiply-adds of a step below which threads would wait for one another longer than they work.
constexpr double worth_a_barrier = 1e6;

// Modified Gram-Schmidt: A = Q R. A becomes Q, and log diag R is added to log_r. Columns that are zero stay zero.
void orthonormalize(Team& team, int rank, Rows<double> A, double* log_r) {
  const auto normalize = [&](std::int64_t j) {
    const double norm = std::sqrt(dot(A[j], A[j], A.stride));
    log_r[j] += std::log(norm);
    if (norm > 0) multiply(1 / norm, A[j], A.stride);
  };
  if (rank == 0) normalize(0);
  for (std::int64_t j = 0; j + 1 < A.count; ++j) {
    team.barrier();
    for (std::int64_t c = j + 1; c < A.count; ++c) {
      if (c % team.size() != rank) continue;
      subtract(dot(A[j], A[c], A.stride), A[j], A[c], A.stride);
      if (c == j + 1) normalize(c);
    }
  }
  team.barrier();
}

// e for which the matrix times 2^-e has no number of 2 or more.
int exponent(const double* matrix, std::int64_t count) {
  constexpr int ways = 4, width = ways * lanes<double>;
  Vector<double> most[ways] = {};
  std::int64_t i = 0;
  for (; i + width <= count; i += width)
    for (int w = 0; w < ways; ++w) most[w] = greater(abs<double>(load(matrix + i + w * lanes<double>)), most[w]);
  double largest = 0;
  for (; i < count; ++i) largest = std::max(largest, std::fabs(matrix[i]));
  for (const Vector<double>& lane : most)
    for (int l = 0; l < lanes<double>; ++l) largest = std::max(largest, lane[l]);
  return largest > 0 && largest < infinity ? std::clamp(std::ilogb(largest), -1000, 1000) : 0;
}

// sum_j |row_j| x_j, x >= 0.
double sum_moduli(const double* row, const double* x, int n) {
  Vector<double> sums{};
  int j = 0;
  for (; j + lanes<double> <= n; j += lanes<double>) sums += abs<double>(load(row + j)) * load(x + j);
  double sum = 0;
  for (; j < n; ++j) sum += std::fabs(row[j]) * x[j];
  for (int l = 0; l < lanes<double>; ++l) sum += sums[l];
  return sum;
}

// What the threads of one call share.
class Growth {
 public:
  Growth(const StepJacobians& J, Rows<double> Q, double* log_r, int threads)
      : J_(J),
        Q_(Q),
        log_r_(log_r),
        W_(J.n, J.n),
        eliminate_(J.n, Q.count, J.singular, threads),
        other_(Q.count * Q.stride),
        scaled_(Q.count * Q.stride),
        summed_(Q.stride) {
    std::fill_n(summed_.data(), Q.stride, 0.0);
    for (int i = 0; i < threads; ++i) own_.emplace_back(Q.stride);
  }

  void operator()(Team& team, int rank) {
    Own& own = own_[std::size_t(rank)];
    if (!J_.one_each) take(team, rank, 0, own);
    Rows<double> basis = Q_, next{other_.data(), Q_.count, Q_.stride};
    eliminate_(team, rank, basis, weights(0, own));
    record(rank, 0);
    std::int64_t alive = eliminate_.alive();
    int planned = 1, patience = 0;
    for (std::int64_t t = 0; t < J_.steps;) {
      const std::int64_t steps = std::min<std::int64_t>(planned, J_.steps - t);
      double left_out = 0;
      for (std::int64_t s = 0; s < steps; ++s)
        left_out += step(team, rank, t + s, s > 0, s == 0 ? basis : next, next, own);
      eliminate_(team, rank, next, weights(t + steps, own), summed(team, rank, t + steps - 1));
      const double spread = eliminate_.spread();
      if (steps > 1 && (spread > most_spread || eliminate_.alive() < alive)) {  // too far: again, one by one
        planned = 1;
        patience = rest;
        continue;
      }
      record(rank, left_out);
      alive = eliminate_.alive();
      std::swap(basis, next);
      t += steps;
      if (patience > 0)
        --patience;
      else
        planned = int(std::clamp(planned_spread * double(steps) / spread, 1.0, most_steps));
    }
    orthonormalize(team, rank, basis, log_r_);
    if (basis.data != Q_.data && rank == 0) std::copy_n(basis.data, Q_.count * Q_.stride, Q_.data);
  }

 private:
  // What each thread has for itself.
  struct Own {
    explicit Own(std::int64_t length) : log_d(length), d(length), most(length) {}

    Buffer<double> log_d, d;
    Buffer<double> most;  // the largest number of each row of what its columns of a step were made from
    int exponent = 0;
  };

  void record(int rank, double left_out) const {
    if (rank == 0)
      for (std::int64_t j = 0; j < Q_.count; ++j) log_r_[j] += eliminate_.log_pivot(j) + left_out;
  }

  // log d of step t, padded; null where there is none.
  const double* weights(std::int64_t t, Own& own) const {
    if (!J_.log_d || t == J_.steps) return nullptr;
    std::copy_n(J_.log_d + t * J_.n, J_.n, own.log_d.data());
    std::fill_n(own.log_d.data() + J_.n, Q_.stride - J_.n, -infinity);
    return own.log_d.data();
  }

  void take(Team& team, int rank, std::int64_t t, Own& own) {
    const double* const matrix = J_.matrices + t * J_.n * J_.n;
    team.barrier();
    W_.pack(matrix, J_.n, 1, part(W_.panels(), 1, rank, team.size()));
    own.exponent = exponent(matrix, std::int64_t(J_.n) * J_.n);
    team.barrier();
  }

  // Y = J_t X / e^l on this thread's columns, with or without d. Returns l, such that no factor of J_t is above 2.
  double step(Team& team, int rank, std::int64_t t, bool with_d, Rows<double> X, Rows<double> Y, Own& own) {
    if (J_.one_each) take(team, rank, t, own);
    const double unit = std::ldexp(1, -own.exponent);
    double left_out = own.exponent * 0x1.62e42fefa39efp-1;
    std::fill_n(own.d.data(), Q_.stride, unit);
    if (const double* const log_d = with_d ? weights(t, own) : nullptr) {
      const double most = std::max(*std::max_element(log_d, log_d + J_.n), std::numeric_limits<double>::lowest());
      for (std::int64_t i = 0; i < Q_.stride; i += lanes<double>)
        store(own.d.data() + i, exp<double>(load(log_d + i) - most) * unit);
      left_out += most;
    }
    std::fill_n(own.most.data(), Q_.stride, 0.0);
    each_own_tile(Q_.count, team, rank, [&](std::int64_t first, std::int64_t columns) {
      for (std::int64_t c = first; c < first + columns; ++c)
        for (std::int64_t i = 0; i < Q_.stride; i += lanes<double>) {
          const Vector<double> x = load(X[c] + i) * load(own.d.data() + i);
          store(own.most.data() + i, greater(abs<double>(x), load(own.most.data() + i)));
          store(scaled_.data() + c * Q_.stride + i, x);
        }
    });
    for (std::int64_t q = 0; q < W_.panels(); q += W_.group)
      each_own_tile(Q_.count, team, rank, [&](std::int64_t c, std::int64_t columns) {
        W_.multiply_add({scaled_.data() + c * Q_.stride, columns, Q_.stride}, {}, Y.part(c, columns),
                        {q, std::min(q + W_.group, W_.panels())});
      });
    return left_out;
  }

  // The largest sums of moduli behind the numbers of each row that step t has made; null where nobody asks.
  const double* summed(Team& team, int rank, std::int64_t t) {
    if (eliminate_.graded()) return nullptr;
    team.barrier();
    if (rank == 0) {
      double* const most = own_[0].most.data();
      for (std::size_t i = 1; i < own_.size(); ++i)
        for (int r = 0; r < J_.n; ++r) most[r] = std::max(most[r], own_[i].most.data()[r]);
      const double* const matrix = J_.matrices + (J_.one_each ? t * J_.n * J_.n : 0);
      for (int i = 0; i < J_.n; ++i) summed_.data()[i] = sum_moduli(matrix + i * J_.n, most, J_.n);
    }
    return summed_.data();
  }

  const StepJacobians& J_;
  Rows<double> Q_;
  double* log_r_;
  PackedMatrix<double> W_;
  Elimination eliminate_;
  Buffer<double> other_, scaled_, summed_;
  std::vector<Own> own_;
};

}  // namespace

void grow(const StepJacobians& J, Rows<double> Q, double* log_r, int threads) {
  const double work = double(J.n) * J.n * double(Q.count);
  const int size = work < worth_a_barrier ? 1 : team_size(threads, work * double(J.steps));
  std::fill_n(log_r, Q.count, 0.0);
  Growth growth(J, Q, log_r, size);
  Team::run(size, [&](Team& team, int rank) {
    const FlushDenormals flush;
    growth(team, rank);
  });
}

}  // namespace bptt
