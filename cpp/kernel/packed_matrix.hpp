// A matrix packed once for the time loop, and its product with a block of columns.
//
// Panels of `line` rows: what one k of the inner loop needs is one line of 64 bytes, aligned and next to the one
// before. Columns are rows of memory (one column (t, b) after another), so the product needs no packing of its right
// side.
//
// Every element of a product is one chain of fused multiply-adds over k, or several chains over interleaved k when
// the tile alone would leave the units waiting. How many depends on the tile, and the tile on the problem, never on who
// computes it.
#pragma once

#include <algorithm>
#include <array>
#include <utility>

#include "team.hpp"
#include "view.hpp"

namespace bptt {

namespace tile {

inline constexpr int vectors = row_bytes / vector_bytes;  // registers a line
inline constexpr int registers = vector_bytes == 64 ? 32 : 16;
inline constexpr int accumulators = registers / 4 * 3;          // that fit beside operands
inline constexpr int max_columns = vector_bytes == 16 ? 3 : 6;  // columns of a tile
inline constexpr int busy = 8;                                  // chains that keep two units of latency 4 at work

// Panels that a tile of N columns takes at once: 1, 2 or 4.
constexpr int panels(int N) {
  const int fit = accumulators / (vectors * N);
  return fit >= 4 ? 4 : fit >= 2 ? 2 : 1;
}

constexpr int chains(int P, int N) {
  const int have = P * vectors * N;
  return have >= busy ? 1 : have * 2 >= busy ? 2 : 4;
}

// Steps of k that a tile takes for one column before the next: as many as have room for their lines of M, since then
// the tile asks for the numbers of one column together.
constexpr int steps(int P, int N) { return vectors * P * (4 + N * chains(P, N)) <= registers - 4 ? 4 : 1; }

// Y(:, j) = C(:, j) + M X(:, j) for P panels and N columns.
//   panel: first of P panels, each K lines, `panel_stride` numbers apart;  x, c, y: columns that far apart; c null: 0
template <class Real, int P, int N>
void multiply_add(const Real* panel, std::int64_t panel_stride, int K, const Real* x, std::int64_t x_stride,
                  const Real* c, std::int64_t c_stride, Real* y, std::int64_t y_stride) {
  constexpr int V = vectors, S = chains(P, N);
  Vector<Real> sum[S][P][V][N];
#pragma GCC unroll 4
  for (int i = 0; i < P; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v)
#pragma GCC unroll 6
      for (int j = 0; j < N; ++j) {
        sum[0][i][v][j] = c ? load(c + j * c_stride + i * line<Real> + v * lanes<Real>) : Vector<Real>{};
#pragma GCC unroll 4
        for (int s = 1; s < S; ++s) sum[s][i][v][j] = Vector<Real>{};
      }
  // Chain s takes step k, the next chain the next.
  const auto add = [&]<int U>(std::integral_constant<int, U>, int k, int s) __attribute__((always_inline)) {
    Vector<Real> w[U][P][V];
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u)
#pragma GCC unroll 4
      for (int i = 0; i < P; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v)
          w[u][i][v] = load(panel + i * panel_stride + std::int64_t(k + u) * line<Real> + v * lanes<Real>);
#pragma GCC unroll 6
    for (int j = 0; j < N; ++j)
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) {
        const Vector<Real> b = broadcast(x[j * x_stride + k + u]);
#pragma GCC unroll 4
        for (int i = 0; i < P; ++i)
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v) sum[(s + u) % S][i][v][j] += w[u][i][v] * b;
      }
  };
  constexpr int U = steps(P, N), round = std::max({U, S, 2});
  int k = 0;
  for (; k + round <= K; k += round)
#pragma GCC unroll 4
    for (int s = 0; s < round; s += U) add(std::integral_constant<int, U>{}, k + s, s);
  for (; k < K; ++k) add(std::integral_constant<int, 1>{}, k, 0);
#pragma GCC unroll 4
  for (int i = 0; i < P; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v)
#pragma GCC unroll 6
      for (int j = 0; j < N; ++j) {
        Vector<Real> total = sum[0][i][v][j];
        if constexpr (S == 2) total += sum[1][i][v][j];
        if constexpr (S == 4) total = (total + sum[1][i][v][j]) + (sum[2][i][v][j] + sum[3][i][v][j]);
        store(y + j * y_stride + i * line<Real> + v * lanes<Real>, total);
      }
}

template <class Real>
using MultiplyAdd = void (*)(const Real*, std::int64_t, int, const Real*, std::int64_t, const Real*, std::int64_t,
                             Real*, std::int64_t);

