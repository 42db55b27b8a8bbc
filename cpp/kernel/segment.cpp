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

  const int size = cut.divisible() ? team_size(threads, double(layout.total()) * n * (n + net.p)) : 1;
  Team::run(size, [&](Team& team, int rank) {
    const Member member{rank, team.size()};
    W_R.pack(net.W_R, n, 1, member.part(panels));
    if (segment.inputs.x) W_I.pack(net.W_I, net.p, 1, member.part(panels));
    team.barrier();
    const Share<Real> share(cut, rank, team.size());
    for (int k = 0; k < layout.blocks(); ++k) {
      each_chunk(layout.columns(k), member, [&](std::int64_t first, int columns) {
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
      each_chunk(layout.columns(k), member, [&](std::int64_t first, int columns) {
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
    each_chunk({0, r.count}, {rank, team.size()}, [&](std::int64_t first, int columns) {
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
    each_chunk({0, a.count}, {rank, team.size()}, [&](std::int64_t first, int columns) {
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
  // Memory for the blocks under way.
  struct Stage {
    Buffer<Real> delta, by_h, e, a_strips, r_strips, x_strips;
  };

  // One block of steps: its columns, and delta's part by a_t and by h_t before the recursion joins them.
  struct Block {
    int first, last;  // steps
    Range columns;
    std::int64_t width;  // columns in it
    bool even;
    const Stage& stage;
    Rows<Real> d, d_h;
    std::atomic<bool>& has_errors;
  };

  Block block(int k) {
    const Range columns = layout_.columns(k);
    const std::int64_t width = columns.end - columns.begin;
    const Stage& stage = stages_[std::size_t(k) % stages_.size()];
    return {layout_.first(k),
            layout_.last(k),
            columns,
            width,
            layout_.even(k),
            stage,
            task_.delta ? task_.delta.from(columns.begin) : Rows<Real>{stage.delta.data(), width, length_},
            {stage.by_h.data(), width, length_},
            has_errors_[std::size_t(k)]};
  }
  // A team pays for the whole pass, and where its threads can only take turns with blocks, for a block.
  int useful_threads(int threads) const {
    const double of_column = double(net_.n) * (2 * net_.n + net_.p + 2 * net_.m);
    if (!cut_.divisible()) threads = team_size(threads, double(layout_.widest()) * of_column);
    return team_size(threads, double(layout_.total()) * of_column);
  }
  void prepare(const Block& block, Member member);
  void direct_part(const Block& block, Member member);
  void pack_strips(const Block& block, Member member);
  void recursion(const Block& block, Team& team, const Share<Real>& share);
  void finish(const Block& block, Member member);
  void add_sums(const Block& block, Member member);
  void to_inputs(const Block& block, Member member);

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

  // The recursion of a few columns keeps one thread busy and no more: the others then work on the blocks before and
  // after.
  const bool pipelined_ = size_ > 1 && !cut_.divisible();
  std::vector<Stage> stages_ = std::vector<Stage>(pipelined_ ? 3 : 1);
  std::vector<std::atomic<bool>> has_errors_ = std::vector<std::atomic<bool>>(std::size_t(layout_.blocks()));
  // Of one thread.
  std::vector<Buffer<Real>> strip_, x_rows_;

  std::atomic<std::int64_t> bad_ = -1;
};

template <class Real>
BackwardPass<Real>::BackwardPass(const Network<Real>& net, const Segment<Real>& segment, const Backward<Real>& task,
                                 int threads)
    : net_(net), segment_(segment), task_(task), size_(useful_threads(threads)) {
  const std::int64_t widest = layout_.widest();
  if (reads_out_) readout_.emplace(net, true, true, size_);
  for (Stage& stage : stages_) {
    if (!task.delta) stage.delta = Buffer<Real>(widest * length_);
    if (errors_by_h_ || states_by_h_) stage.by_h = Buffer<Real>(widest * length_);
    stage.a_strips = Buffer<Real>((widest + layout_.count(0)) * length_);
    if (segment.inputs.x) stage.x_strips = Buffer<Real>(widest * row_length<Real>(net.p));
    if (!reads_out_) continue;
    stage.e = Buffer<Real>(widest * readout_->z_length());
    stage.r_strips = Buffer<Real>(widest * length_);
  }
  for (int i = 0; i < size_; ++i) {
    strip_.emplace_back(widest * tile::outer_height);
    x_rows_.emplace_back(task.d_x ? chunk * row_length<Real>(net.p) : 0);
  }
}

template <class Real>
std::int64_t BackwardPass<Real>::run() {
  Team::run(size_, [this](Team& team, int rank) {
    const Member member{rank, team.size()};
    W_R_turned_.pack(net_.W_R, 1, net_.n, member.part(panels_));
    if (task_.d_x) W_I_turned_.pack(net_.W_I, 1, net_.p, member.part(W_I_turned_.panels()));
    team.barrier();
    const int blocks = layout_.blocks();
    if (pipelined_ && team.size() > 1) {
      const Share<Real> all(cut_, 0, 1);
      const Member other{rank - 1, team.size() - 1};
      for (int k = blocks - 1; k >= -2; --k) {
        if (rank == 0 && k + 1 >= 0 && k + 1 < blocks) recursion(block(k + 1), team, all);
        if (rank > 0 && k >= 0) prepare(block(k), other);
        if (rank > 0 && k + 2 < blocks) finish(block(k + 2), other);
        team.barrier();
      }
      return;
    }
    const Share<Real> share(cut_, rank, team.size());
    for (int k = blocks - 1; k >= 0; --k) {
      const Block now = block(k);
      prepare(now, member);
      team.barrier();
      recursion(now, team, share);
      team.barrier();
      finish(now, member);
      team.barrier();
    }
  });
  return bad_;
}

template <class Real>
void BackwardPass<Real>::prepare(const Block& block, Member member) {
  direct_part(block, member);
  pack_strips(block, member);
}

template <class Real>
void BackwardPass<Real>::finish(const Block& block, Member member) {
  const FlushDenormals flush;
  add_sums(block, member);
  if (task_.d_x) to_inputs(block, member);
}

template <class Real>
void BackwardPass<Real>::direct_part(const Block& block, Member member) {
  const int n = net_.n, m = net_.m;
  each_chunk(block.columns, member, [&](std::int64_t first, int columns) {
    const std::int64_t j = first - block.columns.begin;
    std::fill_n(block.d[j], columns * length_, Real(0));
    if (block.d_h) std::fill_n(block.d_h[j], columns * length_, Real(0));
    if (task_.d_states)
      for (int c = 0; c < columns; ++c)
        std::copy_n(task_.d_states + (first + c) * n, n, (states_by_h_ ? block.d_h : block.d)[j + c]);
    if (!reads_out_) return;
    Real* e = block.stage.e.data() + j * readout_->z_length();
    if (task_.loss == Loss::upstream)
      readout_->pull_back(r_.from(first), task_.d_outputs + first * m, columns, e, member.rank);
    else if (!readout_->errors(task_.loss, r_.from(first), task_.targets.from(first, m), columns, e,
                               task_.errors + first, member.rank))
      return;
    block.has_errors = true;
    readout_->to_states(e, columns, (errors_by_h_ ? block.d_h : block.d).from(j));
  });
}

// The states and inputs of the block as strips, wherever their rows are not strips already.
template <class Real>
void BackwardPass<Real>::pack_strips(const Block& block, Member member) {
  const auto pack = [&](const Real* rows, std::int64_t step, std::int64_t columns, std::int64_t q, int count,
                        Real* to) { pack_strip<Real>(rows, step, columns, q * line<Real>, count, line<Real>, to); };
  const int n = net_.n, p = net_.p;
  for (std::int64_t q = member.rank; q < panels_ && !(one_strip_ && block.even); q += member.size) {
    Real* to = block.stage.a_strips.data() + q * (block.width + ahead(block)) * line<Real>;
    if (block.even)
      pack(before(block), length_, block.width + ahead(block), q, n, to);
    else
      for (int s = block.first; s <= block.last; to += layout_.count(s++) * line<Real>)
        pack(segment_.a[layout_.row(s - 1)], length_, layout_.count(s), q, n, to);
  }
  for (std::int64_t q = member.rank; q < panels_ && reads_out_ && !one_strip_ && (errors_by_h_ || !block.even);
       q += member.size)
    pack(r_[block.columns.begin], length_, block.width, q, n,
         block.stage.r_strips.data() + q * block.width * line<Real>);
  for (std::int64_t q = member.rank; block.stage.x_strips && p != line<Real> && q * line<Real> < p; q += member.size)
    pack(segment_.inputs.x + block.columns.begin * p, p, block.width, q, p,
         block.stage.x_strips.data() + q * block.width * line<Real>);
}

//   delta_t = (dE/da_t) D_t + (dE/dh_t directly),   dE/da_{t-1} gains delta_t W_R
template <class Real>
void BackwardPass<Real>::recursion(const Block& block, Team& team, const Share<Real>& share) {
  const FlushDenormals flush;
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
void BackwardPass<Real>::add_sums(const Block& block, Member member) {
  const int n = net_.n, p = net_.p, m = net_.m;
  const std::int64_t width = block.width, own_step = width * line<Real>, a_step = (width + ahead(block)) * line<Real>;
  const Strips<Real> a = one_strip_ && block.even ? Strips<Real>{before(block), 0, length_}
                                                  : Strips<Real>{block.stage.a_strips.data(), a_step, line<Real>};
  const Strips<Real> x = p == line<Real> ? Strips<Real>{segment_.inputs.x + block.columns.begin * p, 0, p}
                                         : Strips<Real>{block.stage.x_strips.data(), own_step, line<Real>};
  const Strips<Real> r =
      one_strip_ ? Strips<Real>{r_[block.columns.begin], 0, length_}
      : errors_by_h_ || !block.even
          ? Strips<Real>{block.stage.r_strips.data(), own_step, line<Real>}
          : Strips<Real>{block.stage.a_strips.data() + ahead(block) * line<Real>, a_step, line<Real>};
  const auto strips = [](int count) { return (count + tile::outer_height - 1) / tile::outer_height; };
  const Range own = member.part(strips(n) + (block.has_errors && task_.sums.W_O ? strips(m) : 0));
  // A strip of rows that are one line long is read where it stands; else it is brought together first.
  const auto add = [&](const Real* rows, std::int64_t step, std::int64_t strip, int count, auto&& to_sums) {
    const std::int64_t first = strip * tile::outer_height;
    Real* const u = strip_[std::size_t(member.rank)].data();
    if (step == line<Real>) return to_sums(rows + first, step, strip);
    pack_strip<Real>(rows, step, width, first, count, tile::outer_height, u);
    to_sums(u, std::int64_t{tile::outer_height}, strip);
  };
  for (std::int64_t i = own.begin; i < own.end; ++i)
    if (i < strips(n))
      add(block.d.data, length_, i, n, [&](const Real* u, std::int64_t step, std::int64_t strip) {
        outer_sum(u, step, strip, a, width, Sum{task_.sums.W_R, n, n, n});
        if (block.stage.x_strips) outer_sum(u, step, strip, x, width, Sum{task_.sums.W_I, p, n, p});
      });
    else
      add(block.stage.e.data(), readout_->z_length(), i - strips(n), m,
          [&](const Real* u, std::int64_t step, std::int64_t strip) {
            outer_sum(u, step, strip, r, width, Sum{task_.sums.W_O, n, m, n});
          });

  const Range numbers = member.part(length_, line<Real>);
  if (!column_sums<Real>(block.d, width, numbers, n, task_.sums.b))
    raise_to(bad_, block.columns.begin + find_nonfinite<Real>(block.d, width, n, true));
  if (block.has_errors && task_.sums.b_O) {
    const std::int64_t z_length = readout_->z_length();
    column_sums<Real>({block.stage.e.data(), width, z_length}, width, member.part(z_length, line<Real>), m,
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
void BackwardPass<Real>::to_inputs(const Block& block, Member member) {
  const int p = net_.p;
  const std::int64_t x_length = row_length<Real>(p);
  Real* const rows = x_rows_[std::size_t(member.rank)].data();
  each_chunk(block.columns, member, [&](std::int64_t first, int columns) {
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
