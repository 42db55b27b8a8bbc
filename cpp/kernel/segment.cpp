#include "segment.hpp"

#include <optional>

#include "outer_sum.hpp"
#include "readout.hpp"
#include "steps.hpp"

namespace bptt {
namespace {

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
  std::atomic<std::int64_t> bad = -1;                   // as total - column, so that the largest is the first

  Team::run(team_size(threads, double(layout.total()) * n * (n + net.p)), [&](Team& team, int rank) {
    W_R.pack(net.W_R, n, 1, part(panels, 1, rank, team.size()));
    if (segment.inputs.x) W_I.pack(net.W_I, net.p, 1, part(panels, 1, rank, team.size()));
    team.barrier();
    const Share<Real> share(cut, rank, team.size());
    for (int k = 0; k < layout.blocks(); ++k) {
      each_chunk(layout.columns(k), team, rank, [&](std::int64_t first, int columns) {
        for (std::int64_t j = first; j < first + columns; ++j)
          for (std::int64_t i = 0; i < length; i += lanes<Real>) store(h[j] + i, load(bias.data() + i));
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
          share.each_piece(b0, b1, length, [&](std::int64_t at, std::int64_t count) {
            activate(net.activation, h_s + at, a_s + at, count);
          });
        });
        if (cut.by_rows) team.barrier();
      }
      if (!cut.by_rows) team.barrier();
      each_chunk(layout.columns(k), team, rank, [&](std::int64_t first, int columns) {
        bool finite = column_sums<Real>(states.from(first), columns, {0, length}, n, nullptr);
        if (segment.h) finite = column_sums<Real>(h.from(first), columns, {0, length}, n, nullptr) && finite;
        if (finite) return;
        std::int64_t j = find_nonfinite<Real>(states.from(first), columns, n, false);
        if (segment.h)
          if (const std::int64_t i = find_nonfinite<Real>(h.from(first), columns, n, false); i >= 0 && (j < 0 || i < j))
            j = i;
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
void direct(const Network<Real>& net, Loss loss, Rows<const Real> a, Rows<const Real> h, const Targets<Real>& targets,
            double* errors, Rows<Real> g, int threads) {
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
      if (readout.errors(loss, reads_h ? h.from(first) : a.from(first), targets.from(first, net.m), columns, own,
                         errors + first, rank))
        readout.to_states(own, columns, g.from(first));
      if (!reads_h) multiply_derivative(net.activation, a[first], g[first], columns * length);
    });
  });
}

namespace {

// The backward pass over one segment: what its threads share. Block by block, last first, and in each block
// the direct part of delta, the recursion, and the block's part of every sum.
template <class Real>
class BackwardPass {
 public:
  BackwardPass(const Network<Real>& net, const Segment<Real>& segment, const Backward<Real>& task, int threads);
  std::int64_t run();

 private:
  // One block of steps: its columns, and delta's part by a_t and by h_t before the recursion joins them.
  struct Block {
    int first, last;  // steps
    Range columns;
    std::int64_t width;  // columns in it
    Rows<Real> d, d_h;
    bool even;
  };

  Block block(int k) const {
    const Range columns = layout_.columns(k);
    const std::int64_t width = columns.end - columns.begin;
    const Rows<Real> d = task_.delta ? task_.delta.from(columns.begin) : Rows<Real>{delta_.data(), width, length_};
    return {layout_.first(k), layout_.last(k), columns, width, d, {by_h_.data(), width, length_}, layout_.even(k)};
  }
  void direct_part(const Block& block, const Team& team, int rank);
  void pack_strips(const Block& block, const Team& team, int rank);
  void recursion(const Block& block, Team& team, const Share<Real>& share);
  void add_sums(const Block& block, const Team& team, int rank);
  void to_inputs(const Block& block, const Team& team, int rank);

  // The rows that stood before each column in time: a_{t-1}.
  const Real* before(const Block& block) const { return segment_.a[layout_.row(block.first - 1)]; }
  // a_t is found among the strips of a_{t-1}, this many columns on; 0 where it is not.
  std::int64_t ahead(const Block& block) const { return block.even ? layout_.count(block.first) : 0; }

