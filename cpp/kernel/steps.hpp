// How the steps of a segment are cut: in time into blocks, across the columns and rows of a step into one part a
// thread.
#pragma once

#include <vector>

#include "packed_matrix.hpp"

namespace bptt {

// Columns of a block of steps: what the time loop leaves behind stays in cache until it has become matrix products.
template <class Real>
std::int64_t block_columns(int n) {
  return n >= 512 ? 512 : 256;
}

// How the steps of one problem are cut, for any number of threads: by columns, each thread its own sequences and no
// waiting; or by rows of W, a barrier a step, where a step has few columns and W is too large for the nearest cache.
template <class Real>
struct Cut {
  bool by_rows;
  ColumnTiles tiles;
  std::int64_t panels;

  Cut(int n, std::int64_t B)
      : by_rows(rows_pay(n, B)), tiles(B, by_rows ? 1 : 2), panels(row_length<Real>(n) / line<Real>) {}

  // Whether the time loop has work for a second thread.
  bool divisible() const { return by_rows || tiles.tiles > 1; }

  static bool rows_pay(int n, std::int64_t B) {
    const std::int64_t bytes = std::int64_t(n) * n * std::int64_t(sizeof(Real));
    return (B <= 4 && bytes > (48 << 10)) || (B <= 16 && bytes > (800 << 10));
  }
};

// One thread's part of every step.
template <class Real>
class Share {
 public:
  Share(const Cut<Real>& cut, int rank, int size)
      : tiles_(cut.tiles),
        first_(cut.by_rows ? 0 : rank),
        step_(cut.by_rows ? 1 : size),
        panels_(cut.by_rows ? part(cut.panels, PackedMatrix<Real>::group, rank, size) : Range{0, cut.panels}),
        whole_(panels_.end - panels_.begin == cut.panels) {}

  // work(first column, last column) for each of its tiles among the first `active` columns.
  template <class Work>
  void each_tile(std::int64_t active, Work&& work) const {
    for (std::int64_t i = first_; i < tiles_.tiles && tiles_.begin(i) < active; i += step_)
      work(tiles_.begin(i), std::min(active, tiles_.end(i)));
  }

  // work(offset, count) for each contiguous piece of its rows of the columns begin..end, `length` numbers each.
  template <class Work>
  void each_piece(std::int64_t begin, std::int64_t end, std::int64_t length, Work&& work) const {
    if (whole_)
      work(begin * length, (end - begin) * length);
    else if (panels_.begin < panels_.end)
      for (std::int64_t b = begin; b < end; ++b)
        work(b * length + panels_.begin * line<Real>, (panels_.end - panels_.begin) * line<Real>);
  }

  // Y += W X on its part.
  void multiply_add(const PackedMatrix<Real>& W, const Real* x, Real* y, std::int64_t length,
                    std::int64_t active) const {
    for (std::int64_t q = panels_.begin; q < panels_.end; q += PackedMatrix<Real>::group)
      each_tile(active, [&](std::int64_t b0, std::int64_t b1) {
        W.multiply_add(x + b0 * length, length, y + b0 * length, length, b1 - b0,
                       {q, std::min(q + PackedMatrix<Real>::group, panels_.end)});
      });
  }

 private:
  const ColumnTiles& tiles_;
  std::int64_t first_, step_;
  Range panels_;
  bool whole_;
};

// Where the columns of each step lie. Rows of a begin with the carried states, so column j of the segment is row j +
// counts[0].
class Layout {
 public:
  Layout(int steps, const std::int64_t* counts, std::int64_t most_columns)
      : counts_(counts), row_(std::size_t(steps) + 2) {
    for (int s = 0; s <= steps; ++s) row_[std::size_t(s) + 1] = row_[std::size_t(s)] + counts[s];
    for (int s = 0; s < steps;) {
      edges_.push_back(s);
      const std::int64_t begin = row_[std::size_t(s) + 1];
      while (++s < steps && row_[std::size_t(s) + 2] - begin <= most_columns) {
      }
    }
    edges_.push_back(steps);
    for (int k = 0; k < blocks(); ++k) widest_ = std::max(widest_, columns(k).end - columns(k).begin);
  }

  // Steps are numbered 1..L here; step 0 is the carried state.
  std::int64_t count(int step) const { return counts_[step]; }
  std::int64_t row(int step) const { return row_[std::size_t(step)]; }
  std::int64_t column(int step) const { return row(step) - counts_[0]; }
  std::int64_t total() const { return row_.back() - counts_[0]; }

  int blocks() const { return int(edges_.size()) - 1; }
  int first(int block) const { return edges_[std::size_t(block)] + 1; }
  int last(int block) const { return edges_[std::size_t(block) + 1]; }
  Range columns(int block) const { return {column(first(block)), row_[std::size_t(last(block)) + 1] - counts_[0]}; }
  std::int64_t widest() const { return widest_; }
  // All steps of the block, and the one before, have the same columns: a_{t-1} of column j lies at a fixed distance.
  bool even(int block) const { return counts_[first(block) - 1] == counts_[last(block)]; }

 private:
  const std::int64_t* counts_;
  std::vector<std::int64_t> row_;
  std::vector<int> edges_;
  std::int64_t widest_ = 0;
};

// One of `size` threads that share a piece of work.
struct Member {
  int rank, size;

  Range part(std::int64_t count, std::int64_t grain = 1) const { return bptt::part(count, grain, rank, size); }
};

// Columns of a range dealt out in chunks that do not depend on how many share them: work(first, columns).
template <class Work>
void each_chunk(Range columns, Member member, Work&& work) {
  const Range own = member.part(columns.end - columns.begin, chunk);
  for (std::int64_t c = own.begin; c < own.end; c += chunk)
    work(columns.begin + c, int(std::min<std::int64_t>(chunk, own.end - c)));
}

}  // namespace bptt