// [log2 P][N - 1]; a tile wider than the registers hold is never asked for.
template <class Real, int P, int... N>
constexpr std::array<MultiplyAdd<Real>, sizeof...(N)> by_columns(std::integer_sequence<int, N...>) {
  return {(P <= panels(N + 1) ? &multiply_add<Real, P, (P <= panels(N + 1) ? N + 1 : 1)> : nullptr)...};
}
template <class Real>
inline constexpr std::array<std::array<MultiplyAdd<Real>, max_columns>, 3> multiply_adds = {
    by_columns<Real, 1>(std::make_integer_sequence<int, max_columns>{}),
    by_columns<Real, 2>(std::make_integer_sequence<int, max_columns>{}),
    by_columns<Real, 4>(std::make_integer_sequence<int, max_columns>{})};

}  // namespace tile

// Columns 0..count cut into tiles of nearly equal width, for all threads alike.
struct ColumnTiles {
  std::int64_t count;
  std::int64_t tiles;

  explicit ColumnTiles(std::int64_t columns, std::int64_t at_least = 1)
      : count(columns),
        tiles(std::max((columns + tile::max_columns - 1) / tile::max_columns, std::min(columns, at_least))) {}
  // An even number of them, so that what two threads do takes equally long.
  static ColumnTiles even(std::int64_t columns) {
    return ColumnTiles(columns, (ColumnTiles(columns).tiles + 1) / 2 * 2);
  }
  std::int64_t begin(std::int64_t i) const { return count * i / tiles; }
  std::int64_t end(std::int64_t i) const { return count * (i + 1) / tiles; }
};

template <class Real>
class PackedMatrix {
 public:
  // Panels are dealt to threads in groups of this many, so that every thread count cuts the same tiles.
  static constexpr int group = 4;

  PackedMatrix() = default;
  PackedMatrix(std::int64_t rows, std::int64_t inner)
      : rows_(rows),
        inner_(inner),
        panels_(row_length<Real>(int(rows)) / line<Real>),
        data_(panels_ * inner * line<Real>) {}

  std::int64_t panels() const { return panels_; }

  // Packs the given panels of a matrix whose element (i, k) is source[i * row_step + k * column_step] * scale. Rows
  // beyond the last are zero.
  template <class Source>
  void pack(const Source* source, std::int64_t row_step, std::int64_t column_step, Range panels, Real scale = 1) {
    for (std::int64_t q = panels.begin; q < panels.end; ++q) {
      const std::int64_t first = q * line<Real>, full = std::min<std::int64_t>(line<Real>, rows_ - first);
      Real* to = data_.data() + q * inner_ * line<Real>;
      const Source* from = source + first * row_step;
      for (std::int64_t k = 0; k < inner_; ++k, to += line<Real>) {
        for (std::int64_t i = 0; i < full; ++i) to[i] = Real(from[i * row_step + k * column_step]) * scale;
        for (std::int64_t i = full; i < line<Real>; ++i) to[i] = 0;
      }
    }
  }

  // Y = C + M X in the rows of the panels, for the columns of Y: one tile, at most tile::max_columns. C may be absent,
  // Y itself, or one column for all (stride 0).
  void multiply_add(Rows<const Real> x, Rows<const Real> c, Rows<Real> y, Range panels) const {
    const int P = tile::panels(int(y.count));
    const std::int64_t stride = inner_ * line<Real>;
    for (std::int64_t q = panels.begin; q < panels.end;) {
      const std::int64_t left = panels.end - q, row = q * line<Real>;
      const int log = P >= 4 && left >= 4 ? 2 : P >= 2 && left >= 2 ? 1 : 0;
      tile::multiply_adds<Real>[std::size_t(log)][std::size_t(y.count - 1)](
          data_.data() + q * stride, stride, int(inner_), x.data, x.stride, c ? c.data + row : nullptr, c.stride,
          y.data + row, y.stride);
      q += 1 << log;
    }
  }

  // The same for all rows and any number of columns. A group of panels stays in the nearer cache while the columns
  // pass.
  void multiply_add(Rows<const Real> x, Rows<const Real> c, Rows<Real> y) const {
    const ColumnTiles tiles(y.count);
    for (std::int64_t q = 0; q < panels_; q += group)
      for (std::int64_t i = 0; i < tiles.tiles; ++i) {
        const std::int64_t j = tiles.begin(i);
        multiply_add(x.from(j), c.from(j), y.part(j, tiles.end(i) - j), {q, std::min(q + group, panels_)});
      }
  }

 private:
  std::int64_t rows_ = 0, inner_ = 0, panels_ = 0;
  Buffer<Real> data_;
};

}  // namespace bptt