  const Network<Real>& net_;
  const Segment<Real>& segment_;
  const Backward<Real>& task_;
  const std::int64_t length_ = row_length<Real>(net_.n), panels_ = length_ / line<Real>;
  const bool one_strip_ = length_ == line<Real>;  // rows of states are strips as they stand
  const Layout layout_{segment_.steps, segment_.counts, block_columns<Real>(net_.n)};
  const Cut<Real> cut_{net_.n, layout_.count(0)};
  const int size_;
  const Rows<Real> states_ = segment_.a.from(layout_.count(0));

  const bool reads_out_ = task_.loss != Loss::upstream || task_.d_outputs;
  const bool errors_by_h_ = reads_out_ && net_.readout == Readout::preactivation;  // e W_O is a derivative by h_t
  const bool states_by_h_ = task_.d_states && net_.form == Form::preactivation;    // and so is d_states
  const Rows<const Real> r_ = errors_by_h_ ? segment_.h : states_;
  std::optional<PackedReadout<Real>> readout_;
  PackedMatrix<Real> W_R_turned_{net_.n, net_.n}, W_I_turned_{task_.d_x ? net_.p : 0, task_.d_x ? net_.n : 0};

  // Of one block.
  Buffer<Real> delta_, by_h_, e_, a_strips_, r_strips_, x_strips_;
  std::atomic<bool> has_errors_ = false;
  // Of one thread.
  std::vector<Buffer<Real>> strip_, x_rows_;

