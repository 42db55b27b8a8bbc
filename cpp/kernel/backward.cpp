#include <optional>

#include "columns.hpp"
#include "outer_sum.hpp"
#include "readout.hpp"
#include "segment.hpp"
#include "steps.hpp"

namespace bptt {
namespace {

// Targets of a chunk of columns brought together from where they lie, and their errors before they are sent back.
template <class Real>
struct Gathered {
  Buffer<std::int32_t> classes;
  Buffer<Real> values, weights;
  Buffer<double> errors;

  Gathered(const Targets<Real>& targets, int m)
      : classes(targets.classes ? chunk : 0),
        values(targets.values ? std::int64_t{chunk} * m : 0),
        weights(targets.weights ? chunk : 0),
        errors(chunk) {}

  void take(const Targets<Real>& from, int m, std::int64_t to, std::int64_t columns) {
    if (classes) std::copy_n(from.classes, columns, classes.data() + to);
    if (values) std::copy_n(from.values, columns * m, values.data() + to * m);
    if (weights) std::copy_n(from.weights, columns, weights.data() + to);
  }
  Targets<Real> targets() const { return {classes.data(), values.data(), weights.data()}; }
};

// The backward pass over one segment: what its threads share. Block by block, last first, and in each block the direct
// part of delta, the recursion, and the block's part of every sum.
template <class Real>
class BackwardPass {
 public:
  BackwardPass(const Network<Real>& net, const Segment<Real>& segment, const Backward<Real>& task, int threads);
  std::int64_t run();

 private:
  // Memory for a block under way.
  struct Stage {
    Buffer<Real> delta, by_h, e, a_strips, r_strips, x_strips;
  };

  // A block in its stage: delta's part by a_t and by h_t before the recursion joins them, and where its sums go.
  struct Work {
    const Block& block;
    const Stage& stage;
    const Sums& sums;
    Rows<Real> d, d_h;
    std::atomic<bool>& has_errors;
    bool fresh;  // whether it is the first to come to them, and nothing stands in W_R's
  };

  Work work(int k, int part) {
    const Block& block = layout_.block(k, part);
    const Stage& stage = stages_[std::size_t(pipelined_ ? k % 3 : part)];
    return {block,
            stage,
            task_.sums[std::size_t(part)],
            {stage.delta.data(), block.width, length_},
            {stage.by_h.data(), block.width, length_},
            has_errors_[std::size_t(k * parts_ + part)],
            !task_.more && k + 1 == layout_.blocks()};
  }
  // A team pays for the whole pass, and where its threads can only take turns with blocks, for a block.
  int useful_threads(int threads) const {
    const double of_column = double(net_.n) * (2 * net_.n + net_.p + 2 * net_.m);
    if (!divisible_ && double(layout_.widest()) * of_column < worth_a_meeting) return 1;
    return team_size(threads, double(layout_.total()) * of_column);
  }
  void clear_sums(Member member);
  void prepare(const Work& work, Member member);
  void direct_part(const Work& work, Member member);
  void pack_strips(const Work& work, Member member);
  void recursion(const Work& work, Team& team, Member member);
  void finish(const Work& work, Member member);
  void add_sums(const Work& work, Member member);
  void give_back(const Work& work, Member member);

  // a_t is found among the strips of a_{t-1}, this many columns on; 0 where it is not.
  static std::int64_t ahead(const Block& block) { return block.even ? block.count(block.first) : 0; }
  // Rows of at most so many numbers are read as strips where they stand: of longer ones, too many begin in the same
  // places of a cache. Where that begins to cost more than packing is measured.
  static constexpr std::int64_t narrow = (vector_bytes == 64 ? 32 : 4) * line<Real>;
  bool are_strips(const Block& block) const { return block.even && length_ <= narrow; }
  bool x_are_strips(const Block& block) const {
    return x_ && net_.p % line<Real> == 0 && net_.p <= narrow && (block.even || block.whole);
  }
  // Rows of `length` numbers as strips: those of the block, step by step.
  Strips<Real> strips(const Block& block, const Real* rows, std::int64_t length) const {
    const std::int64_t B = block.counts[block.first];
    return {rows, line<Real>, length, block.whole ? block.width : block.count(block.first), B * length};
  }
  static Strips<Real> packed(const Real* data, std::int64_t width) { return {data, width * line<Real>, line<Real>}; }

