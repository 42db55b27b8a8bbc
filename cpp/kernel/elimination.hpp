// Gaussian elimination of a basis by a team of threads.
#pragma once

#include <cmath>
#include <vector>

#include "elementary.hpp"
#include "packed_matrix.hpp"

namespace bptt {

// work(first, columns) for every tile of the columns that belongs to this thread.
template <class Work>
void each_own_tile(std::int64_t columns, const Team& team, int rank, Work&& work) {
  const ColumnTiles tiles = ColumnTiles::even(columns);
  for (std::int64_t i = rank; i < tiles.tiles; i += team.size()) work(tiles.begin(i), tiles.end(i) - tiles.begin(i));
}

// y -= u x, all of `length` numbers, a multiple of line<double>.
inline void subtract(double u, const double* x, double* y, std::int64_t length) {
  for (std::int64_t i = 0; i < length; i += lanes<double>) store(y + i, load(y + i) - load(x + i) * u);
}

// x *= u.
inline void multiply(double u, double* x, std::int64_t length) {
  for (std::int64_t i = 0; i < length; i += lanes<double>) store(x + i, load(x + i) * u);
}

// diag(exp(weights)) A = M U with U upper triangular. A, its columns as rows of memory padded with zeros, becomes M; of
// U the logarithms of the pivots remain.
//
// Rows are not exchanged: a column of M has 1 in the row of its pivot, 0 in the rows of the pivots before it, and no
// number above 1.07 elsewhere. Weights that are far apart never enter what is summed: pivots are as exact as those of A
// itself. But then a number that is small may weigh much, and cannot be taken for rounding. Where a column may die of
// rounding, weights that are near one another are therefore multiplied into A first.
class Elimination {
 public:
  // singular: whether columns may die of rounding although no weight is -inf
  Elimination(int n, std::int64_t columns, bool singular, int threads)
      : rounding_(4 * n * std::numeric_limits<double>::epsilon()),
        length_(row_length<double>(n)),
        row_sizes_(length_),
        U_storage_(columns * row_length<double>(columns + panel_width)),
        U_{U_storage_.data(), columns, row_length<double>(columns + panel_width)},
        pivots_(std::size_t(columns)),
        logs_(std::size_t(columns)),
        dealt_(std::size_t((columns + panel_width - 1) / panel_width)),
        most_uneven_(singular ? 8 : 0) {
    for (int i = 0; i < threads; ++i)
      own_.push_back({PackedMatrix<double>(n, panel_width), Buffer<double>(length_), 0});
  }

  // Called by every thread of the team, once it has finished with its own tiles of A (each_own_tile); on return only
  // those are finished for it.
  //   weights: (length), -inf for rows that count as 0 and beyond n; null: all are 0
  //   summed: (length), the largest sum of moduli behind the numbers of each row, known to the first thread; null:
  //   the numbers are as they are
  void operator()(Team& team, int rank, Rows<double> A, const double* weights, const double* summed = nullptr) {
    Own& own = own_[std::size_t(rank)];
    double shift = 0;
    if (weights && !graded_ && even(weights, shift)) {
      each_own_tile(A.count, team, rank, [&](std::int64_t begin, std::int64_t columns) {
        for (std::int64_t j = begin; j < begin + columns; ++j) scale_rows(A[j], weights, shift);
      });
      weights = nullptr;
    }
    measure_rows(A, team, rank, own.row_sizes.data());
    own.largest = *std::max_element(own.row_sizes.data(), own.row_sizes.data() + length_);
    team.barrier();
    if (rank == 0) {
      begin(team.size());
      if (summed && !weights) raise(summed, row_sizes_.data());
      shift_ = shift;
      graded_ |= weights != nullptr;
      eliminate_panel(A, 0, weights);
    }
    team.barrier();
    for (std::int64_t first = 0; first + panel_width < A.count; first += panel_width) {
      const std::int64_t next = first + panel_width, beyond = std::min(next + panel_width, A.count);
      own.panel.pack(A[first], 1, A.stride, {0, own.panel.panels()});
      if (rank == 0) {  // the next panel, while the others are at the columns beyond it
        const ColumnTiles tiles(beyond - next);
        for (std::int64_t i = 0; i < tiles.tiles; ++i)
          follow(A, first, next + tiles.begin(i), tiles.end(i) - tiles.begin(i), own.panel);
        eliminate_panel(A, next, weights);
      }
      const ColumnTiles tiles(A.count - beyond);
      std::atomic<std::int64_t>& dealt = dealt_[std::size_t(first / panel_width)];
      for (std::int64_t i; (i = dealt.fetch_add(1, std::memory_order_relaxed)) < tiles.tiles;)
        follow(A, first, beyond + tiles.begin(i), tiles.end(i) - tiles.begin(i), own.panel);
      team.barrier();
    }
    if (!weights) return;
    each_own_tile(A.count, team, rank, [&](std::int64_t begin, std::int64_t columns) {
      for (std::int64_t j = begin; j < begin + columns; ++j) weigh(A[j], pivots_[std::size_t(j)], weights);
    });
  }

