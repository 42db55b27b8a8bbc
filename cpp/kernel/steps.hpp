// How the steps of a segment are cut: in time into blocks, across the columns and rows of a step into one part a
// thread.
#pragma once

#include <numeric>
#include <vector>

#include "loss.hpp"
#include "packed_matrix.hpp"

namespace bptt {

// Columns of a block of steps: what the time loop leaves behind stays in cache until it has become matrix products. Of
// one sequence, threads take turns with blocks, and the first and the last of them have nobody beside them: the fewer
// columns the sooner both are at work, as long as the work on a block is worth a meeting.
inline std::int64_t block_columns(int n, std::int64_t B) {
  if (B == 1 && n >= 48 && n <= 96) return 128;
  return n >= 1024 ? 512 : 256;
}

// Whether threads split the rows of W, with a barrier a step: few columns, and W too large for the nearest cache.
template <class Real>
bool rows_pay(int n, std::int64_t B) {
  const std::int64_t bytes = std::int64_t(n) * n * std::int64_t(sizeof(Real));
  return (B <= 4 && bytes > (48 << 10)) || (B <= 16 && bytes > (800 << 10));
}

// Sequences from which on a half of them is enough for a tile.
inline constexpr std::int64_t worth_halving = 4;

// Parts into which a batch is best cut for the gradient, for any number of threads: two halves of the sequences share
// nothing but the weights, so that neither waits for the other or reads what it wrote. Each has sums of its own, which
// must stay in a near cache.
inline int best_parts(int n, std::int64_t B) {
  const bool near = std::int64_t(n) * n * std::int64_t(sizeof(double)) <= (256 << 10);
  return near && B >= worth_halving ? 2 : 1;
}

// The same for the states, which have no sums. B: the columns of the segment's first step.
template <class Real>
int parts_of_states(int n, std::int64_t B, std::int64_t mean) {
  return !rows_pay<Real>(n, B) && mean >= worth_halving ? 2 : 1;
}

// Sequences there at a step of a segment, in the mean: what parts go by.
inline std::int64_t mean_count(int steps, const std::int64_t* counts) {
  return steps ? std::accumulate(counts + 1, counts + 1 + steps, std::int64_t{0}) / steps : counts[0];
}

// What a part of the batch has of a block of steps: of the sequences there at its beginning, the `ranks`. Its columns
// are numbered one after another, from 0; in memory they lie step by step, or in one piece if the part is the `whole`.
struct Block {
  int first, last;  // steps, numbered 1..L; step 0 is the carried state
  Range ranks;
  bool whole;
  bool even;           // the same sequences as in the step before it, to its end
  std::int64_t width;  // columns

  // Of step s. Also of the one after the last: how many go on.
  std::int64_t count(int s) const { return std::clamp(counts[s], ranks.begin, ranks.end) - ranks.begin; }
  // Its first column: by number, in memory, and what lies in memory one step before it, counted from a_t0.
  std::int64_t number(int s) const { return numbers[s] - numbers[first]; }
  std::int64_t column(int s) const { return rows[s] - counts[0] + ranks.begin; }
  std::int64_t before(int s) const { return rows[s - 1] + ranks.begin; }

  // Columns of all parts together, which is how far the blocks beside it lie in memory.
  std::int64_t extent() const { return rows[last + 1] - rows[first]; }

  // work(column in memory, number, columns) for the pieces of numbers begin..end that lie together.
  template <class Work>
  void each_piece(std::int64_t begin, std::int64_t end, Work&& work) const {
    if (whole) return work(column(first) + begin, begin, end - begin);
    each_step(begin, end, [&](int s, std::int64_t rank, std::int64_t number, std::int64_t columns) {
      work(column(s) + rank - ranks.begin, number, columns);
    });
  }

  // work(step, first rank, number, columns) for the steps of numbers begin..end.
  template <class Work>
  void each_step(std::int64_t begin, std::int64_t end, Work&& work) const {
    int s = int(std::upper_bound(numbers + first, numbers + last + 1, numbers[first] + begin) - numbers) - 1;
    for (; begin < end; ++s) {
      const std::int64_t stop = std::min(end, number(s) + count(s));
      if (begin < stop) work(s, ranks.begin + begin - number(s), begin, stop - begin);
      begin = stop;
    }
  }

  const std::int64_t *counts, *rows, *numbers;  // of all steps of the segment; its columns counted through all blocks
};

// Asks for inputs that have an order, of columns b0.. of a part's step, as far as they are there.
template <class Real>
void prefetch_inputs(const Inputs<Real>& inputs, const Block& block, int s, std::int64_t b0, std::int64_t columns,
                     int p) {
  if (s < 1) return;
  const std::int64_t end = std::min(b0 + columns, block.count(s));
  for (std::int64_t b = b0; b < end; ++b) prefetch(Rows<const Real>{inputs.row(s, block.ranks.begin + b, p), 1, p}, p);
}

// Where the columns of each step lie. Rows of a begin with the carried states, so column j of the segment is row j +
// counts[0].
class Layout {
 public:
  Layout(int steps, const std::int64_t* counts, std::int64_t most_columns, int parts)
      : counts_(counts), row_(std::size_t(steps) + 2), parts_(parts) {
    for (int s = 0; s <= steps; ++s) row_[std::size_t(s) + 1] = row_[std::size_t(s)] + counts[s];
    if (parts > 1)
      for (int i = 0; i < parts; ++i) numbers_.emplace_back(row_.size());
    for (int s = 0; s < steps;) {
      const int first = s + 1;
      const std::int64_t begin = row_[std::size_t(first)];
      while (++s < steps && row_[std::size_t(s) + 2] - begin <= most_columns) {
      }
      for (int i = 0; i < parts; ++i) add_block(first, s, i);
    }
  }

