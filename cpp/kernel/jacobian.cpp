#include "jacobian.hpp"

#include <vector>

#include "outer_sum.hpp"

namespace bptt {
namespace {

// Steps whose products wait in the nearer cache to be summed as one matrix product.
constexpr std::int64_t block_steps = 104;

// Columns that stay in the nearer cache for all steps of a run.
constexpr std::int64_t block_columns = 8 * tile::max_columns;

bool finite(const double* numbers, std::int64_t count) {
  constexpr int ways = 4, width = ways * lanes<double>;
  Vector<double> traces[ways] = {};
  std::int64_t i = 0;
  for (; i + width <= count; i += width)
    for (int w = 0; w < ways; ++w) traces[w] += load(numbers + i + w * lanes<double>) * 0.0;
  double trace = 0;
  for (; i < count; ++i) trace += numbers[i] * 0;
  for (const Vector<double>& lane : traces)
    for (int l = 0; l < lanes<double>; ++l) trace += lane[l];
  return trace == 0;
}

// W_R and v as the products take them, for the steps of a run that are in this precision.
template <class Real>
struct Operands {
  Operands(const Run& run_, std::int64_t begin, std::int64_t end)
      : run(run_),
        first(begin),
        steps(end - begin),
        strips(run.v.x ? row_length<Real>(int(run.q)) / line<Real> : 0),
        W_turned(run.n, run.n),
        v(strips * steps * line<Real>) {}

  // A thread's share.
  void pack(int rank, int ranks) {
    if (!steps) return;
    W_turned.pack(run.W_R, 1, run.n, part(W_turned.panels(), 1, rank, ranks));
    for (std::int64_t i = rank; i < strips; i += ranks)
      pack_strip<line<Real>>(run.v.x + first * run.q, run.q, steps, i * line<Real>, run.q,
                             v.data() + i * steps * line<Real>);
  }

  const Run& run;
  std::int64_t first, steps, strips;
  PackedMatrix<Real> W_turned;
  Buffer<Real> v;
};

// P(k) of some rows, at most tile::max_columns, at the steps of a block, the last on top.
template <class Real>
class Block {
 public:
  explicit Block(const Operands<Real>& operands)
      : run_(operands.run),
        operands_(operands),
        top_(std::min(operands.steps, block_steps)),
        length_(row_length<Real>(run_.n)),
        step_(tile::max_columns * length_ + line<Real>),  // lines of one number are spread over the sets of a cache
        history_((top_ + 1) * step_) {}

  template <class From>
  void start(Rows<From> rows) {
    for (std::int64_t r = 0; r < rows.count; ++r) std::copy_n(rows[r], run_.n, at(0) + r * length_);
  }

  // Back over the `count` steps before `last`.
  void back(std::int64_t rows, std::int64_t last, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
      Real* to = at(i + 1);
      operands_.W_turned.multiply_add({at(i), rows, length_}, {}, {to, rows, length_},
                                      {0, operands_.W_turned.panels()});
      const double* d = run_.d + (last - 1 - i) * run_.n;
      for (std::int64_t r = 0; r < rows; ++r, to += length_)
        for (int a = 0; a < run_.n; ++a) to[a] *= Real(d[a]);
    }
  }

  // What they have led to.
  Rows<Real> product(std::int64_t rows, std::int64_t count) const { return {at(count), rows, length_}; }

  // J(a, b) (+)= sum over those steps of p(a) v(b), for row r of P and its rows J of the result.
  void add(std::int64_t r, std::int64_t last, std::int64_t count, double* J, bool fresh) const {
    const Real* p = at(count - 1) + r * length_;
    const std::int64_t q = run_.q, first = last - count;
    if (run_.v.tokens) {
      if (fresh) std::fill_n(J, run_.n * q, 0.0);
      for (std::int64_t s = count; s-- > 0;)
        for (int a = 0; a < run_.n; ++a) J[a * q + run_.v.tokens[first + s]] += double(p[s * step_ + a]);
      return;
    }
    const Strips<Real> v{operands_.v.data() + (first - operands_.first) * line<Real>, operands_.steps * line<Real>,
                         line<Real>};
    for (std::int64_t strip = 0; strip * tile::outer_height < run_.n; ++strip)
      outer_sum(p + strip * tile::outer_height, step_, strip, v, count, Sum{J, q, run_.n, q, fresh});
  }

 private:
  // After so many steps back.
  Real* at(std::int64_t count) const { return history_.data() + (top_ - count) * step_; }

  const Run& run_;
  const Operands<Real>& operands_;
  std::int64_t top_, length_, step_;
  Buffer<Real> history_;
};

// Some rows of P on their way back through a run, and their share of J.
struct ChainRows {
  Block<double> exact;
  Block<float> rest;