  // log |pivot| of column j. -inf: the column is dead, exactly or (unless graded) within rounding in the span of those
  // before it, and zero in M.
  double log_pivot(std::int64_t j) const { return logs_[std::size_t(j)]; }

  // Whether there were weights too far apart to be multiplied in: rounding is not told from what is small then.
  bool graded() const { return graded_; }

  // Columns that are not dead.
  std::int64_t alive() const { return alive_; }

  // log of the largest number of A over its least pivot, both without weights: what rounding is magnified by.
  double spread() const { return std::log(largest_ / least_); }

 private:
  // Columns eliminated one by one, before all others follow in one matrix product.
  static constexpr int panel_width = 16;
  static constexpr double infinity = std::numeric_limits<double>::infinity();

  struct Own {  // by each thread
    PackedMatrix<double> panel;
    Buffer<double> row_sizes;
    double largest = 0;
  };

  // Whether weights are so close below the largest, but for those of -inf, that they can be multiplied in.
  bool even(const double* weights, double& largest) const {
    largest = *std::max_element(weights, weights + length_);
    const double least = largest - most_uneven_;
    return std::all_of(weights, weights + length_, [=](double w) { return w >= least || w == -infinity; });
  }

  void scale_rows(double* column, const double* weights, double largest) const {
    for (std::int64_t i = 0; i < length_; i += lanes<double>) {
      const Vector<double> w = load(weights + i);
      store(column + i, select<double>(w > -infinity, load(column + i) * exp<double>(w - largest), Vector<double>{}));
    }
  }

  // The largest number of each row in this thread's columns.
  void measure_rows(Rows<double> A, const Team& team, int rank, double* sizes) const {
    std::fill_n(sizes, length_, 0.0);
    each_own_tile(A.count, team, rank, [&](std::int64_t begin, std::int64_t columns) {
      for (std::int64_t j = begin; j < begin + columns; ++j) raise(A[j], sizes);
    });
  }

  void raise(const double* column, double* sizes) const {
    for (std::int64_t i = 0; i < length_; i += lanes<double>)
      store(sizes + i, greater(abs<double>(load(column + i)), load(sizes + i)));
  }

  void begin(int threads) {
    std::fill_n(row_sizes_.data(), length_, 0.0);
    largest_ = 0;
    for (int i = 0; i < threads; ++i) {
      raise(own_[std::size_t(i)].row_sizes.data(), row_sizes_.data());
      largest_ = std::max(largest_, own_[std::size_t(i)].largest);
    }
    for (std::atomic<std::int64_t>& dealt : dealt_) dealt.store(0, std::memory_order_relaxed);
    least_ = infinity;
    alive_ = 0;
  }

  void eliminate_panel(Rows<double> A, std::int64_t begin, const double* weights) {
    for (std::int64_t j = begin; j < std::min(begin + panel_width, A.count); ++j) eliminate(A, begin, j, weights);
    if (begin + panel_width < A.count) gather(A, begin);
  }

