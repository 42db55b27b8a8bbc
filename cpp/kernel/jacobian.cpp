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

// Some rows of P on their way back through a run, and their share of J.
class ChainRows {
 public:
  ChainRows(const Run& run, const PackedMatrix<double>& W_turned, const Buffer<double>& v_strips)
      : run_(run),
        W_turned_(W_turned),
        v_strips_(v_strips),
        length_(row_length<double>(run.n)),
        step_(tile::max_columns * length_ + line<double>),  // lines of one number are spread over the sets of a cache
        history_((block_steps + 1) * step_) {}

  // Rows begin..end of P, at most tile::max_columns.
  bool operator()(Rows<double> P, double* J, bool more, std::int64_t begin, std::int64_t end) {
    const std::int64_t rows = end - begin;
    std::copy_n(P[begin], rows * length_, at(block_steps));
    for (std::int64_t last = run_.steps; last > 0; last -= block_steps) {
      const std::int64_t count = std::min(block_steps, last);
      for (std::int64_t s = block_steps; s > block_steps - count; --s)
        step_back(rows, last - 1 - (block_steps - s), at(s), at(s - 1));
      if (J)
        for (std::int64_t r = 0; r < rows; ++r) {
          double* const of_row = J + (begin + r) * run_.n * run_.q;
          add(at(block_steps - count + 1) + r * length_, last - count, count, of_row, !more && last == run_.steps);
        }
      std::copy_n(at(block_steps - count), rows * length_, at(block_steps));
    }
    std::copy_n(at(block_steps), rows * length_, P[begin]);
    return !J || finite(J + begin * run_.n * run_.q, rows * run_.n * run_.q);
  }

 private:
  double* at(std::int64_t s) const { return history_.data() + s * step_; }

  // To = From W_R D, where d is number `step` of the run.
  void step_back(std::int64_t rows, std::int64_t step, const double* from, double* to) const {
    W_turned_.multiply_add({from, rows, length_}, {}, {to, rows, length_}, {0, W_turned_.panels()});
    const double* d = run_.d + step * run_.n;
    for (std::int64_t r = 0; r < rows; ++r, to += length_)
      for (int i = 0; i < run_.n; ++i) to[i] *= d[i];
  }

  // J(a, b) (+)= sum over the block's steps of p(a) v(b), for one row p of P and its rows J of the result.
  void add(const double* p, std::int64_t first, std::int64_t count, double* J, bool fresh) const {
    const std::int64_t q = run_.q;
    if (run_.v.tokens) {
      if (fresh) std::fill_n(J, run_.n * q, 0.0);
      for (std::int64_t s = count; s-- > 0;)
        for (int a = 0; a < run_.n; ++a) J[a * q + run_.v.tokens[first + s]] += p[s * step_ + a];
      return;
    }
    const Strips<double> v{v_strips_.data() + first * line<double>, run_.steps * line<double>, line<double>};
    for (std::int64_t strip = 0; strip * tile::outer_height < run_.n; ++strip)
      outer_sum(p + strip * tile::outer_height, step_, strip, v, count, Sum{J, q, run_.n, q, fresh});
  }

  const Run& run_;
  const PackedMatrix<double>& W_turned_;
  const Buffer<double>& v_strips_;
  std::int64_t length_, step_;
  Buffer<double> history_;  // P(k) of the steps of a block, the last on top
};

}  // namespace

bool jacobian_by_chain(const Run& run, Rows<double> P, double* J, bool more, int threads) {
  const int n = run.n;
  const std::int64_t q = run.v.x ? run.q : 0, strips = row_length<double>(int(q)) / line<double>;
  const int size = team_size(threads, double(run.steps) * n * n * (n + run.q));
  // An even number of tiles: what two threads do then takes equally long.
  const ColumnTiles tiles(n, ((n + tile::max_columns - 1) / tile::max_columns + 3) / 4 * 4);
  PackedMatrix<double> W_turned(n, n);
  const Buffer<double> v_strips(strips * run.steps * line<double>);
  std::vector<ChainRows> own;
  for (int i = 0; i < size; ++i) own.emplace_back(run, W_turned, v_strips);
  std::atomic<bool> all_finite = true;

  Team::run(size, [&](Team& team, int rank) {
    const FlushDenormals flush;
    W_turned.pack(run.W_R, 1, n, part(W_turned.panels(), 1, rank, team.size()));
    for (std::int64_t i = rank; i < strips; i += team.size())
      pack_strip<double>(run.v.x, q, run.steps, i * line<double>, q, line<double>,
                         v_strips.data() + i * run.steps * line<double>);
    team.barrier();
    for (std::int64_t i = rank; i < tiles.tiles; i += team.size())
      if (!own[std::size_t(rank)](P, J, more, tiles.begin(i), tiles.end(i))) all_finite = false;
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