  const Network<Real>& net_;
  const Segment<Real>& segment_;
  const Backward<Real>& task_;
  const std::int64_t length_ = row_length<Real>(net_.n), panels_ = length_ / line<Real>, B_ = segment_.counts[0];
  // Near a ragged batch's end, 1.
  const int parts_ = std::min(int(task_.sums.size()), best_parts(net_.n, mean_count(segment_.steps, segment_.counts)));
  const Layout layout_{segment_.steps, segment_.counts, block_columns(net_.n, B_), parts_};
  const bool divisible_ = parts_ > 1 || !layout_.blocks() || Cut<Real>(net_.n, B_, layout_.block(0)).divisible();
  const int size_;
  const Rows<Real> states_ = segment_.a.from(B_);
  const Rows<const Real> x_{segment_.inputs.order ? nullptr : segment_.inputs.x, layout_.total(), net_.p};

  const bool reads_out_ = task_.loss != Loss::upstream || task_.d_outputs;
  const bool errors_by_h_ = reads_out_ && net_.readout == Readout::preactivation;  // e W_O is a derivative by h_t
  const bool states_by_h_ = task_.d_states && net_.form == Form::preactivation;    // and so is d_states
  const Rows<const Real> r_ = errors_by_h_ ? segment_.h : states_;
  std::optional<PackedReadout<Real>> readout_;
  PackedMatrix<Real> W_R_turned_{net_.n, net_.n}, W_I_turned_{task_.d_x ? net_.p : 0, task_.d_x ? net_.n : 0};

  // The recursion of a few columns keeps one thread busy and no more: the others then work on the blocks before and
  // after.
  const bool pipelined_ = size_ > 1 && !divisible_;
  std::vector<Stage> stages_ = std::vector<Stage>(pipelined_ ? 3 : std::size_t(parts_));
  std::vector<std::atomic<bool>> has_errors_ = std::vector<std::atomic<bool>>(std::size_t(layout_.blocks() * parts_));
  // Of one thread.
  std::vector<Buffer<Real>> strip_, x_rows_;
  std::vector<Gathered<Real>> gathered_;