  void eliminate(Rows<double> A, std::int64_t begin, std::int64_t j, const double* weights) {
    double *const column = A[j], *const u = U_[j];
    for (std::int64_t i = begin; i < j; ++i) {
      const int p = pivots_[std::size_t(i)];
      u[i] = p < 0 ? 0 : column[p];
      if (p >= 0) subtract(u[i], A[i], column, length_);
    }
    int p = weights ? heaviest(column, weights) : largest(column);
    if (p >= 0 && !graded_ && faint(column, p)) p = largest(column, subtracted(j));
    pivots_[std::size_t(j)] = p;
    u[j] = p < 0 ? 1 : column[p];
    if (p < 0) {
      logs_[std::size_t(j)] = -infinity;
      std::fill_n(column, length_, 0.0);
      return;
    }
    const double pivot = std::fabs(column[p]);
    least_ = std::min(least_, pivot);
    ++alive_;
    logs_[std::size_t(j)] = std::log(pivot) + (weights ? weights[p] : shift_);
    multiply(1 / column[p], column, length_);
    column[p] = 1;
  }

  // What was subtracted from a column, in each of its rows: `columns` times the row's size, and no more than `most`.
  struct Subtracted {
    double columns, most;
  };

  // Whether a column with its largest number in row p has nothing left that is far above rounding.
  bool faint(const double* column, int p) const {
    const auto small = [=, this](std::int64_t i) { return std::fabs(column[i]) <= row_sizes_.data()[i] * 1e-6; };
    if (!small(p)) return false;
    for (std::int64_t i = 0; i < length_; ++i)
      if (!small(i)) return false;
    return true;
  }

  // Column j is the sum of c times those before it, and a rest: c = U^-1 u. All zero where that is beyond float64.
  Subtracted subtracted(std::int64_t j) const {
    Subtracted sum{};
    std::vector<double> c(U_[j], U_[j] + j);
    for (std::int64_t i = j; i-- > 0;) {
      const double* const u = U_[i];
      c[std::size_t(i)] /= u[i];
      double size = 0;
      for (std::int64_t l = 0; l < i; ++l) {
        c[std::size_t(l)] -= u[l] * c[std::size_t(i)];
        size = std::max(size, std::fabs(u[l]));
      }
      if (pivots_[std::size_t(i)] >= 0) size = std::max(size, std::fabs(u[i]));
      sum.columns += std::fabs(c[std::size_t(i)]);
      sum.most += std::fabs(c[std::size_t(i)]) * size;
    }
    return sum.most < infinity ? sum : Subtracted{};
  }

  // The row of the largest number, -1 if there is none. What is 4 n eps of its row or less, or of what was subtracted
  // from it, is the rounding of a sum that should be zero, and becomes it.
  int largest(double* column, Subtracted before = {}) const {
    return find_largest(0, [=, this](std::int64_t i) {
      const Vector<double> size = load(row_sizes_.data() + i), sum = size * before.columns;
      const Vector<double> summed = size + select<double>(sum < before.most, sum, broadcast(before.most));
      Vector<double> x = load(column + i);
      x = select<double>(abs<double>(x) > summed * rounding_, x, Vector<double>{});
      store(column + i, x);
      return abs<double>(x);
    });
  }

  // The row of the largest weighted number, -1 if there is none.
  int heaviest(const double* column, const double* weights) const {
    return find_largest(-infinity, [=](std::int64_t i) {
      // The bits of a number, read as an integer, are its logarithm to base 2 up to a factor, a constant and 0.086.
      const Vector<double> x = abs<double>(load(column + i));
      const Mask<double> high = (bits<Mask<double>>(x) >> 20) | std::bit_cast<std::int64_t>(0x1p52);
      const Vector<double> log = (bits<Vector<double>>(high) - 0x1p52) * (0x1p-32 * ln_2);
      return select<double>(x == 0.0, broadcast(-infinity), log + load(weights + i));
    });
  }

