// Elementary functions of a vector of numbers, lane by lane: no branch, no call, no table.
//
// Error bounds, in units of the last place of the result, on every level and over the whole range, subnormal arguments
// and results included:
//
//   exp 1.5     expm1 1.5     log 1     log1p 1.5     tanh 3     logistic 2
//
// Infinities give the limits, nan gives nan, and zeros keep their sign. The polynomials are minimax on the intervals
// stated beside them, for the relative error of the function they serve, which is stated too: float first, then double.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <limits>
#include <type_traits>

#include "simd.hpp"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace bptt {

// The lesser and the greater of a and b; b where either is nan. Of `a < b ? a : b` GCC 12 makes a comparison and a
// blend, three times the latency. (maskz: the plain AVX-512 forms warn of an uninitialised operand.)
#if defined(__AVX512F__)
[[gnu::always_inline]] inline Vector<float> lesser(Vector<float> a, Vector<float> b) {
  return _mm512_maskz_min_ps(0xffff, a, b);
}
[[gnu::always_inline]] inline Vector<double> lesser(Vector<double> a, Vector<double> b) {
  return _mm512_maskz_min_pd(0xff, a, b);
}
[[gnu::always_inline]] inline Vector<float> greater(Vector<float> a, Vector<float> b) {
  return _mm512_maskz_max_ps(0xffff, a, b);
}
[[gnu::always_inline]] inline Vector<double> greater(Vector<double> a, Vector<double> b) {
  return _mm512_maskz_max_pd(0xff, a, b);
}
#elif defined(__AVX__)
[[gnu::always_inline]] inline Vector<float> lesser(Vector<float> a, Vector<float> b) { return _mm256_min_ps(a, b); }
[[gnu::always_inline]] inline Vector<double> lesser(Vector<double> a, Vector<double> b) { return _mm256_min_pd(a, b); }
[[gnu::always_inline]] inline Vector<float> greater(Vector<float> a, Vector<float> b) { return _mm256_max_ps(a, b); }
[[gnu::always_inline]] inline Vector<double> greater(Vector<double> a, Vector<double> b) { return _mm256_max_pd(a, b); }
#elif defined(__SSE2__)
[[gnu::always_inline]] inline Vector<float> lesser(Vector<float> a, Vector<float> b) { return _mm_min_ps(a, b); }
[[gnu::always_inline]] inline Vector<double> lesser(Vector<double> a, Vector<double> b) { return _mm_min_pd(a, b); }
[[gnu::always_inline]] inline Vector<float> greater(Vector<float> a, Vector<float> b) { return _mm_max_ps(a, b); }
[[gnu::always_inline]] inline Vector<double> greater(Vector<double> a, Vector<double> b) { return _mm_max_pd(a, b); }
#else
template <class V>
[[gnu::always_inline]] inline V lesser(V a, V b) {
  return a < b ? a : b;
}
template <class V>
[[gnu::always_inline]] inline V greater(V a, V b) {
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
[[gnu::always_inline]] inline Vector<Real> select(Mask<Real> mask, Vector<Real> yes, Vector<Real> no) {
  return mask ? yes : no;
}

template <class Real>
inline constexpr Integer<Real> sign_bit = std::numeric_limits<Integer<Real>>::min();

template <class Real>
[[gnu::always_inline]] inline Vector<Real> abs(Vector<Real> x) {
  return bits<Vector<Real>>(bits<Mask<Real>>(x) & ~sign_bit<Real>);
}

// x, negative where `sign` is.
template <class Real>
[[gnu::always_inline]] inline Vector<Real> with_sign(Vector<Real> x, Vector<Real> sign) {
  return bits<Vector<Real>>(bits<Mask<Real>>(x) | (bits<Mask<Real>>(sign) & sign_bit<Real>));
}

namespace detail {

template <class Real>
inline constexpr bool single = sizeof(Real) == 4;

template <class Real>
constexpr Real pick(float f, double d) {
  return single<Real> ? Real(f) : Real(d);
}

template <class Real>
inline constexpr int mantissa_bits = std::numeric_limits<Real>::digits - 1;
template <class Real>
inline constexpr int exponent_bias = std::numeric_limits<Real>::max_exponent - 1;

// x², or a negligible number in place of one so small that it would be subnormal, hence slow.
template <class Real>
[[gnu::always_inline]] inline Vector<Real> square(Vector<Real> x) {
#ifdef __FP_FAST_FMA
  return x * x + pick<Real>(0x1p-30f, 0x1p-60);
#else
  return x * x;
#endif
}

// c[first] + c[first + 1] x + ... + c[first + count - 1] x^(count - 1), where powers[i] is x to the 2^i. Estrin's
// scheme: the chain of operations is as long as the logarithm of count. The later terms take the longer part, so that
// the first few are added last and the fewest powers are needed.
template <std::size_t first, std::size_t count, class Real, std::size_t N>
[[gnu::always_inline]] inline Vector<Real> estrin(const std::array<Real, N>& c, const Vector<Real>* powers) {
  if constexpr (count == 1) {
    return broadcast(c[first]);
  } else {
    constexpr std::size_t split = std::bit_ceil(count - std::bit_ceil(count) / 2);
    constexpr int power = std::bit_width(split) - 1;
    return estrin<first + split, count - split>(c, powers) * powers[power] + estrin<first, split>(c, powers);
  }
}

template <class Real, std::size_t N>
[[gnu::always_inline]] inline Vector<Real> polynomial(const std::array<Real, N>& c, Vector<Real> x) {
  static_assert(N <= 16);
  Vector<Real> powers[4];
  powers[0] = x;
  powers[1] = square<Real>(x);
  powers[2] = powers[1] * powers[1];
  powers[3] = powers[2] * powers[2];
  return estrin<0, N>(c, powers);
}

// The integer nearest to a number of modulus below 2^(mantissa_bits - 1), less the bias.
template <class Real>
struct Whole {
  Vector<Real> value;
  Mask<Real> biased;  // value + exponent_bias in the low bits

  [[gnu::always_inline]] explicit Whole(Vector<Real> x) {
    // Numbers of this size have no bits for a fraction: adding rounds, and leaves the integer in the low bits.
    constexpr Real rounder = Real(Integer<Real>{3} << (mantissa_bits<Real> - 1)) + exponent_bias<Real>;
    const Vector<Real> sum = x + rounder;
    value = sum - rounder;
    biased = bits<Mask<Real>>(sum);
  }

  // 2^value, for normal results.
  [[gnu::always_inline]] Vector<Real> power_of_two() const { return bits<Vector<Real>>(biased << mantissa_bits<Real>); }
};

template <class Real>
inline constexpr Real log2_e = Real(0x1.71547652b82fep0);

// ln 2 in two parts; the first times any exponent is exact.
template <class Real>
inline constexpr Real ln2_high = pick<Real>(0x1.63p-1f, 0x1.62e42feep-1);
template <class Real>
inline constexpr Real ln2_low = pick<Real>(-0x1.bd0106p-13f, 0x1.a39ef35793c76p-33);

// x = k ln 2 + r.
template <class Real>
struct Reduced {
  Whole<Real> k;
  Vector<Real> r;

  [[gnu::always_inline]] explicit Reduced(Vector<Real> x)
      : k(x * log2_e<Real>), r((x - k.value * ln2_high<Real>)-k.value * ln2_low<Real>) {}
};

// q with expm1(r) = r + r² q, |r| <= 0.3468: 2^-26.1, 2^-55.6.
template <class Real>
[[gnu::always_inline]] inline Vector<Real> expm1_quotient(Vector<Real> r) {
  if constexpr (single<Real>)
    return polynomial<Real>(std::array{0.49999997f, 0.16666543f, 0.041667197f, 0.008366549f, 0.0013882683f}, r);
  else
    return polynomial<Real>(
        std::array{0.5000000000000006, 0.16666666666666588, 0.041666666666576466, 0.00833333333338968,
                   0.0013888888931668387, 0.0001984126971890553, 2.4801505140421152e-05, 2.755740746484995e-06,
                   2.7626093858453487e-07, 2.5053855820732578e-08},
        r);
}

// m 2^k for m around 1, whether or not 2^k is a number.
#if defined(__AVX512F__)
[[gnu::always_inline]] inline Vector<float> scale(Vector<float> m, const Whole<float>& k) {
  return _mm512_maskz_scalef_ps(0xffff, m, k.value);
}
[[gnu::always_inline]] inline Vector<double> scale(Vector<double> m, const Whole<double>& k) {
  return _mm512_maskz_scalef_pd(0xff, m, k.value);
}
#else
template <class Real>
[[gnu::always_inline]] inline Vector<Real> scale(Vector<Real> m, const Whole<Real>& k) {
  // In two factors that are: 2^(k-1) * 2, or 2^(k+63) * 2^-63 where the product is nearly subnormal.
  const Mask<Real> small = k.value < pick<Real>(-100, -1000);
  const Mask<Real> biased = k.biased - 1 + (small & 64);
  const Vector<Real> rest = select<Real>(small, broadcast(Real(0x1p-63)), broadcast(Real(2)));
  return m * bits<Vector<Real>>(biased << mantissa_bits<Real>) * rest;
}
#endif

// The exponential is 0 from here down.
template <class Real>
inline constexpr Real exp_lowest = pick<Real>(-104.5f, -746.0);

// exp(x) for x >= exp_lowest, as long as it is finite, and a little further.
template <class Real>
[[gnu::always_inline]] inline Vector<Real> exp_above_lowest(Vector<Real> x) {
  const Reduced<Real> e(x);
  return scale(expm1_quotient<Real>(e.r) * square<Real>(e.r) + e.r + Real(1), e.k);
}

}  // namespace detail

template <class Real>
[[gnu::always_inline]] inline Vector<Real> exp(Vector<Real> x) {
  using namespace detail;
  return exp_above_lowest<Real>(at_most<Real>(pick<Real>(89.0f, 710.0), at_least<Real>(exp_lowest<Real>, x)));
}

// exp(-|x|), except where x > 40: not below exp(-40) there, which vanishes beside x or 1 and is no subnormal number.
template <class Real>
[[gnu::always_inline]] inline Vector<Real> decay(Vector<Real> x) {
  using namespace detail;
  return exp_above_lowest<Real>(at_least<Real>(exp_lowest<Real>, -abs<Real>(at_most<Real>(Real(40), x))));
}

// exp(x) - 1 for x <= 0.
template <class Real>
[[gnu::always_inline]] inline Vector<Real> expm1(Vector<Real> x) {
  using namespace detail;
  const Reduced<Real> e(at_least<Real>(Real(-40), x));
  const Vector<Real> s = e.k.power_of_two();
  const Vector<Real> m = (expm1_quotient<Real>(e.r) * e.r) * e.r + e.r;
  return with_sign<Real>(s * m + (s - Real(1)), x);
}

// With e = exp(-|x|): 1 / (1 + e) = 1 - e / (1 + e), or e / (1 + e) = e - e e / (1 + e) for negative x.
template <class Real>
[[gnu::always_inline]] inline Vector<Real> logistic(Vector<Real> x) {
  const Vector<Real> e = decay<Real>(x);
  const Vector<Real> base = select<Real>(x < Real(0), e, broadcast(Real(1)));
  return base - base * (e / (Real(1) + e));
}

// With -2|x| = k ln 2 + 2r, s = 2^k and R = tanh r: tanh |x| = ((1 - s) - (1 + s) R) / ((1 + s) - (1 - s) R). For small
// |x| that is -R, and it never exceeds 1, because rounding keeps the order of numerator and denominator.
template <class Real>
[[gnu::always_inline]] inline Vector<Real> tanh(Vector<Real> x) {
  using namespace detail;
  const Vector<Real> a = at_most<Real>(pick<Real>(9.5f, 19.5), abs<Real>(x));
  const Whole<Real> k(a * (-2 * log2_e<Real>));
#ifdef __FP_FAST_FMA
  // One part of ln 2 is enough: k times its error acts on the result only s times.
  const Vector<Real> r = -a - k.value * Real(0x1.62e42fefa39efp-2);
#else
  const Vector<Real> r = (-a - k.value * (ln2_high<Real> / 2)) - k.value * (ln2_low<Real> / 2);
#endif
  const Vector<Real> s = k.power_of_two(), z = square<Real>(r);
  // R = r + r³ q(r²), |r| <= 0.1735: 2^-32.5, 2^-57.7.
  Vector<Real> q;
  if constexpr (single<Real>)
    q = polynomial<Real>(std::array{-0.33333322f, 0.13331176f, -0.0527248f}, z);
  else
    q = polynomial<Real>(std::array{-0.33333333333332477, 0.13333333332778863, -0.05396825277358027,
                                    0.021869370087471092, -0.00885728781819251, 0.003444579677159429},
                         z);
  const Vector<Real> R = (z * q) * r + r;
  const Vector<Real> difference = Real(1) - s, sum = Real(1) + s;
  return with_sign<Real>((difference - sum * R) / (sum - difference * R), x);
}

template <class Real>
[[gnu::always_inline]] inline Vector<Real> log(Vector<Real> x) {
  using namespace detail;
  using Unsigned = Vector<std::make_unsigned_t<Integer<Real>>>;
  constexpr Real infinity = std::numeric_limits<Real>::infinity();
  constexpr Integer<Real> one = std::bit_cast<Integer<Real>>(Real(1));
  constexpr Integer<Real> root_half = std::bit_cast<Integer<Real>>(pick<Real>(0x1.6a09e6p-1f, 0x1.6a09e667f3bcdp-1));
  constexpr Integer<Real> mantissa = (Integer<Real>{1} << mantissa_bits<Real>)-1;
  constexpr Real counter = Real(mantissa + 1);  // an integer in the low bits of this is added to it

  // x = 2^k (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)).
  const Mask<Real> subnormal = x < std::numeric_limits<Real>::min();
  const Vector<Real> y = x * select<Real>(subnormal, broadcast(Real(0x1p54)), broadcast(Real(1)));
  const Mask<Real> shifted = bits<Mask<Real>>(y) + (one - root_half);
  const Mask<Real> biased = bits<Mask<Real>>(bits<Unsigned>(shifted) >> mantissa_bits<Real>);
  const Vector<Real> bias = select<Real>(subnormal, broadcast(counter + (exponent_bias<Real> + 54)),
                                         broadcast(counter + exponent_bias<Real>));
  const Vector<Real> k = bits<Vector<Real>>(biased | std::bit_cast<Integer<Real>>(counter)) - bias;
  const Vector<Real> f = bits<Vector<Real>>((shifted & mantissa) + root_half) - Real(1);

  // log(1 + f) = 2 atanh s = 2s + s³ q(s²) with 2s = f - s f = f - f²/2 + s f²/2, |s| <= 0.1716: 2^-30.2, 2^-59.5.
  const Vector<Real> s = f / (f + Real(2)), z = square<Real>(s);
  Vector<Real> q;
  if constexpr (single<Real>)
    q = polynomial<Real>(std::array{0.66666776f, 0.3997755f, 0.29871628f}, z);
  else
    q = polynomial<Real>(std::array{0.6666666666666734, 0.39999999999414465, 0.28571428742484495, 0.22222198558743467,
                                    0.18183565293911177, 0.15314020534556508, 0.14796300260570328},
                         z);
  const Vector<Real> half_square = Real(0.5) * f * f;
  const Vector<Real> low = s * (half_square + z * q) + k * ln2_low<Real>;
  const Vector<Real> value = k * ln2_high<Real> - ((half_square - low) - f);

  const Vector<Real> beyond = select<Real>(x == Real(0), broadcast(-infinity), broadcast(infinity - infinity));
  return select<Real>(x <= Real(0), beyond, select<Real>(x < infinity, value, x));
}

// log(1 + x) for 0 <= x <= 1.
template <class Real>
[[gnu::always_inline]] inline Vector<Real> log1p(Vector<Real> x) {
  using namespace detail;
  // 2 atanh s = 2s + s³ q(s²) with 2s = x - s x, 0 <= s <= 1/3: 2^-27.7, 2^-59.4.
  const Vector<Real> s = x / (x + Real(2)), z = square<Real>(s);
  Vector<Real> q;
  if constexpr (single<Real>)
    q = polynomial<Real>(std::array{0.6666642f, 0.40021527f, 0.2800181f, 0.28011984f}, z);
  else
    q = polynomial<Real>(std::array{0.6666666666666631, 0.40000000000155117, 0.285714285481179, 0.22222223953642783,
                                    0.18181744479354442, 0.15386548386076432, 0.13301121455386133, 0.12104944461787462,
                                    0.08344972564452305, 0.17009756370036655},
                         z);
  return x - s * (x - z * q);
}

}  // namespace bptt
