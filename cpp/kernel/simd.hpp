// The registers of one level: a vector of Real as wide as the instruction set this image is compiled for.
//
// Compiler vectors rather than intrinsics or Eigen packets: the same source is right for SSE, AVX2, AVX-512 and any
// other target, arithmetic on them is IEEE lane by lane, and a*b + c contracts to one fused operation where the level
// has it.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace bptt {

#if defined(__AVX512F__)
inline constexpr int vector_bytes = 64;
#elif defined(__AVX__)
inline constexpr int vector_bytes = 32;
#else
inline constexpr int vector_bytes = 16;
#endif

// Every stored row is padded to this, on every level (python/bptt/_kernel.py, row_length).
inline constexpr int row_bytes = 64;

template <class Real>
struct VectorOf {
  typedef Real type __attribute__((vector_size(vector_bytes)));
};
template <class Real>
using Vector = typename VectorOf<Real>::type;

// Integers of the same width as Real: masks of comparisons, and the bits of a number.
template <class Real>
using Integer = std::conditional_t<sizeof(Real) == 4, std::int32_t, std::int64_t>;
template <class Real>
using Mask = Vector<Integer<Real>>;

template <class Real>
inline constexpr int lanes = vector_bytes / int(sizeof(Real));

// Numbers in a 64-byte line: the width of a panel of packed rows.
template <class Real>
inline constexpr int line = row_bytes / int(sizeof(Real));

template <class Real>
inline int row_length(int n) {
  return (n + line<Real> - 1) / line<Real> * line<Real>;
}

template <class Real>
[[gnu::always_inline]] inline Vector<Real> load(const Real* p) {
  Vector<Real> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class Real>
[[gnu::always_inline]] inline void store(Real* p, Vector<Real> v) {
  std::memcpy(p, &v, sizeof v);
}

template <class Real>
[[gnu::always_inline]] inline Vector<Real> broadcast(Real s) {
  return s - Vector<Real>{};  // s - 0 is s, bit for bit
}

template <class To, class From>
[[gnu::always_inline]] inline To bits(From v) {
  static_assert(sizeof(To) == sizeof(From));
  To w;
  std::memcpy(&w, &v, sizeof w);
  return w;
}

}  // namespace bptt
