#include "segment.hpp"

#include <optional>

#include "outer_sum.hpp"
#include "readout.hpp"

namespace bptt {
namespace {

// Columns of a block of steps: what the time loop leaves behind stays in cache until it has become matrix products.
template <class Real>
std::int64_t block_columns(int n) {
  return n >= 512 ? 512 : 256;
}

// Below this many multiply-adds a call is over before a second thread has woken up.
inline constexpr double worth_a_team = 4e5;

// How the steps of one problem are cut, for any number of threads: by columns, each thread its own sequences and no
// waiting; or by rows of W, a barrier a step, where a step has few columns and W is too large for the nearest cache.
template <class Real>
struct Cut {
  bool by_rows;
  ColumnTiles tiles;
  std::int64_t panels;

  Cut(int n, std::int64_t B) : by_rows(rows_pay(n, B)), tiles(B, by_rows ? 1 : 2), panels(row_length<Real>(n) / line<Real>) {}

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
      for (std::int64_t b = begin; b < end; ++b) work(b * length + panels_.begin * line<Real>, (panels_.end - panels_.begin) * line<Real>);
  }

  // Y += W X on its part.
  void multiply_add(const PackedMatrix<Real>& W, const Real* x, Real* y, std::int64_t length, std::int64_t active) const {
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

// Where the columns of each step lie. Rows of a begin with the carried states, so column j of the segment is row j + counts[0].
class Layout {
 public:
  Layout(int steps, const std::int64_t* counts, std::int64_t most_columns) : counts_(counts), row_(std::size_t(steps) + 2) {
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

// Columns of a range dealt to a team in chunks that do not depend on its size: work(first, columns).
template <class Work>
void each_chunk(Range columns, const Team& team, int rank, Work&& work) {
  const Range own = part(columns.end - columns.begin, chunk, rank, team.size());
  for (std::int64_t c = own.begin; c < own.end; c += chunk) work(columns.begin + c, int(std::min<std::int64_t>(chunk, own.end - c)));
}

int team_size(int threads, double multiply_adds) { return multiply_adds < worth_a_team ? 1 : threads; }

// Index of the first (or last) row among `count` that holds a number that is not finite, or -1.
template <class Real>
std::int64_t find_nonfinite(Rows<const Real> rows, std::int64_t count, int n, bool from_end) {
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t j = from_end ? count - 1 - i : i;
    Real sum = 0;
    for (int r = 0; r < n; ++r) sum += rows[j][r] * Real(0);
    if (sum != 0) return j;
  }
  return -1;
}

// Sums of numbers first..last of each of the columns; false if one of them is not finite.
template <class Real>
bool column_sums(Rows<const Real> rows, std::int64_t columns, Range numbers, std::int64_t valid, double* sums) {
  bool finite = true;
  for (std::int64_t r = numbers.begin; r < numbers.end; r += lanes<Real>) {
    Vector<Real> sum{}, trace{};
    for (std::int64_t j = 0; j < columns; ++j) {
      const Vector<Real> v = load(rows[j] + r);
      sum += v;
      trace += v * Real(0);
    }
    for (std::int64_t i = r; i < std::min(valid, r + lanes<Real>); ++i) {
      if (sums) sums[i] += double(sum[i - r]);
      finite = finite && trace[i - r] == 0;
    }
  }
  return finite;
}

void raise_to(std::atomic<std::int64_t>& most, std::int64_t value) {
  for (std::int64_t seen = most; seen < value && !most.compare_exchange_weak(seen, value);) {
  }
}

}  // namespace

template <class Real>
std::int64_t forward(const Network<Real>& net, const Segment<Real>& segment, int threads) {
  const int n = net.n;
  const std::int64_t length = row_length<Real>(n), panels = length / line<Real>;
  const Layout layout(segment.steps, segment.counts, block_columns<Real>(n));
  const Cut<Real> cut(n, layout.count(0));
  PackedMatrix<Real> W_R(n, n), W_I(segment.inputs.x ? n : 0, segment.inputs.x ? net.p : 0);
  Buffer<Real> bias(length);
  std::fill_n(bias.data(), length, Real(0));
  if (net.b) std::copy_n(net.b, n, bias.data());
  const Rows<Real> states{segment.a[layout.count(0)], layout.total(), length};
  const Rows<Real> h = segment.h ? segment.h : states;  // where nothing keeps h, it is made in a's place
  std::atomic<std::int64_t> bad = -1;                    // as total - column, so that the largest is the first

  Team::run(team_size(threads, double(layout.total()) * n * (n + net.p)), [&](Team& team, int rank) {
    W_R.pack(net.W_R, n, 1, part(panels, 1, rank, team.size()));
    if (segment.inputs.x) W_I.pack(net.W_I, net.p, 1, part(panels, 1, rank, team.size()));
    team.barrier();
    const Share<Real> share(cut, rank, team.size());
    for (int k = 0; k < layout.blocks(); ++k) {
      each_chunk(layout.columns(k), team, rank, [&](std::int64_t first, int columns) {
        for (std::int64_t j = first; j < first + columns; ++j) std::copy_n(bias.data(), length, h[j]);
        if (segment.inputs.x)
          W_I.multiply_add(segment.inputs.x + first * net.p, net.p, h[first], length, columns);
        else
          for (std::int64_t j = first; j < first + columns; ++j) {
            const Real* column = net.W_I + segment.inputs.tokens[j] * length;
            for (std::int64_t i = 0; i < length; ++i) h[j][i] += column[i];
          }
      });
      team.barrier();
      for (int s = layout.first(k); s <= layout.last(k); ++s) {
        const std::int64_t active = layout.count(s);
        Real *h_s = h[layout.column(s)], *a_s = states[layout.column(s)];
        share.multiply_add(W_R, segment.a[layout.row(s - 1)], h_s, length, active);
        share.each_tile(active, [&](std::int64_t b0, std::int64_t b1) {
          share.each_piece(b0, b1, length, [&](std::int64_t at, std::int64_t count) { activate(net.activation, h_s + at, a_s + at, count); });
        });
        if (cut.by_rows) team.barrier();
      }
      if (!cut.by_rows) team.barrier();
      each_chunk(layout.columns(k), team, rank, [&](std::int64_t first, int columns) {
        if (bad >= 0) return;
        bool finite = column_sums<Real>(states.from(first), columns, {0, length}, n, nullptr);
        if (segment.h) finite = column_sums<Real>(h.from(first), columns, {0, length}, n, nullptr) && finite;
        if (finite) return;
        std::int64_t j = find_nonfinite<Real>(states.from(first), columns, n, false);
        if (segment.h)
          if (const std::int64_t i = find_nonfinite<Real>(h.from(first), columns, n, false); i >= 0 && (j < 0 || i < j)) j = i;
        raise_to(bad, layout.total() - (first + j));
      });
    }
  });
  return bad < 0 ? -1 : layout.total() - bad;
}

template <class Real>
void outputs(const Network<Real>& net, Rows<const Real> r, Real* o, int threads) {
  const int size = team_size(threads, double(r.count) * net.n * net.m);
  PackedReadout<Real> readout(net, false, false, size);
  Team::run(size, [&](Team& team, int rank) {
    each_chunk({0, r.count}, team, rank, [&](std::int64_t first, int columns) {
      readout.predict(r.from(first), columns, o + first * net.m, rank);
    });
  });
}

template <class Real>
void direct(const Network<Real>& net, Loss loss, Rows<const Real> a, Rows<const Real> h, const Targets<Real>& targets, double* errors,
            Rows<Real> g, int threads) {
  const std::int64_t length = g.stride;
  const int size = team_size(threads, double(a.count) * net.n * net.m);
  PackedReadout<Real> readout(net, true, true, size);
  std::vector<Buffer<Real>> e;
  for (int i = 0; i < size; ++i) e.emplace_back(chunk * readout.z_length());
  Team::run(size, [&](Team& team, int rank) {
    each_chunk({0, a.count}, team, rank, [&](std::int64_t first, int columns) {
      Real* const own = e[std::size_t(rank)].data();
      const bool reads_h = net.readout == Readout::preactivation;
      std::fill_n(g[first], columns * length, Real(0));
      if (readout.errors(loss, reads_h ? h.from(first) : a.from(first), targets.from(first, net.m), columns, own, errors + first, rank))
        readout.to_states(own, columns, g.from(first));
      if (!reads_h) multiply_derivative(net.activation, a[first], g[first], columns * length);
    });
  });
}

template <class Real>
std::int64_t backward(const Network<Real>& net, const Segment<Real>& segment, const Backward<Real>& task, int threads) {
  const int n = net.n, p = net.p, m = net.m;
  const std::int64_t length = row_length<Real>(n), panels = length / line<Real>;
  const Layout layout(segment.steps, segment.counts, block_columns<Real>(n));
  const Cut<Real> cut(n, layout.count(0));
  const int size = team_size(threads, double(layout.total()) * n * (2 * n + p + 2 * m));
  const std::int64_t widest = layout.widest();
  const Rows<Real> states = segment.a.from(layout.count(0));

  const bool reads_out = task.loss != Loss::upstream || task.d_outputs;
  const bool by_h = reads_out && net.readout == Readout::preactivation;        // e W_O is a derivative by h_t
  const bool states_by_h = task.d_states && net.form == Form::preactivation;  // and so is d_states
  const Rows<const Real> r = by_h ? Rows<const Real>(segment.h) : Rows<const Real>(states);
  std::optional<PackedReadout<Real>> readout;
  if (reads_out) readout.emplace(net, true, true, size);
  const std::int64_t z_length = reads_out ? readout->z_length() : 0;

  PackedMatrix<Real> W_R_turned(n, n), W_I_turned(task.d_x ? p : 0, task.d_x ? n : 0);
  const std::int64_t x_length = row_length<Real>(p), strips = (n + tile::outer_height - 1) / tile::outer_height;
  const std::int64_t e_strips = reads_out ? (m + tile::outer_height - 1) / tile::outer_height : 0;
  const Buffer<Real> delta(task.delta ? 0 : widest * length), by_h_part(by_h || states_by_h ? widest * length : 0), e(widest * z_length);
  const Buffer<Real> a_strips((widest + layout.count(0)) * length), r_strips(reads_out ? widest * length : 0);
  const Buffer<Real> x_strips(segment.inputs.x ? widest * x_length : 0);
  std::vector<Buffer<Real>> u_strip, x_rows;
  for (int i = 0; i < size; ++i) {
    u_strip.emplace_back(widest * tile::outer_height);
    x_rows.emplace_back(task.d_x ? chunk * x_length : 0);
  }
  std::atomic<std::int64_t> bad = -1;
  std::atomic<bool> has_errors = false;  // in this block

  Team::run(size, [&](Team& team, int rank) {
    W_R_turned.pack(net.W_R, 1, n, part(panels, 1, rank, team.size()));
    if (task.d_x) W_I_turned.pack(net.W_I, 1, p, part(W_I_turned.panels(), 1, rank, team.size()));
    const Share<Real> share(cut, rank, team.size());

    for (int k = layout.blocks() - 1; k >= 0; --k) {
      const Range block = layout.columns(k);
      const std::int64_t columns = block.end - block.begin;
      const Rows<Real> d = task.delta ? task.delta.from(block.begin) : Rows<Real>{delta.data(), columns, length};
      const Rows<Real> d_h{by_h_part.data(), columns, length};

      // The direct part of delta, by a_t in d and by h_t in d_h, and beside it the strips of what came before.
      each_chunk(block, team, rank, [&](std::int64_t first, int width) {
        const std::int64_t j = first - block.begin;
        std::fill_n(d[j], width * length, Real(0));
        if (d_h) std::fill_n(d_h[j], width * length, Real(0));
        if (task.d_states)
          for (int c = 0; c < width; ++c) std::copy_n(task.d_states + (first + c) * n, n, (states_by_h ? d_h : d)[j + c]);
        if (!reads_out) return;
        Real* own = e.data() + j * z_length;
        if (task.loss == Loss::upstream)
          readout->pull_back(r.from(first), task.d_outputs + first * m, width, own, rank);
        else if (!readout->errors(task.loss, r.from(first), task.targets.from(first, m), width, own, task.errors + first, rank))
          return;
        has_errors = true;
        readout->to_states(own, width, (by_h ? d_h : d).from(j));
      });
      const bool even = layout.even(k), direct_strips = length == line<Real>;
      const std::int64_t before = layout.row(layout.first(k) - 1), ahead = even ? layout.count(layout.first(k)) : 0;
      const std::int64_t a_step = (columns + ahead) * line<Real>, r_step = columns * line<Real>;
      for (std::int64_t q = rank; q < panels; q += team.size()) {
        if (even && direct_strips) break;
        Real* to = a_strips.data() + q * a_step;
        if (even)
          pack_strip<Real>(segment.a[before], length, columns + ahead, q * line<Real>, n, line<Real>, to);
        else
          for (int s = layout.first(k); s <= layout.last(k); to += layout.count(s++) * line<Real>)
            pack_strip<Real>(segment.a[layout.row(s - 1)], length, layout.count(s), q * line<Real>, n, line<Real>, to);
      }
      const bool r_is_a = even && !by_h;  // then the strips of a hold a_t too, `ahead` columns on
      if (reads_out && !r_is_a && !direct_strips)
        for (std::int64_t q = rank; q < panels; q += team.size())
          pack_strip<Real>(r[block.begin], length, columns, q * line<Real>, n, line<Real>, r_strips.data() + q * r_step);
      if (segment.inputs.x && p != line<Real>)
        for (std::int64_t q = rank; q < x_length / line<Real>; q += team.size())
          pack_strip<Real>(segment.inputs.x + block.begin * p, p, columns, q * line<Real>, p, line<Real>,
                           x_strips.data() + q * columns * line<Real>);
      team.barrier();

      const FlushDenormals flush;
      for (int s = layout.last(k); s >= layout.first(k); --s) {
        const std::int64_t active = layout.count(s), going_on = layout.count(s + 1);
        const std::int64_t at = layout.column(s) - block.begin;
        const Real* a_s = states[layout.column(s)];
        share.each_tile(active, [&](std::int64_t b0, std::int64_t b1) {
          const auto add = [&](std::int64_t begin, std::int64_t end, const Real* from, Real* to) {
            if (begin < end)
              share.each_piece(begin, end, length, [&](std::int64_t i, std::int64_t count) {
                for (std::int64_t c = i; c < i + count; ++c) to[c] += from[c];
              });
          };
          // What flows in from later: at the block's last step for every column, elsewhere for sequences that end here.
          const std::int64_t ended = std::clamp(going_on, b0, b1);
          const bool ends_by_h = net.form == Form::preactivation;
          add(s == layout.last(k) ? b0 : ended, ends_by_h ? ended : b1, task.carry.data, d[at]);
          share.each_piece(b0, b1, length, [&](std::int64_t i, std::int64_t count) { multiply_derivative(net.activation, a_s + i, d[at] + i, count); });
          if (d_h) add(b0, b1, d_h[at], d[at]);
          if (ends_by_h) add(ended, b1, task.carry.data, d[at]);
        });
        if (cut.by_rows) team.barrier();
        const bool first = s == layout.first(k);
        Real* to = first ? task.carry.data : d[layout.column(s - 1) - block.begin];
        if (first)
          share.each_tile(active, [&](std::int64_t b0, std::int64_t b1) {
            share.each_piece(b0, b1, length, [&](std::int64_t i, std::int64_t count) { std::fill_n(to + i, count, Real(0)); });
          });
        share.multiply_add(W_R_turned, d[at], to, length, active);
      }
      team.barrier();

      // The block's part of every sum.
      const Strips<Real> before_strips = direct_strips && even ? Strips<Real>{segment.a[before], 0, length}
                                                               : Strips<Real>{a_strips.data(), a_step, line<Real>};
      const Strips<Real> x_from = p == line<Real> ? Strips<Real>{segment.inputs.x + block.begin * p, 0, p}
                                                  : Strips<Real>{x_strips.data(), columns * line<Real>, line<Real>};
      const Strips<Real> r_from = direct_strips ? Strips<Real>{r[block.begin], 0, length}
                                  : r_is_a ? Strips<Real>{a_strips.data() + ahead * line<Real>, a_step, line<Real>}
                                           : Strips<Real>{r_strips.data(), r_step, line<Real>};
      const Range own = part(strips + (has_errors ? e_strips : 0), 1, rank, team.size());
      for (std::int64_t i = own.begin; i < own.end; ++i) {
        Real* const u = u_strip[std::size_t(rank)].data();
        const bool of_e = i >= strips;
        const std::int64_t strip = of_e ? i - strips : i;
        pack_strip<Real>(of_e ? e.data() : d.data, of_e ? z_length : length, columns, strip * tile::outer_height, of_e ? m : n, tile::outer_height, u);
        if (of_e) {
          if (task.sums.W_O) outer_sum(u, strip, r_from, columns, Sum{task.sums.W_O, n, m, n});
          continue;
        }
        outer_sum(u, strip, before_strips, columns, Sum{task.sums.W_R, n, n, n});
        if (segment.inputs.x) outer_sum(u, strip, x_from, columns, Sum{task.sums.W_I, p, n, p});
      }
      const Range numbers = part(length, line<Real>, rank, team.size());
      if (!column_sums<Real>(d, columns, numbers, n, task.sums.b)) {
        const std::int64_t j = find_nonfinite<Real>(d, columns, n, true);
        if (j >= 0) raise_to(bad, block.begin + j);
      }
      if (has_errors && task.sums.b_O)
        column_sums<Real>({e.data(), columns, z_length}, columns, part(z_length, line<Real>, rank, team.size()), m, task.sums.b_O);
      if (segment.inputs.tokens)
        for (std::int64_t j = 0; j < columns; ++j) {
          double* to = task.sums.W_I + std::int64_t(segment.inputs.tokens[block.begin + j]) * n;
          for (std::int64_t i = numbers.begin; i < std::min<std::int64_t>(n, numbers.end); ++i) to[i] += double(d[j][i]);
        }
      if (task.d_x)
        each_chunk(block, team, rank, [&](std::int64_t first, int width) {
          Real* rows = x_rows[std::size_t(rank)].data();
          std::fill_n(rows, width * x_length, Real(0));
          W_I_turned.multiply_add(d[first - block.begin], length, rows, x_length, width);
          for (int c = 0; c < width; ++c) std::copy_n(rows + c * x_length, p, task.d_x + (first + c) * p);
        });
      team.barrier();
      if (rank == 0) has_errors = false;
      team.barrier();
    }
  });
  return bad;
}

#define BPTT_INSTANTIATE(Real)                                                                                                              \
  template std::int64_t forward(const Network<Real>&, const Segment<Real>&, int);                                                           \
  template void outputs(const Network<Real>&, Rows<const Real>, Real*, int);                                                                \
  template void direct(const Network<Real>&, Loss, Rows<const Real>, Rows<const Real>, const Targets<Real>&, double*, Rows<Real>, int);     \
  template std::int64_t backward(const Network<Real>&, const Segment<Real>&, const Backward<Real>&, int);
BPTT_INSTANTIATE(float)
BPTT_INSTANTIATE(double)
#undef BPTT_INSTANTIATE

}  // namespace bptt