  std::atomic<std::int64_t> bad_ = -1;
};

template <class Real>
BackwardPass<Real>::BackwardPass(const Network<Real>& net, const Segment<Real>& segment, const Backward<Real>& task,
                                 int threads)
    : net_(net), segment_(segment), task_(task), size_(useful_threads(threads)) {
  const std::int64_t widest = layout_.widest();
  if (reads_out_) readout_.emplace(net, true, true, size_);
  for (Stage& stage : stages_) {
    stage.delta = Buffer<Real>(widest * length_);
    if (errors_by_h_ || states_by_h_) stage.by_h = Buffer<Real>(widest * length_);
    stage.a_strips = Buffer<Real>((widest + B_) * length_);
    if (segment.inputs.x) stage.x_strips = Buffer<Real>(widest * row_length<Real>(net.p));
    if (!reads_out_) continue;
    stage.e = Buffer<Real>(widest * readout_->z_length());
    stage.r_strips = Buffer<Real>(widest * length_);
  }
  for (int i = 0; i < size_; ++i) {
    strip_.emplace_back(widest * tile::outer_height);
    x_rows_.emplace_back(task.d_x ? chunk * row_length<Real>(net.p) : 0);
    gathered_.emplace_back(task.targets, net.m);
  }
}

template <class Real>
std::int64_t BackwardPass<Real>::run() {
  Crew crew(parts_);
  Team::run(size_, [&](Team& all, int rank) {
    const Member member{rank, all.size(), rank};
    if (rank == 0) crew.split(all);
    W_R_turned_.pack(net_.W_R, 1, net_.n, member.part(panels_));
    if (task_.d_x) W_I_turned_.pack(net_.W_I, 1, net_.p, member.part(W_I_turned_.panels()));
    if (!task_.more) clear_sums(member);
    const int blocks = layout_.blocks();
    if (pipelined_ && all.size() > 1) {
      const Member alone{0, 1, rank}, other{rank - 1, all.size() - 1, rank};
      const int shares = 2 * all.size() - 1;  // of the sums: one for the thread with the recursion, two for another
      for (int k = blocks - 1; k >= -2; --k) {
        all.barrier();
        if (rank == 0 && k + 1 >= 0 && k + 1 < blocks) recursion(work(k + 1, 0), all, alone);
        if (rank > 0 && k >= 0) prepare(work(k, 0), other);
        for (int i = std::max(0, 2 * rank - 1); i <= 2 * rank && k + 2 < blocks; ++i)
          finish(work(k + 2, 0), {i, shares, rank});
      }
      return;
    }
    for (int end = blocks, begin; end > 0; end = begin) {
      all.barrier();
      begin = layout_.stretch_begin(end - 1);
      crew.run(all, rank, [&](int part, Team& team, Member own) {
        for (int k = end - 1; k >= begin; --k) {
          const Work now = work(k, part);
          prepare(now, own);
          team.barrier();
          recursion(now, team, own);
          team.barrier();
          finish(now, own);
          team.barrier();
        }
      });
    }
  });
  return bad_;
}

// All but W_R's, which their first block writes.
template <class Real>
void BackwardPass<Real>::clear_sums(Member member) {
  const std::int64_t n = net_.n;
  for (std::size_t i = 0; i < task_.sums.size(); ++i) {
    const auto [W_R, W_I, W_O, b, b_O] = task_.sums[i];
    const auto clear = [&](double* sums, std::int64_t count) {
      const Range own = member.part(count, line<double>);
      if (sums) std::fill(sums + own.begin, sums + own.end, 0.0);
    };
    if (int(i) >= parts_ || !layout_.blocks()) clear(W_R, n * n);
    clear(W_I, n * net_.p);
    clear(W_O, n * net_.m);
    clear(b, n);
    clear(b_O, net_.m);
  }
}

template <class Real>
void BackwardPass<Real>::prepare(const Work& work, Member member) {
  direct_part(work, member);
  pack_strips(work, member);
}

template <class Real>
void BackwardPass<Real>::finish(const Work& work, Member member) {
  const FlushDenormals flush;
  add_sums(work, member);
  if (task_.d_x || task_.delta) give_back(work, member);
}

template <class Real>
void BackwardPass<Real>::direct_part(const Work& work, Member member) {
  const Block& block = work.block;
  const int n = net_.n, m = net_.m;
  each_chunk(block.width, member, [&](std::int64_t first, int columns) {
    const auto each_piece = [&](auto&& action) {
      block.each_piece(first, first + columns, [&](std::int64_t j, std::int64_t number, std::int64_t count) {
        action(j, number - first, count);
      });
    };
    const auto clear = [&](Rows<Real> d) {
      if (d) std::fill_n(d[first], columns * length_, Real(0));
    };
    const Rows<Real> by_output = errors_by_h_ ? work.d_h : work.d;
    const bool fresh = !task_.d_states || states_by_h_ != errors_by_h_;  // nothing else flows in there
    clear(errors_by_h_ ? work.d : work.d_h);
    if (!fresh) clear(by_output);
    if (task_.d_states)
      each_piece([&](std::int64_t j, std::int64_t c, std::int64_t count) {
        for (const std::int64_t end = j + count; j < end; ++j, ++c)
          std::copy_n(task_.d_states + j * n, n, (states_by_h_ ? work.d_h : work.d)[first + c]);
      });
    const auto nothing_by_output = [&] {
      if (fresh) clear(by_output);
    };
    if (!reads_out_) return nothing_by_output();
    const std::int64_t z_length = readout_->z_length();
    Real* const e = work.stage.e.data() + first * z_length;
    const auto argument = [&] {
      each_piece([&](std::int64_t j, std::int64_t c, std::int64_t count) {
        readout_->argument(r_.from(j), count, e + c * z_length);
      });
    };
    if (task_.loss == Loss::upstream) {
      if (net_.output == Output::softmax) argument();
      each_piece([&](std::int64_t j, std::int64_t c, std::int64_t count) {
        readout_->pull_back(task_.d_outputs + j * m, int(count), e + c * z_length, member.thread);
      });
    } else {
      const std::int64_t at = block.column(block.first) + first;  // of a whole
      Gathered<Real>& gathered = gathered_[std::size_t(member.thread)];
      if (!block.whole)
        each_piece([&](std::int64_t j, std::int64_t c, std::int64_t count) {
          gathered.take(task_.targets.from(j, m), m, c, count);
        });
      const Targets<Real> targets = block.whole ? task_.targets.from(at, m) : gathered.targets();
      if (!targets.silent(columns)) argument();
      double* const errors = block.whole ? task_.errors + at : gathered.errors.data();
      const bool met = readout_->errors(task_.loss, targets, columns, e, errors, member.thread);
      if (!block.whole)
        each_piece([&](std::int64_t j, std::int64_t c, std::int64_t count) {
          std::copy_n(errors + c, count, task_.errors + j);
        });
      if (!met) return nothing_by_output();
    }
    work.has_errors = true;
    const Rows<Real> target = by_output.part(first, columns);
    readout_->to_states(e, fresh ? Rows<const Real>{} : target, target);
  });
}

// The states and inputs of the block as strips, wherever their rows are not strips already.
template <class Real>
void BackwardPass<Real>::pack_strips(const Work& work, Member member) {
  const Block& block = work.block;
  const int n = net_.n, p = net_.p;
  const auto pack = [](const Real* rows, std::int64_t step, std::int64_t columns, std::int64_t q, int count, Real* to) {
    pack_strip<line<Real>>(rows, step, columns, q * line<Real>, count, to);
  };
  const auto each_strip = [&](int count, auto&& action) {
    for (std::int64_t q = member.rank; q * line<Real> < count; q += member.size) action(q);
  };
  if (!are_strips(block))
    each_strip(n, [&](std::int64_t q) {
      Real* to = work.stage.a_strips.data() + q * (block.width + ahead(block)) * line<Real>;
      if (block.whole && block.even)
        return pack(segment_.a[block.before(block.first)], length_, block.width + ahead(block), q, n, to);
      for (int s = block.first; s <= block.last; to += block.count(s++) * line<Real>)
        pack(segment_.a[block.before(s)], length_, block.count(s), q, n, to);
      if (block.even) pack(states_[block.column(block.last)], length_, ahead(block), q, n, to);
    });
  if (reads_out_ && !are_strips(block) && (errors_by_h_ || !block.even))
    each_strip(n, [&](std::int64_t q) {
      Real* const to = work.stage.r_strips.data() + q * block.width * line<Real>;
      block.each_piece(0, block.width, [&](std::int64_t j, std::int64_t number, std::int64_t count) {
        pack(r_[j], length_, count, q, n, to + number * line<Real>);
      });
    });
  if (work.stage.x_strips && !x_are_strips(block))
    each_strip(p, [&](std::int64_t q) {
      Real* const to = work.stage.x_strips.data() + q * block.width * line<Real>;
      if (x_)
        return block.each_piece(0, block.width, [&](std::int64_t j, std::int64_t number, std::int64_t count) {
          pack(x_[j], p, count, q, p, to + number * line<Real>);
        });
      block.each_step(0, block.width, [&](int s, std::int64_t rank, std::int64_t number, std::int64_t count) {
        for (std::int64_t i = 0; i < count; ++i)
          pack(segment_.inputs.row(s, rank + i, p), p, 1, q, p, to + (number + i) * line<Real>);
      });
    });
}

//   delta_t = (dE/da_t) D_t + (dE/dh_t directly),   dE/da_{t-1} gains delta_t W_R
template <class Real>
void BackwardPass<Real>::recursion(const Work& work, Team& team, Member member) {
  const FlushDenormals flush;
  const Block& block = work.block;
  const Cut<Real> cut(net_.n, B_, block);
  const Share<Real> share(cut, member);
  const bool ends_by_h = net_.form == Form::preactivation;
  Real* const carry = task_.carry[block.ranks.begin];
  const std::int64_t extent = block.extent();
  for (int s = block.last; s >= block.first; --s) {
    const std::int64_t active = block.count(s), going_on = block.count(s + 1), at = block.number(s);
    Real* const d = work.d[at];
    const Real* const a = states_[block.column(s)];
    share.each_tile(active, [&](std::int64_t b0, std::int64_t b1) {
      const auto add = [&](std::int64_t begin, std::int64_t end, const Real* from) {
        if (begin < end)
          share.each_piece(begin, end, length_, [&](std::int64_t i, std::int64_t count) {
            for (std::int64_t c = i; c < i + count; ++c) d[c] += from[c];
          });
      };
      // What flows in from later: at the block's last step for every column, elsewhere for sequences that end here.
      const std::int64_t ended = std::clamp(going_on, b0, b1);
      add(s == block.last ? b0 : ended, ends_by_h ? ended : b1, carry);
      share.each_piece(b0, b1, length_, [&](std::int64_t i, std::int64_t count) {
        multiply_derivative(net_.activation, a + i, d + i, count);
      });
      if (work.d_h) add(b0, b1, work.d_h[at]);
      if (ends_by_h) add(ended, b1, carry);
    });
    if (cut.by_rows) team.barrier();
    const Rows<Real> to{s > block.first ? work.d[block.number(s - 1)] : carry, active, length_};
    share.multiply_add(W_R_turned_, {d, active, length_}, s > block.first ? to : Rows<Real>{}, to, s,
                       [&](std::int64_t b0, std::int64_t columns) {
                         const std::int64_t j = block.column(s) - extent + b0;
                         if (cut.by_rows || j < 0) return;
                         prefetch(states_.part(j, columns), length_);
                         if (x_) prefetch(x_.part(j, columns), net_.p);
                         if (segment_.inputs.order)
                           prefetch_inputs(segment_.inputs, block, s - (block.last + 1 - block.first), b0, columns,
                                           net_.p);
                       });
  }
}

template <class Real>
void BackwardPass<Real>::add_sums(const Work& work, Member member) {
  const Block& block = work.block;
  const Stage& stage = work.stage;
  const int n = net_.n, p = net_.p, m = net_.m;
  const std::int64_t width = block.width;
  const Strips<Real> a = are_strips(block) ? strips(block, segment_.a[block.before(block.first)], length_)
                                           : packed(stage.a_strips.data(), width + ahead(block));
  const Strips<Real> x = x_are_strips(block) ? strips(block, segment_.inputs.x + block.column(block.first) * p, p)
                                             : packed(stage.x_strips.data(), width);
  const Strips<Real> r = are_strips(block) ? strips(block, r_[block.column(block.first)], length_)
                         : errors_by_h_ || !block.even
                             ? packed(stage.r_strips.data(), width)
                             : packed(a.data + ahead(block) * line<Real>, width + ahead(block));
  const auto heights = [](int count) { return (count + tile::outer_height - 1) / tile::outer_height; };
  const Range own = member.part(heights(n) + (work.has_errors && work.sums.W_O ? heights(m) : 0));
  // A strip of narrow rows is read where it stands; else it is brought together first.
  const auto add = [&](const Real* rows, std::int64_t step, std::int64_t strip, int count, auto&& to_sums) {
    const std::int64_t first = strip * tile::outer_height;
    Real* const u = strip_[std::size_t(member.thread)].data();
    if (step <= narrow) return to_sums(rows + first, step, strip);
    pack_strip<tile::outer_height>(rows, step, width, first, count, u);
    to_sums(u, std::int64_t{tile::outer_height}, strip);
  };
  for (std::int64_t i = own.begin; i < own.end; ++i)
    if (i < heights(n))
      add(work.d.data, length_, i, n, [&](const Real* u, std::int64_t step, std::int64_t strip) {
        outer_sum(u, step, strip, a, width, Sum{work.sums.W_R, n, n, n, work.fresh});
        if (stage.x_strips) outer_sum(u, step, strip, x, width, Sum{work.sums.W_I, p, n, p});
      });
    else
      add(stage.e.data(), readout_->z_length(), i - heights(n), m,
          [&](const Real* u, std::int64_t step, std::int64_t strip) {
            outer_sum(u, step, strip, r, width, Sum{work.sums.W_O, n, m, n});
          });

  const Range numbers = member.part(length_, line<Real>);
  if (!column_sums<Real>(work.d, width, numbers, n, work.sums.b))
    if (const std::int64_t j = find_nonfinite<Real>(work.d, width, n, true); j >= 0)
      block.each_piece(j, j + 1, [&](std::int64_t at, std::int64_t, std::int64_t) { raise_to(bad_, at); });
  if (work.has_errors && work.sums.b_O) {
    const std::int64_t z_length = readout_->z_length();
    column_sums<Real>({stage.e.data(), width, z_length}, width, member.part(z_length, line<Real>), m, work.sums.b_O);
  }
  if (segment_.inputs.tokens)
    block.each_piece(0, width, [&](std::int64_t at, std::int64_t number, std::int64_t count) {
      for (const std::int64_t end = at + count; at < end; ++at, ++number) {
        double* const to = work.sums.W_I + std::int64_t(segment_.inputs.tokens[at]) * n;
        for (std::int64_t i = numbers.begin; i < std::min<std::int64_t>(n, numbers.end); ++i)
          to[i] += double(work.d[number][i]);
      }
    });
}

// delta, and dE/dx, to whom asked for them.
template <class Real>
void BackwardPass<Real>::give_back(const Work& work, Member member) {
  const int p = net_.p;
  const std::int64_t x_length = row_length<Real>(p);
  Real* const rows = x_rows_[std::size_t(member.thread)].data();
  each_chunk(work.block, member, [&](std::int64_t first, std::int64_t number, std::int64_t columns) {
    if (task_.delta) std::copy_n(work.d[number], columns * length_, task_.delta[first]);
    if (!task_.d_x) return;
    W_I_turned_.multiply_add(work.d.from(number), {}, {rows, columns, x_length});
    for (std::int64_t c = 0; c < columns; ++c) std::copy_n(rows + c * x_length, p, task_.d_x + (first + c) * p);
  });
}

}  // namespace

template <class Real>
std::int64_t backward(const Network<Real>& net, const Segment<Real>& segment, const Backward<Real>& task, int threads) {
  return BackwardPass<Real>(net, segment, task, threads).run();
}

template std::int64_t backward(const Network<float>&, const Segment<float>&, const Backward<float>&, int);
template std::int64_t backward(const Network<double>&, const Segment<double>&, const Backward<double>&, int);

}  // namespace bptt
