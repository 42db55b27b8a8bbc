// The sums written out, rims that must not be touched, and bits for every number of threads.
#include "kernel/jacobian.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <random>
#include <utility>
#include <vector>

using namespace bptt;

namespace {

std::vector<double> normal(std::int64_t count, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<double> draw;
  std::vector<double> numbers(std::size_t(count), 0.0);
  for (double& x : numbers) x = draw(engine);
  return numbers;
}

constexpr double canary = 0.25;

// A run of random slopes and sources, and what both ways make of it.
struct Problem {
  Problem(int n_, int steps_, int q_)
      : n(n_), steps(steps_), q(q_), W(normal(n * n, 1)), d(normal(steps * n, 2)), v(normal(steps * q, 3)) {
    for (double& w : W) w /= std::sqrt(double(n));
  }

  Run run() const { return {n, steps, W.data(), d.data(), {v.data(), nullptr}, q, single}; }

  // J by the chain from P = I, on top of the canaries; one more number follows them.
  std::vector<double> by_chain(int threads, std::vector<double>* product = nullptr) const {
    const std::int64_t length = row_length<double>(n);
    const Buffer<double> P(n * length);
    std::fill_n(P.data(), n * length, 0.0);
    for (int i = 0; i < n; ++i) P.data()[i * length + i] = 1;
    std::vector<double> J(std::size_t(n * n * q + 1), canary);
    CHECK(jacobian_by_chain(run(), {P.data(), n, length}, J.data(), true, threads));
    if (product) product->assign(P.data(), P.data() + n * length);
    return J;
  }

  // J by the recursion from zero, a row for each weight and one row of canaries.
  std::vector<double> by_recursion(int threads) const {
    const std::int64_t length = row_length<double>(n), rows = n * q;
    std::vector<double> J(std::size_t((rows + 1) * length), 0.0);
    std::fill(J.end() - length, J.end(), canary);
    CHECK(jacobian_by_recursion(run(), {J.data(), rows, length}, threads) == -1);
    return J;
  }

  int n, steps, q, single = 0;
  std::vector<double> W, d, v;
};

}  // namespace

TEST_CASE("chain and recursion are the same sum, and touch nothing else") {
  for (const int n : {1, 2, 7, 8, 9, 15, 16, 17, 33})
    for (const int q : {1, 3, 8, 17})
      for (const int steps : {1, 2, 63, 64, 65, 130}) {
        if (steps > 65 && n * q > 150) continue;
        CAPTURE(n);
        CAPTURE(q);
        CAPTURE(steps);
        const Problem problem(n, steps, q);
        std::vector<double> P;
        const auto chain = problem.by_chain(1, &P), recursion = problem.by_recursion(1);
        const std::int64_t length = row_length<double>(n);
        double worst = 0, size = 0;
        for (int i = 0; i < n; ++i)
          for (int c = 0; c < n * q; ++c) {
            const double one = chain[std::size_t(i * n * q + c)] - canary,
                         other = recursion[std::size_t(c * length + i)];
            worst = std::max(worst, std::abs(one - other));
            size = std::max(size, std::abs(other));
          }
        CHECK(worst <= 1e-13 * (size + canary));
        CHECK(chain.back() == canary);
        for (std::int64_t i = 0; i < length; ++i) CHECK(recursion[std::size_t(n * q * length + i)] == canary);
        for (int r = 0; r < n; ++r)
          for (std::int64_t i = n; i < length; ++i) CHECK(P[std::size_t(r * length + i)] == 0);
      }
}

TEST_CASE("float32 rounds the steps it is asked for, and no other") {
  constexpr int steps = 240, q = 5;  // more than two blocks
  for (const int n : {1, 9, 40})
    for (const int single : {1, 30, 110, 240}) {
      CAPTURE(n);
      CAPTURE(single);
      Problem problem(n, steps, q);
      const std::vector<double> u = normal(n, 4);
      double square = 0;
      for (const double u_i : u) square += u_i * u_i;
      for (int i = 0; i < n * n; ++i)  // a reflection, and slopes about 1: P keeps its size
        problem.W[std::size_t(i)] = (i / n == i % n) - 2 * u[std::size_t(i / n)] * u[std::size_t(i % n)] / square;
      for (double& d : problem.d) d = 1 + 0.03 * std::cos(d);
      const auto with_sources = [&](int begin, int end) {
        Problem part = problem;
        for (int k = 0; k < steps; ++k)
          for (int b = 0; b < q && (k < begin || k >= end); ++b) part.v[std::size_t(k * q + b)] = 0;
        const auto exact = part.by_chain(1);
        part.single = single;
        return std::pair(exact, part.by_chain(1));
      };
      const auto [late, late_too] = with_sources(single, steps);
      CHECK(late == late_too);
      const auto [early, rounded] = with_sources(0, single);
      double worst = 0, size = 0;
      for (std::size_t i = 0; i < early.size(); ++i) {
        worst = std::max(worst, std::abs(rounded[i] - early[i]));
        size = std::max(size, std::abs(early[i] - canary));
      }
      CHECK(worst > 0);
      CHECK(worst <= steps * 0x1p-24 * size);
    }
}

TEST_CASE("the number of threads changes no bit of a Jacobian") {
  for (const int n : {9, 40, 72}) {
    Problem problem(n, 70, 19);
    problem.single = n / 2;
    const auto chain = problem.by_chain(1), recursion = problem.by_recursion(1);
    for (const int threads : {2, 3, 5}) {
      CHECK(problem.by_chain(threads) == chain);
      CHECK(problem.by_recursion(threads) == recursion);
    }
  }
}

TEST_CASE("what is not finite is found wherever it stands") {
  for (const int n : {1, 5, 9, 17}) {
    Problem problem(n, 12, 3);
    problem.v[std::size_t(7 * 3 + 2)] = INFINITY;
    const std::int64_t length = row_length<double>(n);
    std::vector<double> P(std::size_t(n * length), 0.0), J(std::size_t(n * n * 3), 0.0),
        turned(std::size_t(3 * n * length), 0.0);
    for (int i = 0; i < n; ++i) P[std::size_t(i * length + i)] = 1;
    CHECK_FALSE(jacobian_by_chain(problem.run(), {P.data(), n, length}, J.data(), false, 1));
    CHECK(jacobian_by_recursion(problem.run(), {turned.data(), 3 * n, length}, 1) == 7);
  }
}
