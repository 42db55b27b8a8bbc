// Sums of outer products over a block of columns: S(i, k) += sum_j u_j[i] v_j[k], the shape of every weight's gradient.
//
// The block's columns come as narrow strips, so that both operands stream through the nearest cache. A tile sums its
// columns in registers, in order, in the precision of the operands, and adds to S in float64, or writes it.
#pragma once

#include <limits>

#include "packed_matrix.hpp"

namespace bptt {

// Columns cut into strips of `line` numbers: number r of strip q of the j-th column of run i is
// data[i * run_step + j * column_step + q * strip_step + r].
template <class Real>
struct Strips {
  const Real* data;
  std::int64_t strip_step;
  std::int64_t column_step;
  std::int64_t run = std::numeric_limits<std::int64_t>::max();  // columns
  std::int64_t run_step = 0;

  Strips from(std::int64_t q) const { return {data + q * strip_step, strip_step, column_step, run, run_step}; }
};

// Where sums go: S(i, k) is data[i * u_step + k], for i < u_count and k < v_count.
struct Sum {
  double* data;
  std::int64_t u_step;
  std::int64_t u_count, v_count;
  bool fresh = false;  // whether what stands there is none of it
};

namespace tile {

// Strips of v, and numbers of u, in a tile.
inline constexpr int outer_panels = vector_bytes == 64 ? 2 : 1;
inline constexpr int outer_height = vector_bytes == 64 ? 8 : vector_bytes == 32 ? 6 : 3;

template <class Real, int P, int N>
void outer_sum(const Real* u, std::int64_t u_step, Strips<Real> v, std::int64_t columns, const Sum& sum,
               std::int64_t i0, std::int64_t k0) {
  constexpr int V = vectors;
  Vector<Real> acc[N][P][V] = {};
  for (; columns > 0; columns -= v.run, v.data += v.run_step) {
    const Real* from = v.data;
#pragma GCC unroll 2
    for (std::int64_t j = std::min(columns, v.run); j > 0; --j, from += v.column_step, u += u_step) {
      Vector<Real> row[P][V];
#pragma GCC unroll 2
      for (int q = 0; q < P; ++q)
#pragma GCC unroll 4
        for (int w = 0; w < V; ++w) row[q][w] = load(from + q * v.strip_step + w * lanes<Real>);
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) {
        const Vector<Real> b = broadcast(u[i]);
#pragma GCC unroll 2
        for (int q = 0; q < P; ++q)
#pragma GCC unroll 4
          for (int w = 0; w < V; ++w) acc[i][q][w] += row[q][w] * b;
      }
    }
  }
  alignas(row_bytes) Real flat[N][P * line<Real>];
  std::memcpy(flat, acc, sizeof flat);
  const std::int64_t width = std::min<std::int64_t>(P * line<Real>, sum.v_count - k0);
  for (int i = 0; i < N; ++i) {
    double* to = sum.data + (i0 + i) * sum.u_step + k0;
    if (sum.fresh)
      for (std::int64_t k = 0; k < width; ++k) to[k] = double(flat[i][k]);
    else
      for (std::int64_t k = 0; k < width; ++k) to[k] += double(flat[i][k]);
  }
}

template <class Real>
using OuterSum = void (*)(const Real*, std::int64_t, Strips<Real>, std::int64_t, const Sum&, std::int64_t,
                          std::int64_t);
template <class Real, int P, int... N>
constexpr std::array<OuterSum<Real>, sizeof...(N)> by_height(std::integer_sequence<int, N...>) {
  return {&outer_sum<Real, P, N + 1>...};
}
template <class Real>
inline constexpr std::array<std::array<OuterSum<Real>, outer_height>, 2> outer_sums = {
    by_height<Real, 1>(std::make_integer_sequence<int, outer_height>{}),
    by_height<Real, outer_panels>(std::make_integer_sequence<int, outer_height>{})};

}  // namespace tile

// Adds one strip of u (columns following one another) times all strips of v, over one block of columns: a few rows of
// S.
template <class Real>
void outer_sum(const Real* u, std::int64_t u_step, std::int64_t strip, Strips<Real> v, std::int64_t columns,
               const Sum& sum) {
  const std::int64_t first = strip * tile::outer_height,
                     height = std::min<std::int64_t>(tile::outer_height, sum.u_count - first);
  const std::int64_t strips = (sum.v_count + line<Real> - 1) / line<Real>;
  for (std::int64_t q = 0; q < strips;) {
    const bool wide = strips - q >= tile::outer_panels;
    tile::outer_sums<Real>[wide][std::size_t(height - 1)](u, u_step, v.from(q), columns, sum, first, q * line<Real>);
    q += wide ? tile::outer_panels : 1;
  }
}

// Copies numbers first..first+width of each column, rows of memory of `count` numbers, to a strip; zeros beyond the
// last.
template <int width, class Source, class Real>
void pack_strip(const Source* rows, std::int64_t row_step, std::int64_t columns, std::int64_t first, std::int64_t count,
                Real* strip) {
  const std::int64_t full = std::clamp<std::int64_t>(count - first, 0, width);
  for (std::int64_t j = 0; j < columns; ++j, strip += width) {
    const Source* from = rows + j * row_step + first;
    if (std::is_same_v<Source, Real> && full == width)  // a few moves, no loop and no call
      std::memcpy(strip, from, width * sizeof(Real));
    else
      for (int r = 0; r < width; ++r) strip[r] = r < full ? Real(from[r]) : Real(0);
  }
}

}  // namespace bptt
