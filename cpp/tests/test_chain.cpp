#include "kernel/chain.hpp"

#include <doctest/doctest.h>

#include <random>
#include <vector>

#include "kernel/spectral_norm.hpp"

using namespace bptt;

namespace {

std::mt19937_64 engine(1);

double normal() { return std::normal_distribution<double>()(engine); }

// Rows of n numbers padded to a line; what lies beyond n is zero.
struct Padded {
  Padded(std::int64_t count, int n) : stride(row_length<double>(n)), numbers(std::size_t(count * stride)) {}
  Rows<double> rows() { return {numbers.data(), std::ssize(numbers) / stride, stride}; }
  std::int64_t stride;
  std::vector<double> numbers;
};

// A chain of n x n factors with slopes in (0.3, 1), and bundles of `height` rows.
struct Problem {
  Problem(int n_, std::int64_t L, std::vector<std::int64_t> stops_, std::int64_t height_, std::int64_t lags_)
      : n(n_),
        lags(lags_),
        height(height_),
        stops(std::move(stops_)),
        W(std::size_t(n * n)),
        d(L, n),
        rows(std::ssize(stops) * height, n),
        exponents(std::size_t(std::ssize(stops) * height)),
        logs(std::size_t(std::ssize(stops) * lags), -1.0),
        leads(std::ssize(stops), n) {
    for (double& w : W) w = normal();
    for (std::int64_t k = 0; k < L; ++k)
      for (int i = 0; i < n; ++i) d.rows()[k][i] = 0.3 + 0.7 * std::fabs(std::sin(double(k * n + i)));
    for (std::int64_t r = 0; r < rows.rows().count; ++r)
      for (int i = 0; i < n; ++i) rows.rows()[r][i] = height == n ? double(r % n == i) : normal();
    for (std::int64_t s = 0; s < std::ssize(stops); ++s)
      for (int i = 0; i < n; ++i) leads.rows()[s][i] = normal();
  }

  Factors factors() { return {n, 0, d.rows().count, W.data(), d.rows(), {}}; }
  Bundles bundles() { return {std::ssize(stops), height, stops.data(), lags, rows.rows(), exponents.data()}; }
  Norms norms(bool spectral) { return {logs.data(), nullptr, spectral ? leads.rows() : Rows<double>{}}; }

  int n;
  std::int64_t lags, height;
  std::vector<std::int64_t> stops;
  std::vector<double> W;
  Padded d, rows;
  std::vector<std::int64_t> exponents;
  std::vector<double> logs;
  Padded leads;
};

// v M_{stop-1} ... M_{stop-lag}, unscaled.
std::vector<double> moved(Problem& p, std::vector<double> v, std::int64_t stop, std::int64_t lag) {
  for (std::int64_t k = stop - 1; k >= stop - lag; --k) {
    std::vector<double> next(v.size());
    for (int i = 0; i < p.n; ++i)
      for (int j = 0; j < p.n; ++j) next[j] += v[i] * p.W[i * p.n + j];
    for (int j = 0; j < p.n; ++j) v[j] = next[j] * p.d.rows()[k][j];
  }
  return v;
}

double euclidean(const std::vector<double>& v) {
  double sum = 0;
  for (const double x : v) sum += x * x;
  return std::sqrt(sum);
}

}  // namespace

TEST_CASE("rows meet the factors of their own window, and no others") {
  for (const int n : {1, 5, 8, 17}) {
    Problem p(n, 12, {0, 3, 3, 7, 12}, 1, 5);
    std::vector<std::vector<double>> begin;
    for (std::int64_t s = 0; s < 5; ++s) begin.emplace_back(p.rows.rows()[s], p.rows.rows()[s] + n);
    advance(p.factors(), p.bundles(), p.norms(false), 2);
    for (std::int64_t s = 0; s < 5; ++s)
      for (std::int64_t lag = 0; lag < p.lags; ++lag) {
        const double got = p.logs[s * p.lags + lag];
        if (lag == 0 || lag > p.stops[s])
          CHECK(got == -1);  // untouched
        else
          CHECK(got == doctest::Approx(std::log(euclidean(moved(p, begin[s], p.stops[s], lag)))).epsilon(1e-12));
      }
  }
}