  void operator()(const Run& run, Rows<double> P, double* J, bool more) {
    const std::int64_t rows = P.count;
    exact.start(P);
    for (std::int64_t last = run.steps; last > 0;) {
      const std::int64_t count = std::clamp<std::int64_t>(last - run.single, 0, block_steps), middle = last - count,
                         few = middle > run.single ? 0 : std::min(middle, block_steps);
      exact.back(rows, last, count);
      if (few) {
        rest.start(exact.product(rows, count));
        rest.back(rows, middle, few);
      }
      // Both at once: a row of J passes through the caches once.
      for (std::int64_t r = 0; r < rows && J; ++r) {
        double* const of_row = J + r * run.n * run.q;
        const bool fresh = !more && last == run.steps;
        if (count) exact.add(r, last, count, of_row, fresh);
        if (few) rest.add(r, middle, few, of_row, fresh && !count);
      }
      if (few)
        exact.start(rest.product(rows, few));
      else
        exact.start(exact.product(rows, count));
      last = middle - few;
    }
    const Rows<double> end = exact.product(rows, 0);
    for (std::int64_t r = 0; r < rows; ++r) std::copy_n(end[r], run.n, P[r]);
  }
};

}  // namespace

bool jacobian_by_chain(const Run& run, Rows<double> P, double* J, bool more, int threads) {
  const int n = run.n;
  const int size = team_size(threads, double(run.steps) * n * n * (n + run.q));
  // An even number of tiles: what two threads do then takes equally long.
  const ColumnTiles tiles(n, ((n + tile::max_columns - 1) / tile::max_columns + 3) / 4 * 4);
  Operands<double> exact(run, run.single, run.steps);
  Operands<float> rest(run, 0, run.single);
  std::vector<ChainRows> own;
  for (int i = 0; i < size; ++i) own.push_back({Block<double>(exact), Block<float>(rest)});
  std::atomic<bool> all_finite = true;

  Team::run(size, [&](Team& team, int rank) {
    const FlushDenormals flush;
    exact.pack(rank, team.size());
    rest.pack(rank, team.size());
    team.barrier();
    for (std::int64_t i = rank; i < tiles.tiles; i += team.size()) {
      const std::int64_t begin = tiles.begin(i), rows = tiles.end(i) - begin, numbers = n * run.q;
      double* const of_rows = J ? J + begin * numbers : nullptr;
      own[std::size_t(rank)](run, P.part(begin, rows), of_rows, more);
      if (J && !finite(of_rows, rows * numbers)) all_finite = false;
    }
  });
  return all_finite;
}

std::int64_t jacobian_by_recursion(const Run& run, Rows<double> J, int threads) {
  const int n = run.n;
  const std::int64_t length = row_length<double>(n), blocks = (J.count + block_columns - 1) / block_columns;
  const int size = team_size(threads, double(run.steps) * n * n * double(J.count));
  PackedMatrix<double> W(n, n);
  std::vector<Buffer<double>> products;
  for (int i = 0; i < size; ++i) products.emplace_back(block_columns * length);
  const bool has_v = run.v.x || run.v.tokens;
  std::atomic<std::int64_t> bad = run.steps;  // the first step

  Team::run(size, [&](Team& team, int rank) {
    const FlushDenormals flush;
    W.pack(run.W_R, n, 1, part(W.panels(), 1, rank, team.size()));
    team.barrier();
    double* const DJ = products[std::size_t(rank)].data();
    std::fill_n(DJ, block_columns * length, 0.0);
    for (std::int64_t block = rank; block < blocks; block += team.size()) {
      const std::int64_t begin = block * block_columns, columns = std::min(block_columns, J.count - begin);
      std::int64_t a[block_columns], b[block_columns];  // the weight of each column
      for (std::int64_t c = 0; c < columns && has_v; ++c) {
        a[c] = (begin + c) / run.q;
        b[c] = (begin + c) % run.q;
      }
      for (std::int64_t s = 0; s < run.steps; ++s) {
        const double* d = run.d + s * n;
        for (std::int64_t c = 0; c < columns; ++c)
          for (int i = 0; i < n; ++i) DJ[c * length + i] = d[i] * J[begin + c][i];
        std::fill_n(J[begin], columns * length, 0.0);
        for (std::int64_t c = 0; c < columns && has_v; ++c)
          J[begin + c][a[c]] = run.v.x ? run.v.x[s * run.q + b[c]] : run.v.tokens[s] == b[c];
        W.multiply_add({DJ, columns, length}, J.from(begin), J.part(begin, columns));
        if (s < bad && !finite(J[begin], columns * length))
          for (std::int64_t seen = bad; s < seen && !bad.compare_exchange_weak(seen, s);) {
          }
      }
    }
  });
  return bad < run.steps ? std::int64_t(bad) : -1;
}

}  // namespace bptt