  std::atomic<std::int64_t> bad_ = -1;
};

template <class Real>
BackwardPass<Real>::BackwardPass(const Network<Real>& net, const Segment<Real>& segment, const Backward<Real>& task,
                                 int threads)
    : net_(net),
      segment_(segment),
      task_(task),
      size_(team_size(threads, double(layout_.total()) * net.n * (2 * net.n + net.p + 2 * net.m))) {
  const std::int64_t widest = layout_.widest();
  if (reads_out_) {
    readout_.emplace(net, true, true, size_);
    e_ = Buffer<Real>(widest * readout_->z_length());
    r_strips_ = Buffer<Real>(widest * length_);
  }
  if (!task.delta) delta_ = Buffer<Real>(widest * length_);
  if (errors_by_h_ || states_by_h_) by_h_ = Buffer<Real>(widest * length_);
  a_strips_ = Buffer<Real>((widest + layout_.count(0)) * length_);
  if (segment.inputs.x) x_strips_ = Buffer<Real>(widest * row_length<Real>(net.p));
  for (int i = 0; i < size_; ++i) {
    strip_.emplace_back(widest * tile::outer_height);
    x_rows_.emplace_back(task.d_x ? chunk * row_length<Real>(net.p) : 0);
  }
}

template <class Real>
std::int64_t BackwardPass<Real>::run() {
  Team::run(size_, [this](Team& team, int rank) {
    W_R_turned_.pack(net_.W_R, 1, net_.n, part(panels_, 1, rank, team.size()));
    if (task_.d_x) W_I_turned_.pack(net_.W_I, 1, net_.p, part(W_I_turned_.panels(), 1, rank, team.size()));
    const Share<Real> share(cut_, rank, team.size());
    for (int k = layout_.blocks() - 1; k >= 0; --k) {
      const Block now = block(k);
      direct_part(now, team, rank);
      pack_strips(now, team, rank);
      team.barrier();
      const FlushDenormals flush;
      recursion(now, team, share);
      team.barrier();
      add_sums(now, team, rank);
      if (task_.d_x) to_inputs(now, team, rank);
      team.barrier();
      if (rank == 0) has_errors_ = false;
      team.barrier();
    }
  });
  return bad_;
}

template <class Real>
void BackwardPass<Real>::direct_part(const Block& block, const Team& team, int rank) {
  const int n = net_.n, m = net_.m;
  each_chunk(block.columns, team, rank, [&](std::int64_t first, int columns) {
    const std::int64_t j = first - block.columns.begin;
    std::fill_n(block.d[j], columns * length_, Real(0));
    if (block.d_h) std::fill_n(block.d_h[j], columns * length_, Real(0));
    if (task_.d_states)
      for (int c = 0; c < columns; ++c)
        std::copy_n(task_.d_states + (first + c) * n, n, (states_by_h_ ? block.d_h : block.d)[j + c]);
    if (!reads_out_) return;
    Real* e = e_.data() + j * readout_->z_length();
    if (task_.loss == Loss::upstream)
      readout_->pull_back(r_.from(first), task_.d_outputs + first * m, columns, e, rank);
    else if (!readout_->errors(task_.loss, r_.from(first), task_.targets.from(first, m), columns, e,
                               task_.errors + first, rank))
      return;
    has_errors_ = true;
    readout_->to_states(e, columns, (errors_by_h_ ? block.d_h : block.d).from(j));
  });
}

// The states and inputs of the block as strips, wherever their rows are not strips already.
template <class Real>
void BackwardPass<Real>::pack_strips(const Block& block, const Team& team, int rank) {
  const auto pack = [&](const Real* rows, std::int64_t step, std::int64_t columns, std::int64_t q, int count,
                        Real* to) { pack_strip<Real>(rows, step, columns, q * line<Real>, count, line<Real>, to); };
  const int n = net_.n, p = net_.p;
  for (std::int64_t q = rank; q < panels_ && !(one_strip_ && block.even); q += team.size()) {
    Real* to = a_strips_.data() + q * (block.width + ahead(block)) * line<Real>;
    if (block.even)
      pack(before(block), length_, block.width + ahead(block), q, n, to);
    else
      for (int s = block.first; s <= block.last; to += layout_.count(s++) * line<Real>)
        pack(segment_.a[layout_.row(s - 1)], length_, layout_.count(s), q, n, to);
  }
  for (std::int64_t q = rank; q < panels_ && reads_out_ && !one_strip_ && (errors_by_h_ || !block.even);
       q += team.size())
    pack(r_[block.columns.begin], length_, block.width, q, n, r_strips_.data() + q * block.width * line<Real>);
  for (std::int64_t q = rank; x_strips_ && p != line<Real> && q * line<Real> < p; q += team.size())
    pack(segment_.inputs.x + block.columns.begin * p, p, block.width, q, p,
         x_strips_.data() + q * block.width * line<Real>);
}

//   delta_t = (dE/da_t) D_t + (dE/dh_t directly),   dE/da_{t-1} gains delta_t W_R
template <class Real>
void BackwardPass<Real>::recursion(const Block& block, Team& team, const Share<Real>& share) {
  const bool ends_by_h = net_.form == Form::preactivation;
  for (int s = block.last; s >= block.first; --s) {
    const std::int64_t active = layout_.count(s), going_on = layout_.count(s + 1),
                       at = layout_.column(s) - block.columns.begin;
    Real* const d = block.d[at];
    const Real* const a = states_[layout_.column(s)];
    share.each_tile(active, [&](std::int64_t b0, std::int64_t b1) {
      const auto add = [&](std::int64_t begin, std::int64_t end, const Real* from) {
        if (begin < end)
          share.each_piece(begin, end, length_, [&](std::int64_t i, std::int64_t count) {
            for (std::int64_t c = i; c < i + count; ++c) d[c] += from[c];
          });
      };
      // What flows in from later: at the block's last step for every column, elsewhere for sequences that end here.
      const std::int64_t ended = std::clamp(going_on, b0, b1);
      add(s == block.last ? b0 : ended, ends_by_h ? ended : b1, task_.carry.data);
      share.each_piece(b0, b1, length_, [&](std::int64_t i, std::int64_t count) {
        multiply_derivative(net_.activation, a + i, d + i, count);
      });
      if (block.d_h) add(b0, b1, block.d_h[at]);
      if (ends_by_h) add(ended, b1, task_.carry.data);
    });
    if (cut_.by_rows) team.barrier();
    Real* to = s > block.first ? block.d[layout_.column(s - 1) - block.columns.begin] : task_.carry.data;
    if (s == block.first)
      share.each_tile(active, [&](std::int64_t b0, std::int64_t b1) {
        share.each_piece(b0, b1, length_,
                         [&](std::int64_t i, std::int64_t count) { std::fill_n(to + i, count, Real(0)); });
      });
    share.multiply_add(W_R_turned_, d, to, length_, active);
  }
}

template <class Real>
void BackwardPass<Real>::add_sums(const Block& block, const Team& team, int rank) {
  const int n = net_.n, p = net_.p, m = net_.m;
  const std::int64_t width = block.width, own_step = width * line<Real>, a_step = (width + ahead(block)) * line<Real>;
  const Strips<Real> a = one_strip_ && block.even ? Strips<Real>{before(block), 0, length_}
                                                  : Strips<Real>{a_strips_.data(), a_step, line<Real>};
  const Strips<Real> x = p == line<Real> ? Strips<Real>{segment_.inputs.x + block.columns.begin * p, 0, p}
                                         : Strips<Real>{x_strips_.data(), own_step, line<Real>};
  const Strips<Real> r = one_strip_ ? Strips<Real>{r_[block.columns.begin], 0, length_}
                         : errors_by_h_ || !block.even
                             ? Strips<Real>{r_strips_.data(), own_step, line<Real>}
                             : Strips<Real>{a_strips_.data() + ahead(block) * line<Real>, a_step, line<Real>};
  const auto strips = [](int count) { return (count + tile::outer_height - 1) / tile::outer_height; };
  const Range own = part(strips(n) + (has_errors_ && task_.sums.W_O ? strips(m) : 0), 1, rank, team.size());
  // A strip of rows that are one line long is read where it stands; else it is brought together first.
  const auto add = [&](const Real* rows, std::int64_t step, std::int64_t strip, int count, auto&& to_sums) {
    const std::int64_t first = strip * tile::outer_height;
    Real* const u = strip_[std::size_t(rank)].data();
    if (step == line<Real>) return to_sums(rows + first, step, strip);
    pack_strip<Real>(rows, step, width, first, count, tile::outer_height, u);
    to_sums(u, std::int64_t{tile::outer_height}, strip);
  };
  for (std::int64_t i = own.begin; i < own.end; ++i)
    if (i < strips(n))
      add(block.d.data, length_, i, n, [&](const Real* u, std::int64_t step, std::int64_t strip) {
        outer_sum(u, step, strip, a, width, Sum{task_.sums.W_R, n, n, n});
        if (x_strips_) outer_sum(u, step, strip, x, width, Sum{task_.sums.W_I, p, n, p});
      });
    else
      add(e_.data(), readout_->z_length(), i - strips(n), m, [&](const Real* u, std::int64_t step, std::int64_t strip) {
        outer_sum(u, step, strip, r, width, Sum{task_.sums.W_O, n, m, n});
      });

  const Range numbers = part(length_, line<Real>, rank, team.size());
  if (!column_sums<Real>(block.d, width, numbers, n, task_.sums.b))
    raise_to(bad_, block.columns.begin + find_nonfinite<Real>(block.d, width, n, true));
  if (has_errors_ && task_.sums.b_O) {
    const std::int64_t z_length = readout_->z_length();
    column_sums<Real>({e_.data(), width, z_length}, width, part(z_length, line<Real>, rank, team.size()), m,
                      task_.sums.b_O);
  }
  if (segment_.inputs.tokens)
    for (std::int64_t j = 0; j < width; ++j) {
      double* const to = task_.sums.W_I + std::int64_t(segment_.inputs.tokens[block.columns.begin + j]) * n;
      for (std::int64_t i = numbers.begin; i < std::min<std::int64_t>(n, numbers.end); ++i)
        to[i] += double(block.d[j][i]);
    }
}

template <class Real>
void BackwardPass<Real>::to_inputs(const Block& block, const Team& team, int rank) {
  const int p = net_.p;
  const std::int64_t x_length = row_length<Real>(p);
  Real* const rows = x_rows_[std::size_t(rank)].data();
  each_chunk(block.columns, team, rank, [&](std::int64_t first, int columns) {
    std::fill_n(rows, columns * x_length, Real(0));
    W_I_turned_.multiply_add(block.d[first - block.columns.begin], length_, rows, x_length, columns);
    for (int c = 0; c < columns; ++c) std::copy_n(rows + c * x_length, p, task_.d_x + (first + c) * p);
  });
}

}  // namespace

template <class Real>
std::int64_t backward(const Network<Real>& net, const Segment<Real>& segment, const Backward<Real>& task, int threads) {
  return BackwardPass<Real>(net, segment, task, threads).run();
}

#define BPTT_INSTANTIATE(Real)                                                                                        \
  template std::int64_t forward(const Network<Real>&, const Segment<Real>&, int);                                     \
  template void outputs(const Network<Real>&, Rows<const Real>, Real*, int);                                          \
  template void direct(const Network<Real>&, Loss, Rows<const Real>, Rows<const Real>, const Targets<Real>&, double*, \
                       Rows<Real>, int);                                                                              \
  template std::int64_t backward(const Network<Real>&, const Segment<Real>&, const Backward<Real>&, int);
BPTT_INSTANTIATE(float)
BPTT_INSTANTIATE(double)
#undef BPTT_INSTANTIATE

}  // namespace bptt