TEST_CASE("what moves is the same for every number of threads, bit for bit, and however the factors are cut") {
  for (const int n : {7, 24, 33})
    for (const bool spectral : {false, true}) {
      const Problem start(n, 150, {40, 90, 150}, n, 100);
      Problem one = start;
      advance(one.factors(), one.bundles(), one.norms(spectral), 1);
      for (const int threads : {2, 3, 4}) {
        Problem many = start;
        advance(many.factors(), many.bundles(), many.norms(spectral), threads);
        CHECK(many.logs == one.logs);
        CHECK(many.rows.numbers == one.rows.numbers);
        CHECK(many.exponents == one.exponents);
      }
      Problem pieces = start;
      for (const auto& [first, count] : {std::pair{77, 73}, {5, 72}, {0, 5}}) {
        Factors f = pieces.factors();
        f.first = first;
        f.count = count;
        f.d = pieces.d.rows().from(first);
        advance(f, pieces.bundles(), pieces.norms(spectral), 2);
      }
      for (std::size_t i = 0; i < one.logs.size(); ++i)
        CHECK(pieces.logs[i] == doctest::Approx(one.logs[i]).epsilon(1e-12));
    }
}

TEST_CASE("a chain grows and shrinks beyond every range, and a dead one is an exact zero") {
  for (const double factor : {1e-290, 1e290}) {
    Problem p(3, 2000, {2000}, 3, 2001);
    p.W = {0, factor, 0, 0, 0, factor, factor, 0, 0};
    std::fill(p.d.numbers.begin(), p.d.numbers.end(), 1.0);
    advance(p.factors(), p.bundles(), p.norms(true), 1);
    CHECK(p.logs[2000] == doctest::Approx(2000 * std::log(factor)).epsilon(1e-14));
  }
  Problem dead(9, 40, {40}, 9, 41);
  std::fill_n(dead.d.rows()[20], 9, 0.0);
  advance(dead.factors(), dead.bundles(), dead.norms(true), 1);
  CHECK(std::isfinite(dead.logs[19]));
  for (int lag = 20; lag <= 40; ++lag) CHECK(dead.logs[lag] == -std::numeric_limits<double>::infinity());
}

TEST_CASE("slopes below float64 come with exponents") {
  Problem p(4, 6, {6}, 1, 7), scaled = p;
  std::vector<std::int64_t> e(std::size_t(6 * p.d.stride), 0);
  for (int i = 0; i < 4; ++i) {
    e[std::size_t(3 * p.d.stride + i)] = -70000;  // all slopes of k = 3, and one of k = 1
    e[std::size_t(p.d.stride)] = -300;
  }
  p.d.rows()[1][0] *= 0x1p-300;
  advance(p.factors(), p.bundles(), p.norms(false), 1);
  Factors f = scaled.factors();
  f.e = {e.data(), 6, p.d.stride};
  advance(f, scaled.bundles(), scaled.norms(false), 1);
  for (int lag = 1; lag <= 6; ++lag)
    CHECK(scaled.logs[lag] == doctest::Approx(p.logs[lag] - (lag >= 3 ? 70000 * std::log(2.0) : 0)).epsilon(1e-14));
}

TEST_CASE("a matrix for each step: n^k for matrices of ones") {
  Problem p(5, 8, {8}, 5, 9);
  const std::vector<double> matrices(8 * 25, 1.0);
  const Factors f{5, 100, 8, matrices.data(), {}, {}};
  p.stops = {108};
  advance(f, p.bundles(), p.norms(false), 2);
  CHECK(p.logs[8] == doctest::Approx(8 * std::log(5.0)));
}

