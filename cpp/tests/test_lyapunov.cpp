// Elimination: the factors that it promises, volumes, dead columns; and bits for every number of threads.
#include "kernel/lyapunov.hpp"

#include <doctest/doctest.h>

#include <random>

#include "kernel/elimination.hpp"

using namespace bptt;

namespace {

// A random matrix by columns in padded rows, and row weights.
struct Matrix {
  Matrix(int n_, int k_, double spread)
      : n(n_),
        k(k_),
        length(row_length<double>(n)),
        columns(std::size_t(k * length)),
        weights(std::size_t(length), -INFINITY) {
    std::mt19937 engine(unsigned(n * 100 + k));
    std::normal_distribution<double> draw;
    std::exponential_distribution<double> fall;
    for (int j = 0; j < k; ++j)
      for (int i = 0; i < n; ++i) columns[std::size_t(j * length + i)] = draw(engine);
    for (int i = 0; i < n; ++i) weights[std::size_t(i)] = -spread * fall(engine);
  }

  Rows<double> rows() { return {columns.data(), k, length}; }
  double& at(int i, int j) { return columns[std::size_t(j * length + i)]; }

  // Returns the logarithms of the pivots.
  std::vector<double> eliminate(int threads, bool weighted, bool singular = false) {
    Elimination elimination(n, k, singular, threads);
    Team::run(threads,
              [&](Team& team, int rank) { elimination(team, rank, rows(), weighted ? weights.data() : nullptr); });
    std::vector<double> logs;
    for (int j = 0; j < k; ++j) logs.push_back(elimination.log_pivot(j));
    return logs;
  }

  int n, k;
  std::int64_t length;
  std::vector<double> columns, weights;
};

// log |det| by elimination with complete pivoting in extended precision.
double log_volume(Matrix A) {
  std::vector<std::vector<long double>> a;
  for (int i = 0; i < A.n; ++i) {
    a.emplace_back();
    for (int j = 0; j < A.n; ++j) a.back().push_back(A.at(i, j));
  }
  long double total = 0;
  for (std::size_t s = 0; s < a.size(); ++s) {
    std::size_t row = s, column = s;
    for (std::size_t i = s; i < a.size(); ++i)
      for (std::size_t j = s; j < a.size(); ++j)
        if (std::abs(a[i][j]) > std::abs(a[row][column])) row = i, column = j;
    std::swap(a[s], a[row]);
    for (auto& r : a) std::swap(r[s], r[column]);
    total += std::log(std::abs(a[s][s]));
    for (std::size_t i = s + 1; i < a.size(); ++i) {
      const long double ratio = a[i][s] / a[s][s];
      for (std::size_t j = s; j < a.size(); ++j) a[i][j] -= ratio * a[s][j];
    }
  }
  return double(total);
}

}  // namespace

TEST_CASE("elimination leaves a unit triangle without numbers above 1.07") {
  for (const int n : {1, 2, 7, 8, 9, 16, 17, 33, 64, 100})
    for (const int k : {1, n / 2, n})
      for (const bool weighted : {false, true}) {
        if (!k) continue;
        CAPTURE(n);
        CAPTURE(k);
        CAPTURE(weighted);
        Matrix M(n, k, 50);
        M.eliminate(1, weighted);
        std::vector<char> taken(std::size_t(n), 0);
        for (int j = 0; j < k; ++j) {
          int pivots = 0;
          for (std::int64_t i = 0; i < M.length; ++i) {
            const double x = std::abs(M.columns[std::size_t(j * M.length + i)]);
            CHECK(x <= 1.07);
            if (i >= n || taken[std::size_t(i)]) CHECK(x == 0);
          }
          // its pivot is the row that is 1 here and 0 in all later columns
          for (int i = 0; i < n; ++i) {
            if (taken[std::size_t(i)] || M.at(i, j) != 1) continue;
            bool last = true;
            for (int c = j + 1; c < k; ++c) last = last && M.at(i, c) == 0;
            if (!last || pivots++) continue;
            taken[std::size_t(i)] = 1;
          }
          CHECK(pivots >= 1);
        }
      }
}

TEST_CASE("pivots multiply to the volume, whatever the weights") {
  for (const int n : {1, 2, 5, 8, 17, 40})
    for (const double spread : {0.0, 5.0, 5000.0}) {
      Matrix A(n, n, spread);
      double wanted = log_volume(A), total = 0;
      for (int i = 0; i < n; ++i) wanted += A.weights[std::size_t(i)];
      for (const double log : A.eliminate(1, true)) total += log;
      CHECK(std::abs(total - wanted) <= 1e-12 * (n + std::abs(wanted)));
    }
}

TEST_CASE("columns in the span of those before are dead, and zero") {
  for (const int n : {2, 9, 33}) {
    Matrix A(n, n, 0);
    for (int i = 0; i < n; ++i) A.at(i, n / 2) = 3 * A.at(i, 0);
    const auto logs = A.eliminate(1, false);
    for (int j = 0; j < n; ++j) CHECK((logs[std::size_t(j)] == -INFINITY) == (j == n / 2));
    for (int i = 0; i < n; ++i) CHECK(A.at(i, n / 2) == 0);
    Matrix B(n, n, 0);
    B.weights[0] = -INFINITY;  // a row that counts as 0: one column fewer
    const auto weighted = B.eliminate(1, true);
    for (int j = 0; j < n; ++j) CHECK((weighted[std::size_t(j)] == -INFINITY) == (j == n - 1));
    Matrix C(n, n, 0.5);  // weights that differ little
    for (int i = 0; i < n; ++i) C.at(i, n - 1) = 3 * C.at(i, 0);
    const auto uneven = C.eliminate(1, true, true);
    for (int j = 0; j < n; ++j) CHECK((uneven[std::size_t(j)] == -INFINITY) == (j == n - 1));
  }
}

TEST_CASE("the number of threads changes no bit of an elimination, nor of a basis carried along") {
  for (const int n : {9, 40, 100})
    for (const bool weighted : {false, true}) {
      Matrix alone(n, n, 3);
      const auto logs = alone.eliminate(1, weighted);
      for (const int threads : {2, 3, 5}) {
        Matrix shared(n, n, 3);
        CHECK(shared.eliminate(threads, weighted) == logs);
        CHECK(shared.columns == alone.columns);
        Matrix one(n, n, 0.5), more(n, n, 0.5);
        CHECK(more.eliminate(threads, weighted, true) == one.eliminate(1, weighted, true));
        CHECK(more.columns == one.columns);
      }
    }
  const int n = 72, steps = 20;
  Matrix W(n, n, 0), slopes(n, steps, 0);
  std::vector<double> matrix, log_d;
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < n; ++j) matrix.push_back(W.at(i, j));
  for (int t = 0; t < steps; ++t)
    for (int i = 0; i < n; ++i) log_d.push_back(-std::abs(slopes.at(i, t)));
  const StepJacobians J{n, steps, matrix.data(), false, log_d.data(), false};
  std::vector<double> one;
  for (const int threads : {1, 2, 3}) {
    Matrix Q(n, n, 0);
    std::fill(Q.columns.begin(), Q.columns.end(), 0.0);
    for (int i = 0; i < n; ++i) Q.at(i, i) = 1;
    std::vector<double> log_r(std::size_t(n), 0.0);
    grow(J, Q.rows(), log_r.data(), threads);
    log_r.insert(log_r.end(), Q.columns.begin(), Q.columns.end());
    if (one.empty()) one = log_r;
    CHECK(log_r == one);
  }
}
