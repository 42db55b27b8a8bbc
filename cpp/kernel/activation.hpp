// Activations sigma, and their derivatives from a = sigma(h) (in the time loop) and from h (for analysis).
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "elementary.hpp"

namespace bptt {

// Numbered as in python/bptt/_kernel.py.
enum class Activation { identity, tanh, logistic, relu, leaky_relu, elu, softplus, softsign };

template <class Real>
inline constexpr Real leaky_slope = Real(0.01);

// Whether one number of a state that is not finite leaves nothing finite of its sequence's later states: W a has
// nothing finite then, and sigma keeps it so. tanh is 1 at infinity, but then a itself held nan, and W a does.
inline bool keeps_nonfinite(Activation activation) {
  return activation != Activation::relu && activation != Activation::elu && activation != Activation::softplus;
}

namespace detail {

// sigma(h) of one vector.
template <class Real, Activation activation>
[[gnu::always_inline]] inline Vector<Real> activated(Vector<Real> h) {
  constexpr Real zero = 0;
  if constexpr (activation == Activation::identity) {
    return h;
  } else if constexpr (activation == Activation::tanh) {
    return tanh<Real>(h);
  } else if constexpr (activation == Activation::logistic) {
    return logistic<Real>(h);
  } else if constexpr (activation == Activation::relu) {
    return at_least<Real>(zero, h);
  } else if constexpr (activation == Activation::leaky_relu) {
    return select<Real>(h > zero, h, h * leaky_slope<Real>);
  } else if constexpr (activation == Activation::elu) {
    return select<Real>(h > zero, h, expm1<Real>(h));
  } else if constexpr (activation == Activation::softplus) {
    return at_least<Real>(zero, h) + log1p<Real>(decay<Real>(h));
  } else {
    // h / (1 + |h|) would be nan at infinity; beyond 2^60 the quotient is 1 in either precision.
    const Vector<Real> modulus = at_most<Real>(Real(0x1p60), abs<Real>(h));
    return with_sign<Real>(modulus / (modulus + Real(1)), h);
  }
}

// sigma'(h) of one vector from a = sigma(h).
template <class Real, Activation activation>
[[gnu::always_inline]] inline Vector<Real> derivative_from_activation(Vector<Real> a) {
  constexpr Real zero = 0, one = 1;
  if constexpr (activation == Activation::identity) {
    return broadcast(one);
  } else if constexpr (activation == Activation::tanh) {
    return one - a * a;
  } else if constexpr (activation == Activation::logistic) {
    return a * (one - a);
  } else if constexpr (activation == Activation::relu) {
    return select<Real>(a > zero, broadcast(one), broadcast(zero));
  } else if constexpr (activation == Activation::leaky_relu) {
    return select<Real>(a > zero, broadcast(one), broadcast(leaky_slope<Real>));
  } else if constexpr (activation == Activation::elu) {
    return select<Real>(a > zero, broadcast(one), a + one);
  } else if constexpr (activation == Activation::softplus) {
    return -expm1<Real>(-a);
  } else {
    const Vector<Real> r = one - abs<Real>(a);
    return r * r;
  }
}

template <class Real>
struct Derivative {
  Vector<Real> value, logarithm;
};

// sigma'(h) and its logarithm from h: neither cancels nor underflows before the number itself does.
template <class Real, Activation activation>
[[gnu::always_inline]] inline Derivative<Real> derivative_from_argument(Vector<Real> h) {
  constexpr Real zero = 0, one = 1;
  constexpr Real infinity = std::numeric_limits<Real>::infinity();
  if constexpr (activation == Activation::identity) {
    return {broadcast(one), broadcast(zero)};
  } else if constexpr (activation == Activation::tanh) {
    const Vector<Real> modulus = abs<Real>(h), e = exp<Real>(Real(-2) * modulus);
    const Vector<Real> w = e / (one + e);
    return {Real(4) * (w - w * w), Real(2) * (Real(0x1.62e42fefa39efp-1) - modulus - log1p<Real>(e))};
  } else if constexpr (activation == Activation::logistic) {
    const Vector<Real> modulus = abs<Real>(h), e = exp<Real>(-modulus);
    const Vector<Real> w = e / (one + e);
    return {w - w * w, -modulus - Real(2) * log1p<Real>(e)};
  } else if constexpr (activation == Activation::relu) {
    return {select<Real>(h > zero, broadcast(one), broadcast(zero)),
            select<Real>(h > zero, broadcast(zero), broadcast(-infinity))};
  } else if constexpr (activation == Activation::leaky_relu) {
    return {select<Real>(h > zero, broadcast(one), broadcast(leaky_slope<Real>)),
            select<Real>(h > zero, broadcast(zero), broadcast(Real(-4.60517018598809136804)))};
  } else if constexpr (activation == Activation::elu) {
    return {exp<Real>(at_most<Real>(zero, h)), at_most<Real>(zero, h)};
  } else if constexpr (activation == Activation::softplus) {
    return {logistic<Real>(h), at_most<Real>(zero, h) - log1p<Real>(exp<Real>(-abs<Real>(h)))};
  } else {
    const Vector<Real> modulus = abs<Real>(h);
    const Vector<Real> r = one / (one + modulus);
    return {r * r,
            Real(-2) * select<Real>(modulus > one, log<Real>(one + modulus), log1p<Real>(at_most<Real>(one, modulus)))};
  }
}

template <Activation activation>
using Constant = std::integral_constant<Activation, activation>;

// Calls f with the activation as a compile-time constant: told apart once, outside the loops.
template <class F>
[[gnu::always_inline]] inline void choose(Activation activation, F f) {
  switch (activation) {
    case Activation::identity:
      return f(Constant<Activation::identity>{});
    case Activation::tanh:
      return f(Constant<Activation::tanh>{});
    case Activation::logistic:
      return f(Constant<Activation::logistic>{});
    case Activation::relu:
      return f(Constant<Activation::relu>{});
    case Activation::leaky_relu:
      return f(Constant<Activation::leaky_relu>{});
    case Activation::elu:
      return f(Constant<Activation::elu>{});
    case Activation::softplus:
      return f(Constant<Activation::softplus>{});
    case Activation::softsign:
      return f(Constant<Activation::softsign>{});
  }
}

}  // namespace detail

// a = sigma(h). h and a: (count), the same array or two that do not overlap; fastest where count is a multiple of
// line<Real>.
template <class Real>
inline void activate(Activation activation, const Real* h, Real* a, std::int64_t count) {
  detail::choose(activation, [=]<Activation kind>(detail::Constant<kind>) {
    const auto one_line = [](const Real* from, Real* to) {
      for (int j = 0; j < line<Real>; j += lanes<Real>)
        store<Real>(to + j, detail::activated<Real, kind>(load<Real>(from + j)));
    };
    std::int64_t i = 0;
    for (; i + line<Real> <= count; i += line<Real>) one_line(h + i, a + i);
    if (i < count) {
      Real rest[line<Real>] = {};
      std::copy(h + i, h + count, rest);
      one_line(rest, rest);
      std::copy_n(rest, count - i, a + i);
    }
  });
}

// d *= sigma'(h), from a = sigma(h). a and d: (count), count a multiple of line<Real>.
template <class Real>
inline void multiply_derivative(Activation activation, const Real* a, Real* d, std::int64_t count) {
  detail::choose(activation, [=]<Activation kind>(detail::Constant<kind>) {
    for (std::int64_t i = 0; i < count; i += lanes<Real>) {
      const Vector<Real> slope = detail::derivative_from_activation<Real, kind>(load<Real>(a + i));
      store<Real>(d + i, load<Real>(d + i) * slope);
    }
  });
}

// d = sigma'(h) and log_d = log sigma'(h), either null where it is not wanted. All (count), overlapping nowhere.
template <class Real>
inline void derivative(Activation activation, const Real* h, Real* d, Real* log_d, std::int64_t count) {
  detail::choose(activation, [=]<Activation kind>(detail::Constant<kind>) {
    const auto one_vector = [](const Real* from, Real* value, Real* logarithm) {
      const auto slope = detail::derivative_from_argument<Real, kind>(load<Real>(from));
      if (value) store<Real>(value, slope.value);
      if (logarithm) store<Real>(logarithm, slope.logarithm);
    };
    std::int64_t i = 0;
    for (; i + lanes<Real> <= count; i += lanes<Real>) one_vector(h + i, d ? d + i : d, log_d ? log_d + i : log_d);
    if (i < count) {
      Real rest[lanes<Real>] = {}, value[lanes<Real>], logarithm[lanes<Real>];
      std::copy(h + i, h + count, rest);
      one_vector(rest, value, logarithm);
      if (d) std::copy_n(value, count - i, d + i);
      if (log_d) std::copy_n(logarithm, count - i, log_d + i);
    }
  });
}

}  // namespace bptt