  std::int64_t total() const { return row_.back() - counts_[0]; }

  int blocks() const { return int(blocks_.size()) / parts_; }
  const Block& block(int k, int part = 0) const { return blocks_[std::size_t(k * parts_ + part)]; }
  // Columns of a part in a block, at most.
  std::int64_t widest() const { return widest_; }

  // The blocks around k in which no sequence changes from one part to another: where they end, where they begin.
  int stretch_end(int k) const {
    const int begin = k;
    while (k < blocks() && same_ranks(begin, k)) ++k;
    return k;
  }
  int stretch_begin(int k) const {
    const int end = k;
    while (k > 0 && same_ranks(end, k - 1)) --k;
    return k;
  }

 private:
  void add_block(int first, int last, int part) {
    const bool whole = parts_ == 1, even = counts_[first - 1] == counts_[last];
    std::int64_t* const numbers = whole ? row_.data() : numbers_[std::size_t(part)].data();
    Block b{first, last, bptt::part(counts_[first], 1, part, parts_), whole, even, 0, counts_, row_.data(), numbers};
    for (int s = first; s <= last && !whole; ++s) numbers[s + 1] = numbers[s] + b.count(s);
    b.width = b.number(last + 1);
    widest_ = std::max(widest_, b.width);
    blocks_.push_back(b);
  }
  bool same_ranks(int k, int l) const { return parts_ == 1 || counts_[block(k).first] == counts_[block(l).first]; }

  const std::int64_t* counts_;
  std::vector<std::int64_t> row_;
  std::vector<std::vector<std::int64_t>> numbers_;  // of the parts' columns; of a whole, its rows
  std::vector<Block> blocks_;
  int parts_;
  std::int64_t widest_ = 0;
};

// How the steps of one part of a batch are cut, for any number of threads: by columns, each thread its own sequences,
// side by side in memory, and no waiting; or by rows of W.
template <class Real>
struct Cut {
  bool by_rows;
  ColumnTiles tiles;
  std::int64_t panels;

  // B: the columns of the segment's first step
  Cut(int n, std::int64_t B, const Block& block)
      : by_rows(block.whole && rows_pay<Real>(n, B)),
        tiles(block.whole && !by_rows ? ColumnTiles::even(block.count(block.first))
                                      : ColumnTiles(block.count(block.first))),
        panels(row_length<Real>(n) / line<Real>) {}

  // Whether the time loop has work for a second thread.
  bool divisible() const { return by_rows || tiles.tiles > 1; }
};

// One thread's part of every step.
template <class Real>
class Share {
 public:
  Share(const Cut<Real>& cut, Member member)
      : tiles_(cut.tiles),
        own_(cut.by_rows ? Range{0, cut.tiles.tiles} : member.part(cut.tiles.tiles)),
        panels_(cut.by_rows ? member.part(cut.panels, PackedMatrix<Real>::group) : Range{0, cut.panels}),
        whole_(panels_.end - panels_.begin == cut.panels) {}

  // work(first column, last column) for each of its tiles among the first `active` columns.
  template <class Work>
  void each_tile(std::int64_t active, Work&& work) const {
    for (std::int64_t i = own_.begin; i < own_.end && tiles_.begin(i) < active; ++i)
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

  // Y = C + W X on its part, with before(first column, columns) ahead of each of its tiles. One step from the first
  // rows to the last, the next one back: where W is too large for a cache, what is there is met first.
  template <class Before>
  void multiply_add(const PackedMatrix<Real>& W, Rows<const Real> x, Rows<const Real> c, Rows<Real> y, int step,
                    Before&& before) const {
    constexpr int group = PackedMatrix<Real>::group;
    const std::int64_t groups = (panels_.end - panels_.begin + group - 1) / group;
    for (std::int64_t i = 0; i < groups; ++i) {
      const std::int64_t q = panels_.begin + (step % 2 ? groups - 1 - i : i) * group;
      each_tile(y.count, [&](std::int64_t b0, std::int64_t b1) {
        if (!i) before(b0, b1 - b0);
        W.multiply_add(x.from(b0), c.from(b0), y.part(b0, b1 - b0), {q, std::min(q + group, panels_.end)});
      });
    }
  }

 private:
  ColumnTiles tiles_;
  Range own_;
  Range panels_;
  bool whole_;
};

// Columns dealt out in chunks that do not depend on how many share them: work(first, columns).
template <class Work>
void each_chunk(std::int64_t columns, Member member, Work&& work) {
  const Range own = member.part(columns, chunk);
  for (std::int64_t c = own.begin; c < own.end; c += chunk) work(c, int(std::min<std::int64_t>(chunk, own.end - c)));
}

// The same for a block's: work(column in memory, number, columns), for the pieces of each chunk.
template <class Work>
void each_chunk(const Block& block, Member member, Work&& work) {
  each_chunk(block.width, member,
             [&](std::int64_t first, int columns) { block.each_piece(first, first + columns, work); });
}

}  // namespace bptt