TEST_CASE("gradients are the sums of outer products along the way") {
  for (const int n : {1, 6, 17}) {
    Problem p(n, 90, {2, 50, 90}, 1, 1 << 20);
    for (double& w : p.W) w /= 4;  // what is compared here is not scaled
    Padded a(90, n);
    for (std::int64_t k = 0; k < 90; ++k)
      for (int i = 0; i < n; ++i) a.rows()[k][i] = normal();
    std::vector<double> gradients(std::size_t(3 * n * n), 0.5), expected = gradients;
    for (int s = 0; s < 3; ++s)
      for (std::int64_t lag = 1; lag <= p.stops[s]; ++lag) {
        const auto v = moved(p, {p.rows.rows()[s], p.rows.rows()[s] + n}, p.stops[s], lag);
        for (int i = 0; i < n; ++i)
          for (int j = 0; j < n; ++j) expected[(s * n + i) * n + j] += v[i] * a.rows()[p.stops[s] - lag][j];
      }
    accumulate(p.factors(), p.bundles(), a.rows(), gradients.data(), 3);
    for (std::size_t i = 0; i < gradients.size(); ++i)
      CHECK(gradients[i] == doctest::Approx(expected[i]).epsilon(1e-11));
  }
}

TEST_CASE("the spectral norm is right whatever stands out, and whatever the start") {
  // M = H diag(sigma) G of r rows and n columns, H (or I: then the rows are graded like sigma) and G reflections.
  const auto check = [](std::vector<double> sigma, int n, bool graded) {
    const int r = int(sigma.size());
    const double size = euclidean(sigma);
    for (double& s : sigma) s /= size;
    SpectralNorm norm(r, n);
    const Rows<double> M = norm.matrix();
    std::vector<double> u(std::size_t(r), 0.0), v(std::size_t(n), 0.0);
    for (double& x : u) x = normal();
    for (double& x : v) x = normal();
    const double uu = euclidean(u) * euclidean(u), vv = euclidean(v) * euclidean(v);
    for (int i = 0; i < r; ++i) {
      std::fill_n(M[i], M.stride, 0.0);
      for (int k = 0; k < r; ++k)
        for (int j = 0; j < n; ++j)
          M[i][j] += (double(i == k) - (graded ? 0 : 2 * u[i] * u[k] / uu)) * sigma[k] *
                     (double(j == k) - 2 * v[j] * v[k] / vv);
    }
    const double largest = *std::max_element(sigma.begin(), sigma.end());
    for (int start = 0; start < 3; ++start) {
      for (int i = 0; i < r; ++i) norm.lead()[i] = start == 0 ? normal() : start == 1 ? 1.0 : 0.0;
      CHECK(std::fabs(std::sqrt(norm.square(1.0)) / largest - 1) < 1e-12 + 8 * n * 2.3e-16);
    }
  };
  for (const int n : {1, 2, 3, 4, 5, 8, 13, 33, 64})
    for (const int r : {n, (n + 1) / 2, (n + 7) / 8})
      for (const bool graded : {false, true}) {
        std::vector<double> sigma(std::size_t(r), 1.0);
        check(sigma, n, graded);  // all equal
        for (int i = 0; i < r; ++i) sigma[i] = 1 / (1.0 + i);
        check(sigma, n, graded);
        for (const double rate :
             {0.6, 3.0, 20.0}) {  // one stands out, more or less; the last far below its square root
          for (int i = 0; i < r; ++i) sigma[i] = std::exp(-rate * (i == 1 ? 0.5 / rate : i));
          check(sigma, n, graded);
        }
        for (int i = 0; i < r; ++i) sigma[i] = i < 2 ? 1 - 1e-9 * i : 0;
        check(sigma, n, graded);  // two that cannot be told apart, and no more
        for (int i = 0; i < r; ++i) sigma[i] = i == r - 1 ? 3 : std::fabs(normal());
        check(sigma, n, graded);
      }
}
