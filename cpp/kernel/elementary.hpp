// Elementary functions of a vector of numbers, lane by lane: no branch, no call, no table.
//
// Error bounds, in units of the last place of the result, hold on every level and over the whole range, subnormal
// arguments and results included:
//
//                   exp   expm1   log   log1p   tanh   logistic
//           float    2      2      1      2      5        2
//           double   2      2      1      2      5        2
//
// Infinities give the limits, nan gives nan, zeros keep their sign. Intermediate results are normal numbers wherever
// the result is one (on levels with fused operations), because a subnormal one costs a hundred cycles on some machines.
// Polynomials are minimax for the intervals stated beside them; the error stated is that of the function they
// approximate.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <limits>
#include <type_traits>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "simd.hpp"

namespace bptt {

template <class Real>
[[gnu::always_inline]] inline Vector<Real> select(Mask<Real> mask, Vector<Real> yes, Vector<Real> no) {
  return mask ? yes : no;
}

// The lesser and the greater of a and b, b where either is nan. Spelled out because GCC 12 makes a comparison and a
// blend of `a < b ? a : b`, three times the latency.
#if defined(__AVX512F__)
[[gnu::always_inline]] inline Vector<float> lesser(Vector<float> a, Vector<float> b) {
  return _mm512_maskz_min_ps(0xffff, a, b);
}
[[gnu::always_inline]] inline Vector<float> greater(Vector<float> a, Vector<float> b) {
  return _mm512_maskz_max_ps(0xffff, a, b);
}
[[gnu::always_inline]] inline Vector<double> lesser(Vector<double> a, Vector<double> b) {
  return _mm512_maskz_min_pd(0xff, a, b);
}
[[gnu::always_inline]] inline Vector<double> greater(Vector<double> a, Vector<double> b) {
  return _mm512_maskz_max_pd(0xff, a, b);
}
#elif defined(__AVX__)
[[gnu::always_inline]] inline Vector<float> lesser(Vector<float> a, Vector<float> b) { return _mm256_min_ps(a, b); }
[[gnu::always_inline]] inline Vector<float> greater(Vector<float> a, Vector<float> b) { return _mm256_max_ps(a, b); }
[[gnu::always_inline]] inline Vector<double> lesser(Vector<double> a, Vector<double> b) { return _mm256_min_pd(a, b); }
[[gnu::always_inline]] inline Vector<double> greater(Vector<double> a, Vector<double> b) { return _mm256_max_pd(a, b); }
#elif defined(__SSE2__)
[[gnu::always_inline]] inline Vector<float> lesser(Vector<float> a, Vector<float> b) { return _mm_min_ps(a, b); }
[[gnu::always_inline]] inline Vector<float> greater(Vector<float> a, Vector<float> b) { return _mm_max_ps(a, b); }
[[gnu::always_inline]] inline Vector<double> lesser(Vector<double> a, Vector<double> b) { return _mm_min_pd(a, b); }
[[gnu::always_inline]] inline Vector<double> greater(Vector<double> a, Vector<double> b) { return _mm_max_pd(a, b); }
#else
template <class V>
inline V lesser(V a, V b) {
  return a < b ? a : b;
}
template <class V>
inline V greater(V a, V b) {
  return a > b ? a : b;
}
#endif

template <class Real>
[[gnu::always_inline]] inline Vector<Real> at_most(Real limit, Vector<Real> x) {
  return lesser(broadcast(limit), x);
}

template <class Real>
[[gnu::always_inline]] inline Vector<Real> at_least(Real limit, Vector<Real> x) {
  return greater(broadcast(limit), x);
}

template <class Real>
inline constexpr Integer<Real> sign_bit = std::numeric_limits<Integer<Real>>::min();

template <class Real>
[[gnu::always_inline]] inline Vector<Real> abs(Vector<Real> x) {
  return bits<Vector<Real>>(bits<Mask<Real>>(x) & ~sign_bit<Real>);
}

// The modulus of `x` with the sign of `sign`.
template <class Real>
[[gnu::always_inline]] inline Vector<Real> with_sign(Vector<Real> x, Vector<Real> sign) {
  return bits<Vector<Real>>(bits<Mask<Real>>(x) | (bits<Mask<Real>>(sign) & sign_bit<Real>));
}

namespace detail {

template <class Real>
using Bits = Vector<std::make_unsigned_t<Integer<Real>>>;

template <class Real>
inline constexpr bool single = sizeof(Real) == 4;

template <class Real>
constexpr Real pick(float f, double d) {
  return single<Real> ? Real(f) : Real(d);
}

// x², but a negligible positive number where x² would be subnormal.
template <class Real>
[[gnu::always_inline]] inline Vector<Real> square(Vector<Real> x) {
#ifdef __FP_FAST_FMA
  return x * x + pick<Real>(0x1p-30f, 0x1p-60);
#else
  return x * x;
#endif
}

// c[first] + c[first + 1] x + ... (count terms) by Estrin's scheme: the chain is as long as the logarithm of the
// degree. powers[i] is x to the 2^i.
template <std::size_t first, std::size_t count, class Real, std::size_t N>
[[gnu::always_inline]] inline Vector<Real> estrin(const std::array<Real, N>& c, const Vector<Real>* powers) {
  if constexpr (count == 1) {
    return broadcast(c[first]);
  } else {
    constexpr std::size_t level = [] {
      std::size_t i = 0;
      while (std::size_t{2} << i < count) ++i;
      return i;
    }();
    constexpr std::size_t half = std::size_t{1} << level;
    return estrin<first + half, count - half>(c, powers) * powers[level] + estrin<first, half>(c, powers);
  }
}

template <class Real, std::size_t N>
[[gnu::always_inline]] inline Vector<Real> polynomial(const std::array<Real, N>& c, Vector<Real> x) {
  Vector<Real> powers[4];
  powers[0] = x;
  powers[1] = square<Real>(x);
  powers[2] = powers[1] * powers[1];
  powers[3] = powers[2] * powers[2];
  static_assert(N <= 16);
  return estrin<0, N>(c, powers);
}

template <class Real>
inline constexpr int mantissa_bits = std::numeric_limits<Real>::digits - 1;

template <class Real>
inline constexpr Integer<Real> exponent_bias = std::numeric_limits<Real>::max_exponent - 1;

// ln 2 in two parts; the first times any exponent is exact.
template <class Real>
inline constexpr Real ln2_high = pick<Real>(0x1.63p-1f, 0x1.62e42feep-1);
template <class Real>
inline constexpr Real ln2_low = pick<Real>(-0x1.bd0106p-13f, 0x1.a39ef35793c76p-33);

// x = k ln 2 + r with |r| <= ln 2 / 2. expm1(r) = r + r² q(r).
template <class Real>
struct Reduced {
  Vector<Real> r, q;
  Mask<Real> biased;  // k + exponent_bias in the low bits, ready to be shifted into an exponent
};

template <class Real>
[[gnu::always_inline]] inline Reduced<Real> reduce(Vector<Real> x) {
  // Adding 1.5 * 2^mantissa_bits rounds to an integer and leaves it in the low bits.
  constexpr Real rounder = Real(Integer<Real>{3} << (mantissa_bits<Real> - 1)) + Real(exponent_bias<Real>);
  constexpr Real log2_e = Real(0x1.71547652b82fep0);
  const Vector<Real> shifted = x * log2_e + rounder;
  const Vector<Real> k = shifted - rounder;
  const Vector<Real> r = (x - k * ln2_high<Real>)-k * ln2_low<Real>;
  // |r| <= 0.3468, relative error of expm1 2^-26.1 and 2^-55.6.
  if constexpr (single<Real>) {
    constexpr std::array<Real, 5> c{0.49999997f, 0.16666543f, 0.041667197f, 0.008366549f, 0.0013882683f};
    return {r, polynomial<Real>(c, r), bits<Mask<Real>>(shifted)};
  } else {
    constexpr std::array<Real, 10> c{0.5000000000000006,     0.16666666666666588,   0.041666666666576466,
                                     0.00833333333338968,    0.0013888888931668387, 0.0001984126971890553,
                                     2.4801505140421152e-05, 2.755740746484995e-06, 2.7626093858453487e-07,
                                     2.5053855820732578e-08};
    return {r, polynomial<Real>(c, r), bits<Mask<Real>>(shifted)};
  }
}

// exp for lowest <= x <= highest, where lowest gives 0 and highest infinity.
template <class Real>
inline constexpr Real exp_lowest = pick<Real>(-104.5f, -746.0);
template <class Real>
inline constexpr Real exp_highest = pick<Real>(89.0f, 710.0);

template <class Real>
[[gnu::always_inline]] inline Vector<Real> exp_within(Vector<Real> x) {
  const Reduced<Real> e = reduce<Real>(x);
  const Vector<Real> m = (e.q * e.r) * e.r + e.r + Real(1);
  // 2^k in two factors, neither of which is out of range: 2^(k-1) * 2, or 2^(k+63) * 2^-63 near the subnormal results.
  const Mask<Real> small = x < pick<Real>(-80, -700);
  const Mask<Real> exponent = e.biased - 1 + (small & 64);
  const Vector<Real> rest = select<Real>(small, broadcast(Real(0x1p-63)), broadcast(Real(2)));
  return m * bits<Vector<Real>>(exponent << mantissa_bits<Real>) * rest;
}

// exp(-|x|), but not below exp(-40) where x is positive: 1 + exp(-x) is 1 there, and the result no subnormal number.
template <class Real>
[[gnu::always_inline]] inline Vector<Real> decay(Vector<Real> x) {
  return exp_within<Real>(at_least<Real>(exp_lowest<Real>, -abs<Real>(at_most<Real>(Real(40), x))));
}

}  // namespace detail

template <class Real>
[[gnu::always_inline]] inline Vector<Real> exp(Vector<Real> x) {
  return detail::exp_within<Real>(
      at_most<Real>(detail::exp_highest<Real>, at_least<Real>(detail::exp_lowest<Real>, x)));
}

// exp(x) - 1 for x <= 0.
template <class Real>
[[gnu::always_inline]] inline Vector<Real> expm1(Vector<Real> x) {
  using namespace detail;
  const Reduced<Real> e = reduce<Real>(at_least<Real>(Real(-40), x));
  const Vector<Real> s = bits<Vector<Real>>(e.biased << mantissa_bits<Real>);
  return with_sign<Real>(s * ((e.q * e.r) * e.r + e.r) + (s - Real(1)), x);
}

// 1 / (1 + e) = 1 - e / (1 + e) for x >= 0 and e / (1 + e) = e - e e / (1 + e) below, with e = exp(-|x|).
template <class Real>
[[gnu::always_inline]] inline Vector<Real> logistic(Vector<Real> x) {
  const Vector<Real> e = detail::decay<Real>(x);
  const Vector<Real> base = select<Real>(x < Real(0), e, broadcast(Real(1)));
  return base - base * (e / (Real(1) + e));
}

// With t = tanh(x/2) = P / 2Q, tanh x = 2t / (1 + t²) = PQ / (PQ + (Q - P/2)²): never above 1, and an error of t counts
// only 1 / cosh x times, so that a short rational function serves the whole range.
template <class Real>
[[gnu::always_inline]] inline Vector<Real> tanh(Vector<Real> x) {
  using namespace detail;
  const Vector<Real> a = at_most<Real>(pick<Real>(9.5f, 19.5), abs<Real>(x));
  const Vector<Real> z = square<Real>(a);
  // t(x) = x p(x²) / 2 q(x²) with p = 1 + ..., q = 1 + ...; the coefficients are those of (p - 1) / x² and (q - 1) /
  // x². x in [0, 9.5] and [0, 19.5], relative error of tanh 2^-26.8 and 2^-59.1.
  Vector<Real> p, q;
  if constexpr (single<Real>) {
    p = polynomial<Real>(std::array{0.029757079f, 0.00011388883f}, z);
    q = polynomial<Real>(std::array{0.11309037f, 0.0012047932f, 1.221221e-06f}, z);
  } else {
    p = polynomial<Real>(std::array{0.03648638941758672, 0.00031967529857723174, 9.833991119756374e-07,
                                    1.12919040443291e-09, 4.071679456180907e-13, 2.062427336813177e-17},
                         z);
    q = polynomial<Real>(std::array{0.11981972275092005, 0.0019713188611539235, 1.001624953775836e-05,
                                    1.8926566052311592e-08, 1.2691941703496358e-11, 2.0870441348648888e-15},
                         z);
  }
  p = (a * z) * p + a;
  q = z * q + Real(1);
  const Vector<Real> product = p * q;
  const Vector<Real> difference = q - Real(0.5) * p;
  return with_sign<Real>(product / (difference * difference + product), x);
}

template <class Real>
[[gnu::always_inline]] inline Vector<Real> log(Vector<Real> x) {
  using namespace detail;
  using Unsigned = Bits<Real>;
  constexpr Real infinity = std::numeric_limits<Real>::infinity();
  constexpr Integer<Real> one = std::bit_cast<Integer<Real>>(Real(1));
  constexpr Integer<Real> root_half = std::bit_cast<Integer<Real>>(pick<Real>(0x1.6a09e6p-1f, 0x1.6a09e667f3bcdp-1));
  constexpr Real counter = Real(Integer<Real>{1} << mantissa_bits<Real>);  // an integer in its low bits is added to it
  constexpr Real unbiased = counter + Real(exponent_bias<Real>);

  // x = 2^k (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)).
  const Mask<Real> subnormal = x < std::numeric_limits<Real>::min();
  const Vector<Real> y = x * select<Real>(subnormal, broadcast(Real(0x1p54)), broadcast(Real(1)));
  const Mask<Real> shifted = bits<Mask<Real>>(y) + (one - root_half);
  const Mask<Real> exponent = bits<Mask<Real>>(bits<Unsigned>(shifted) >> mantissa_bits<Real>);
  const Vector<Real> k = bits<Vector<Real>>(exponent | std::bit_cast<Integer<Real>>(counter)) -
                         select<Real>(subnormal, broadcast(unbiased + 54), broadcast(unbiased));
  const Mask<Real> mantissa = shifted & ((Integer<Real>{1} << mantissa_bits<Real>)-1);
  const Vector<Real> f = bits<Vector<Real>>(mantissa + root_half) - Real(1);

  // log(1 + f) = 2 atanh s = 2s + s³ r(s²), |s| <= 0.1716, relative error 2^-30.2 and 2^-59.5; 2s = f - s f, and s f =
  // f²/2 - s f²/2.
  const Vector<Real> s = f / (f + Real(2));
  const Vector<Real> z = square<Real>(s);
  Vector<Real> r;
  if constexpr (single<Real>) {
    r = polynomial<Real>(std::array{0.66666776f, 0.3997755f, 0.29871628f}, z);
  } else {
    r = polynomial<Real>(std::array{0.6666666666666734, 0.39999999999414465, 0.28571428742484495, 0.22222198558743467,
                                    0.18183565293911177, 0.15314020534556508, 0.14796300260570328},
                         z);
  }
  const Vector<Real> half_square = Real(0.5) * f * f;
  const Vector<Real> low = s * (half_square + z * r) + k * ln2_low<Real>;
  const Vector<Real> value = k * ln2_high<Real> - ((half_square - low) - f);

  const Vector<Real> limit = select<Real>(x == Real(0), broadcast(-infinity), broadcast(infinity - infinity));
  return select<Real>(x <= Real(0), limit, select<Real>(x < infinity, value, x));
}

// log(1 + x) for 0 <= x <= 1.
template <class Real>
[[gnu::always_inline]] inline Vector<Real> log1p(Vector<Real> x) {
  using namespace detail;
  // 2 atanh s = 2s + s³ r(s²), 0 <= s <= 1/3, relative error 2^-27.7 and 2^-59.4; 2s = x - s x.
  const Vector<Real> s = x / (x + Real(2));
  const Vector<Real> z = square<Real>(s);
  Vector<Real> r;
  if constexpr (single<Real>) {
    r = polynomial<Real>(std::array{0.6666642f, 0.40021527f, 0.2800181f, 0.28011984f}, z);
  } else {
    r = polynomial<Real>(std::array{0.6666666666666631, 0.40000000000155117, 0.285714285481179, 0.22222223953642783,
                                    0.18181744479354442, 0.15386548386076432, 0.13301121455386133, 0.12104944461787462,
                                    0.08344972564452305, 0.17009756370036655},
                         z);
  }
  return x - s * (x - z * r);
}

}  // namespace bptt
