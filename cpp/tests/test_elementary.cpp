// The bounds that elementary.hpp states, against long double; and what the activations promise of limits, tails and
// memory. Their values are compared with more digits in tests/test_activation.py.
#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

#include "kernel/activation.hpp"

using namespace bptt;

namespace {

template <class Real>
using Limits = std::numeric_limits<Real>;
template <class Real>
constexpr Real infinity = Limits<Real>::infinity();
template <class Real>
constexpr Real not_a_number = Limits<Real>::quiet_NaN();

constexpr Activation activations[] = {Activation::identity, Activation::tanh,       Activation::logistic,
                                      Activation::relu,     Activation::leaky_relu, Activation::elu,
                                      Activation::softplus, Activation::softsign};

// f of each x, a register at a time.
template <class Real, class F>
std::vector<Real> map(F f, const std::vector<Real>& x) {
  std::vector<Real> y(x.size());
  for (std::size_t i = 0; i < x.size(); i += lanes<Real>) {
    const std::size_t width = std::min(x.size() - i, std::size_t(lanes<Real>));
    Real block[lanes<Real>] = {};
    std::copy_n(x.begin() + i, width, block);
    store<Real>(block, f(load<Real>(block)));
    std::copy_n(block, width, y.begin() + i);
  }
  return y;
}

// Numbers of every exponent, subnormal ones included, and as many again where an exponential neither vanishes nor
// overflows: of both signs, those in [lowest, highest].
template <class Real>
std::vector<Real> sweep(Real lowest, Real highest) {
  using Bits = std::make_unsigned_t<Integer<Real>>;
  constexpr int mantissa = Limits<Real>::digits - 1;
  constexpr Bits exponents = 2 * Limits<Real>::max_exponent - 1;
  std::mt19937_64 random(1);
  std::vector<Real> x;
  const auto add = [&](Real v) {
    for (const Real u : {v, -v})
      if (lowest <= u && u <= highest) x.push_back(u);
  };
  for (Bits exponent = 0; exponent < exponents; ++exponent) {
    const Bits base = exponent << mantissa;
    add(std::bit_cast<Real>(base));
    for (Bits i = 0; i < 100'000 / exponents; ++i)
      add(std::bit_cast<Real>(Bits(base | Bits(random() >> (64 - mantissa)))));
  }
  std::uniform_real_distribution<Real> uniform(0, 1);
  const Real range = Real(1.1) * std::log(Limits<Real>::max());
  for (int i = 0; i < 30'000; ++i)
    for (const Real scale : {Real(1), Real(20), range}) add(scale * uniform(random));
  return x;
}

// |y - exact| in units of the last place of exact. Infinity counts as the number that would come after the largest.
template <class Real>
double error(Real y, long double exact) {
  const long double beyond = std::ldexp(1.0L, Limits<Real>::max_exponent);
  const auto clip = [=](long double v) { return std::isnan(v) ? v : std::clamp(v, -beyond, beyond); };
  const int exponent = exact == 0 ? Limits<Real>::min_exponent : std::ilogb(exact) + 1;
  const int bounded = std::clamp(exponent, Limits<Real>::min_exponent, Limits<Real>::max_exponent);
  return double(std::abs(clip(y) - clip(exact)) / std::ldexp(1.0L, bounded - Limits<Real>::digits));
}

// The greatest error of f over a sweep.
template <class Real, class F, class G>
void check_bound(double bound, Real lowest, Real highest, F f, G exact) {
  static_assert(Limits<long double>::digits >= 64);
  const std::vector<Real> x = sweep(lowest, highest), y = map<Real>(f, x);
  REQUIRE(x.size() > 50'000);
  double worst = 0;
  Real at = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double e = error(y[i], exact(static_cast<long double>(x[i])));
    if (!(e <= worst)) {  // nan too
      worst = e;
      at = x[i];
    }
  }
  CAPTURE(at);
  CHECK(worst <= bound);
  CHECK(worst > 0.5);  // no function here is rounded correctly: a sweep that finds no more has missed the hard numbers
}

// f of a few numbers is what is listed, to the sign of zero; nan equals nan.
template <class Real, class F>
void check_values(F f, const std::vector<Real>& x, const std::vector<Real>& wanted) {
  const std::vector<Real> y = map<Real>(f, x);
  for (std::size_t i = 0; i < x.size(); ++i) {
    CAPTURE(x[i]);
    if (std::isnan(wanted[i])) {
      CHECK(std::isnan(y[i]));
    } else {
      CHECK(y[i] == wanted[i]);
      CHECK(std::signbit(y[i]) == std::signbit(wanted[i]));
    }
  }
}

// sigma(h) of any number of arguments.
template <class Real>
std::vector<Real> activated(Activation activation, const std::vector<Real>& h) {
  std::vector<Real> a(h.size());
  activate(activation, h.data(), a.data(), std::int64_t(h.size()));
  return a;
}

}  // namespace

TEST_CASE_TEMPLATE("the stated bounds hold over the whole range", Real, float, double) {
  const Real most = Limits<Real>::max();
  const auto in = [](Real lowest, Real highest, double bound, auto f, auto exact) {
    check_bound<Real>(bound, lowest, highest, f, exact);
  };
  SUBCASE("exp") {
    in(
        -most, most, 1.5, [](auto x) { return exp<Real>(x); }, [](long double x) { return std::exp(x); });
  }
  SUBCASE("expm1") {
    in(
        -most, 0, 1.5, [](auto x) { return expm1<Real>(x); }, [](long double x) { return std::expm1(x); });
  }
  SUBCASE("log") {
    in(
        Limits<Real>::denorm_min(), most, 1, [](auto x) { return log<Real>(x); },
        [](long double x) { return std::log(x); });
  }
  SUBCASE("log1p") {
    in(
        0, 1, 1.5, [](auto x) { return log1p<Real>(x); }, [](long double x) { return std::log1p(x); });
  }
  SUBCASE("tanh") {
    in(
        -most, most, 3, [](auto x) { return tanh<Real>(x); }, [](long double x) { return std::tanh(x); });
  }
  SUBCASE("logistic") {
    in(
        -most, most, 2, [](auto x) { return logistic<Real>(x); },
        [](long double x) { return x < 0 ? std::exp(x) / (1 + std::exp(x)) : 1 / (1 + std::exp(-x)); });
  }
}

TEST_CASE_TEMPLATE("infinities give the limits, nan gives nan, zeros keep their sign", Real, float, double) {
  const Real inf = infinity<Real>, nan = not_a_number<Real>, most = Limits<Real>::max();
  const Real least = Limits<Real>::denorm_min(), zero = 0;
  check_values<Real>([](auto x) { return exp<Real>(x); }, {inf, -inf, nan, zero, -zero, most, -most, least},
                     {inf, 0, nan, 1, 1, inf, 0, 1});
  check_values<Real>([](auto x) { return expm1<Real>(x); }, {-inf, nan, zero, -zero, -most, -least},
                     {-1, nan, zero, -zero, -1, -least});
  check_values<Real>([](auto x) { return log<Real>(x); }, {inf, -inf, nan, zero, -zero, 1, -1, -least},
                     {inf, nan, nan, -inf, -inf, zero, nan, nan});
  check_values<Real>([](auto x) { return log1p<Real>(x); }, {nan, zero, least}, {nan, zero, least});
  check_values<Real>([](auto x) { return tanh<Real>(x); }, {inf, -inf, nan, zero, -zero, most, -most, least, -least},
                     {1, -1, nan, zero, -zero, 1, -1, least, -least});
  check_values<Real>([](auto x) { return logistic<Real>(x); }, {inf, -inf, nan, zero, -zero, most, -most},
                     {1, 0, nan, Real(0.5), Real(0.5), 1, 0});
}

TEST_CASE_TEMPLATE("tanh is odd and at most 1, and 1 from where it rounds to it", Real, float, double) {
  const std::vector<Real> x = sweep<Real>(0, Limits<Real>::max());
  std::vector<Real> opposite(x);
  for (Real& v : opposite) v = -v;
  const auto f = [](auto v) { return tanh<Real>(v); };
  const std::vector<Real> y = map<Real>(f, x), z = map<Real>(f, opposite);
  const Real saturated = Real(0.5) * (Limits<Real>::digits + 2) * std::log(Real(2));  // 1 - tanh is eps / 4 there
  int wrong = 0;
  for (std::size_t i = 0; i < x.size(); ++i) wrong += z[i] != -y[i] || y[i] > 1 || (x[i] > saturated && y[i] != 1);
  CHECK(wrong == 0);
}

TEST_CASE_TEMPLATE("activations at infinity, nan and zero", Real, float, double) {
  const Real inf = infinity<Real>, nan = not_a_number<Real>, log_2 = std::log(Real(2));
  const auto values = [&](Activation activation, std::vector<Real> wanted) {
    const std::vector<Real> a = activated<Real>(activation, {-inf, inf, 0});
    CAPTURE(int(activation));
    for (int i = 0; i < 3; ++i) CHECK(error<Real>(a[i], wanted[i]) <= (activation == Activation::softplus ? 2 : 0));
    CHECK(std::isnan(activated<Real>(activation, {nan})[0]));
  };
  values(Activation::identity, {-inf, inf, 0});
  values(Activation::tanh, {-1, 1, 0});
  values(Activation::logistic, {0, 1, Real(0.5)});
  values(Activation::relu, {0, inf, 0});
  values(Activation::leaky_relu, {-inf, inf, 0});
  values(Activation::elu, {-1, inf, 0});
  values(Activation::softplus, {0, inf, log_2});
  values(Activation::softsign, {-1, 1, 0});
}

TEST_CASE_TEMPLATE("slopes at infinity and at the kinks", Real, float, double) {
  const Real inf = infinity<Real>;
  const auto slopes = [&](Activation activation, std::vector<Real> wanted) {
    const std::vector<Real> h = {-inf, inf, 0};
    std::vector<Real> d(3), log_d(3);
    derivative(activation, h.data(), d.data(), log_d.data(), 3);
    CAPTURE(int(activation));
    CHECK(d == wanted);
    for (int i = 0; i < 3; ++i)
      CHECK((log_d[i] == std::log(d[i]) || std::abs(log_d[i] - std::log(d[i])) <= 4 * Limits<Real>::epsilon()));
  };
  const Real slope = leaky_slope<Real>;
  slopes(Activation::identity, {1, 1, 1});
  slopes(Activation::tanh, {0, 0, 1});
  slopes(Activation::logistic, {0, 0, Real(0.25)});
  slopes(Activation::relu, {0, 1, 0});
  slopes(Activation::leaky_relu, {slope, 1, slope});
  slopes(Activation::elu, {0, 1, 1});
  slopes(Activation::softplus, {0, 1, Real(0.5)});
  slopes(Activation::softsign, {0, 0, 1});
}

TEST_CASE_TEMPLATE("any count, in place or not, and nothing beyond it", Real, float, double) {
  const int longest = 3 * line<Real> + 1;
  const Real guard = 77;
  std::vector<Real> h(longest);
  for (int i = 0; i < longest; ++i) h[i] = Real(0.37) * Real(i - longest / 2);
  for (const Activation activation : activations) {
    const std::vector<Real> whole = activated<Real>(activation, h);
    std::vector<Real> whole_d(longest), whole_log_d(longest);
    derivative(activation, h.data(), whole_d.data(), whole_log_d.data(), longest);
    for (int count = 0; count <= longest; ++count) {
      std::vector<Real> a(longest + 1, guard), d(a), log_d(a), in_place(h), alone(a);
      activate(activation, h.data(), a.data(), count);
      activate(activation, in_place.data(), in_place.data(), count);
      derivative(activation, h.data(), d.data(), log_d.data(), count);
      derivative<Real>(activation, h.data(), nullptr, alone.data(), count);
      CAPTURE(int(activation));
      CAPTURE(count);
      const auto check = [&](const std::vector<Real>& got, const std::vector<Real>& wanted, auto beyond) {
        CHECK(std::equal(got.begin(), got.begin() + count, wanted.begin()));
        CHECK(std::equal(got.begin() + count, got.end(), beyond));
      };
      const std::vector<Real> guards(longest + 1, guard);
      check(a, whole, guards.begin());
      check(in_place, whole, h.begin() + count);
      check(d, whole_d, guards.begin());
      check(log_d, whole_log_d, guards.begin());
      check(alone, whole_log_d, guards.begin());
    }
  }
}

TEST_CASE_TEMPLATE("the slope from the activation is the slope from the argument", Real, float, double) {
  const int count = 16 * line<Real>;
  for (const Activation activation : activations) {
    std::vector<Real> h(count), slope(count), d(count);
    for (int i = 0; i < count; ++i) {
      h[i] = Real(i - count / 2) * 5 / count;
      d[i] = Real(1 + i % 3);
    }
    const std::vector<Real> a = activated<Real>(activation, h), before = d;
    derivative<Real>(activation, h.data(), slope.data(), nullptr, count);
    multiply_derivative(activation, a.data(), d.data(), count);
    for (int i = 0; i < count; ++i) {
      CAPTURE(int(activation));
      CAPTURE(h[i]);
      // a is within 3 ulp of sigma(h), and a slope of at least 0.02 moves by at most twice that.
      CHECK(std::abs(d[i] - before[i] * slope[i]) <= 10 * Limits<Real>::epsilon() * before[i]);
    }
  }
}
