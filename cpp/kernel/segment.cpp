#include "segment.hpp"

#include "columns.hpp"
#include "readout.hpp"
#include "steps.hpp"

namespace bptt {

template <class Real>
std::int64_t forward(const Network<Real>& net, const Segment<Real>& segment, int threads) {
  const int n = net.n;
  const std::int64_t length = row_length<Real>(n), panels = length / line<Real>, B = segment.counts[0];
  const int parts = parts_of_states<Real>(n, B, mean_count(segment.steps, segment.counts));
  const Layout layout(segment.steps, segment.counts, block_columns(n, B), parts);
  PackedMatrix<Real> W_R(n, n), W_I(segment.inputs.x ? n : 0, segment.inputs.x ? net.p : 0);
  Buffer<Real> bias(length);
  std::fill_n(bias.data(), length, Real(0));
  if (net.b) std::copy_n(net.b, n, bias.data());
  const Rows<Real> states{segment.a[B], layout.total(), length};
  const Rows<Real> h = segment.h ? segment.h : states;  // where nothing keeps h, it is made in a's place
  std::atomic<std::int64_t> bad = -1;                   // as total - column, so that the largest is the first

  const Inputs<Real>& inputs = segment.inputs;
  const Rows<const Real> x{inputs.order ? nullptr : inputs.x, layout.total(), net.p};
  std::vector<Buffer<Real>> gathered;  // a chunk of inputs for each thread, where they have an order
  const auto gather = [&](const Block& block, std::int64_t begin, std::int64_t end, Rows<Real> to) {
    block.each_step(begin, end, [&](int s, std::int64_t rank, std::int64_t number, std::int64_t columns) {
      for (std::int64_t i = 0; i < columns; ++i)
        std::copy_n(inputs.row(s, rank + i, net.p), net.p, to[number - begin + i]);
    });
  };
  const auto add_tokens = [&](std::int64_t first, std::int64_t columns) {
    for (std::int64_t j = first; j < first + columns; ++j) {
      const Real* column = net.W_I + inputs.tokens[j] * length;
      for (std::int64_t i = 0; i < length; ++i) h[j][i] = bias.data()[i] + column[i];
    }
  };
  const auto add_inputs = [&](const Block& block, Member member) {
    each_chunk(block.width, member, [&](std::int64_t begin, int count) {
      Rows<Real> own{nullptr, count, net.p};
      if (inputs.order) {
        own.data = gathered[std::size_t(member.thread)].data();
        gather(block, begin, begin + count, own);
      }
      block.each_piece(begin, begin + count, [&](std::int64_t first, std::int64_t number, std::int64_t columns) {
        if (inputs.tokens) return add_tokens(first, columns);
        const Rows<const Real> from = inputs.order ? own.from(number - begin) : x.from(first);
        W_I.multiply_add(from, {bias.data(), columns, 0}, h.part(first, columns));
      });
    });
  };
  const auto finite = [&](Rows<const Real> rows, std::int64_t columns) {
    return column_sums<Real>(rows, columns, {0, length}, n, nullptr);
  };
  const auto scan = [&](std::int64_t first, std::int64_t, std::int64_t columns) {
    if (finite(states.from(first), columns) && (!segment.h || finite(h.from(first), columns))) return;
    std::int64_t j = find_nonfinite<Real>(states.from(first), columns, n, false);
    if (segment.h)
      if (const std::int64_t i = find_nonfinite<Real>(h.from(first), columns, n, false); i >= 0 && (j < 0 || i < j))
        j = i;
    if (j >= 0) raise_to(bad, layout.total() - (first + j));
  };
  const auto check = [&](const Block& block, Member member) {
    if (segment.h || !keeps_nonfinite(net.activation)) return each_chunk(block, member, scan);
    bool clean = true;
    for (int s = block.first; s <= block.last; ++s) {  // the last states of each sequence in the block
      const std::int64_t going_on = s < block.last ? block.count(s + 1) : 0;
      if (block.count(s) == going_on) continue;
      const Range own = member.part(block.count(s) - going_on);
      clean &= finite(states.from(block.column(s) + going_on + own.begin), own.end - own.begin);
    }
    if (!clean) block.each_piece(0, block.width, scan);
  };
  const auto recursion = [&](const Block& block, Team& team, Member member, bool next_is_cold) {
    const Cut<Real> cut(n, B, block);
    const Share<Real> share(cut, member);
    for (int s = block.first; s <= block.last; ++s) {
      const std::int64_t active = block.count(s);
      const Rows<Real> h_s = h.part(block.column(s), active), a_s = states.part(block.column(s), active);
      share.multiply_add(W_R, segment.a.from(block.before(s)), h_s, h_s, s, [&](std::int64_t b0, std::int64_t columns) {
        const std::int64_t j = block.column(s) + block.extent() + b0;
        if (cut.by_rows || !next_is_cold || j + columns > layout.total()) return;
        prefetch(h.part(j, columns), length);
        if (x) prefetch(x.part(j, columns), net.p);
        if (inputs.order) prefetch_inputs(inputs, block, s + block.last + 1 - block.first, b0, columns, net.p);
      });
      share.each_tile(active, [&](std::int64_t b0, std::int64_t b1) {
        share.each_piece(b0, b1, length, [&](std::int64_t at, std::int64_t count) {
          activate(net.activation, h_s.data + at, a_s.data + at, count);
        });
      });
      if (cut.by_rows) team.barrier();
    }
  };

  Crew crew(parts);
  const bool divisible = parts > 1 || !layout.blocks() || Cut<Real>(n, B, layout.block(0)).divisible();
  const double of_column = double(n) * (n + net.p);
  const bool worth = divisible || double(layout.widest()) * of_column >= worth_a_meeting;
  const int size = worth ? team_size(threads, double(layout.total()) * of_column) : 1;
  for (int i = 0; i < size && inputs.order; ++i) gathered.emplace_back(std::int64_t{chunk} * net.p);
  Team::run(size, [&](Team& all, int rank) {
    const Member member{rank, all.size(), rank};
    if (rank == 0) crew.split(all);
    W_R.pack(net.W_R, n, 1, member.part(panels));
    if (segment.inputs.x) W_I.pack(net.W_I, net.p, 1, member.part(panels));
    const int blocks = layout.blocks();
    if (!divisible && all.size() > 1) {  // the others work for the recursion's thread, a block ahead and one behind
      const Member alone{0, 1, rank}, other{rank - 1, all.size() - 1, rank};
      for (int k = -1; k <= blocks; ++k) {
        all.barrier();
        if (rank == 0 && k >= 0 && k < blocks) recursion(layout.block(k), all, alone, false);
        if (rank > 0 && k + 1 < blocks) add_inputs(layout.block(k + 1), other);
        if (rank > 0 && k > 0) check(layout.block(k - 1), other);
      }
      return;
    }
    for (int begin = 0, end; begin < blocks; begin = end) {
      all.barrier();
      end = layout.stretch_end(begin);
      crew.run(all, rank, [&](int part, Team& team, Member own) {
        for (int k = begin; k < end; ++k) {
          const Block& block = layout.block(k, part);
          add_inputs(block, own);
          team.barrier();
          recursion(block, team, own, true);
          team.barrier();
          check(block, own);
        }
      });
    }
  });
  return bad < 0 ? -1 : layout.total() - bad;
}

template <class Real>
void outputs(const Network<Real>& net, Rows<const Real> r, Real* o, std::int64_t unit, int threads) {
  const int size = team_size(threads, double(r.count) * net.n * net.m);
  PackedReadout<Real> readout(net, false, false, size);
  Team::run(size, [&](Team& team, int rank) {
    for (std::int64_t begin = 0; begin < r.count; begin += unit)
      each_chunk(std::min(unit, r.count - begin), {rank, team.size(), rank}, [&](std::int64_t first, int columns) {
        readout.predict(r.from(begin + first), columns, o + (begin + first) * net.m, rank);
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
    each_chunk(a.count, {rank, team.size(), rank}, [&](std::int64_t first, int columns) {
      Real* const own = e[std::size_t(rank)].data();
      const bool reads_h = net.readout == Readout::preactivation;
      const Targets<Real> wanted = targets.from(first, net.m);
      if (!wanted.silent(columns)) readout.argument(reads_h ? h.from(first) : a.from(first), columns, own);
      if (readout.errors(loss, wanted, columns, own, errors + first, rank))
        readout.to_states(own, {}, g.part(first, columns));
      else
        std::fill_n(g[first], columns * length, Real(0));
      if (!reads_h) multiply_derivative(net.activation, a[first], g[first], columns * length);
    });
  });
}

#define BPTT_INSTANTIATE(Real)                                                                                        \
  template std::int64_t forward(const Network<Real>&, const Segment<Real>&, int);                                     \
  template void outputs(const Network<Real>&, Rows<const Real>, Real*, std::int64_t, int);                            \
  template void direct(const Network<Real>&, Loss, Rows<const Real>, Rows<const Real>, const Targets<Real>&, double*, \
                       Rows<Real>, int);
BPTT_INSTANTIATE(float)
BPTT_INSTANTIATE(double)
#undef BPTT_INSTANTIATE

}  // namespace bptt