  // The row with the largest size(row, row + 1, ...), or -1 where none is above `none`.
  template <class Size>
  int find_largest(double none, Size size) const {
    Vector<double> most = broadcast(none);
    for (std::int64_t i = 0; i < length_; i += lanes<double>) most = greater(size(i), most);
    double top = none;
    for (int l = 0; l < lanes<double>; ++l) top = std::max(top, most[l]);
    if (!(top > none)) return -1;
    for (std::int64_t i = 0;; i += lanes<double>) {
      const Vector<double> sizes = size(i);
      for (int l = 0; l < lanes<double>; ++l)
        if (sizes[l] == top) return int(i + l);
    }
  }

  // The triangle of M in the rows of the panel's own pivots.
  void gather(Rows<double> A, std::int64_t begin) {
    auto& triangle = triangles_[begin / panel_width % 2];
    for (int r = 0; r < panel_width; ++r)
      for (int s = 0; s < panel_width; ++s) {
        const int p = pivots_[std::size_t(begin + s)];
        triangle[r][s] = s > r && p >= 0 ? A[begin + r][p] : 0;
      }
  }

  // Eliminates a panel from the columns of one tile: A -= M u, u = triangle^-1 A(pivots).
  void follow(Rows<double> all, std::int64_t begin, std::int64_t first, std::int64_t columns,
              const PackedMatrix<double>& panel) const {
    const Rows<double> A = all.part(first, columns);
    const auto& triangle = triangles_[begin / panel_width % 2];
    alignas(row_bytes) double u[tile::max_columns][panel_width];  // negative
    const int* const pivots = pivots_.data() + begin;
    for (std::int64_t c = 0; c < columns; ++c)
      for (int r = 0; r < panel_width; ++r) u[c][r] = pivots[r] < 0 ? 0 : -A[c][pivots[r]];
    for (int r = 0; r < panel_width; ++r)
      for (std::int64_t c = 0; c < columns; ++c)
        for (int s = r / lanes<double> * lanes<double>; s < panel_width; s += lanes<double>)
          store(u[c] + s, load(u[c] + s) - load(triangle[r] + s) * u[c][r]);
    if (!graded_)
      for (std::int64_t c = 0; c < columns; ++c)
        for (int r = 0; r < panel_width; r += lanes<double>) store(U_[first + c] + begin + r, -load(u[c] + r));
    panel.multiply_add({u[0], columns, panel_width}, A, A, {0, panel.panels()});
    for (std::int64_t c = 0; c < columns; ++c)
      for (int r = 0; r < panel_width; ++r)
        if (pivots[r] >= 0) A[c][pivots[r]] = 0;
  }

  void weigh(double* column, int pivot, const double* weights) const {
    if (pivot < 0) return;
    for (std::int64_t i = 0; i < length_; i += lanes<double>) {
      // 0 in the rows of earlier pivots, where the other factor may be infinite.
      const Vector<double> x = load(column + i);
      store(column + i, select<double>(x == 0.0, x, x * exp<double>(load(weights + i) - weights[pivot])));
    }
    column[pivot] = 1;
  }

  static constexpr double ln_2 = 0x1.62e42fefa39efp-1;

  double rounding_;
  std::int64_t length_;
  std::vector<Own> own_;
  Buffer<double> row_sizes_;                                          // the largest number of each row of A
  alignas(row_bytes) double triangles_[2][panel_width][panel_width];  // of this panel and the next
  Buffer<double> U_storage_;
  Rows<double> U_;           // a column a row; 1 for the pivot of a dead one
  std::vector<int> pivots_;  // the row of each column's; -1: it is dead
  std::vector<double> logs_;
  std::vector<std::atomic<std::int64_t>> dealt_;  // tiles beyond each panel that someone has taken
  double most_uneven_;       // nats that weights multiplied in are apart; 0: all equal, as relu's are
  std::int64_t alive_ = 0;   // columns
  double largest_ = 0;       // number of A
  double least_ = infinity;  // pivot
  double shift_ = 0;         // the weight that was taken out of all
  bool graded_ = false;
};

}  // namespace bptt
