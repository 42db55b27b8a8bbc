#include "chain.hpp"

#include <vector>

#include "outer_sum.hpp"
#include "spectral_norm.hpp"

namespace bptt {
namespace {

// Factors in a block, if each keeps so many bytes.
std::int64_t block_factors(std::int64_t bytes) { return std::clamp<std::int64_t>((1 << 20) / bytes, 4, 64); }

// Tiles of so many rows: where there are many, a number that 2 and 4 threads share evenly.
std::int64_t even_tiles(std::int64_t rows) {
  const std::int64_t least = ColumnTiles(rows).tiles;
  return least < 4 ? least : (least + 3) / 4 * 4;
}

double largest_modulus(const double* numbers, std::int64_t count) {
  double largest = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const double modulus = std::fabs(numbers[i]);
    if (!(modulus <= largest)) largest = modulus;  // nan too, and then for good
    if (std::isnan(largest)) break;
  }
  return largest;
}

// The square of a norm, and the exponent of the norm.
struct Square {
  double number;
  std::int64_t exponent;

  // The same with a number in [1, 4), unless it is 0 or not finite.
  Square normal() const {
    if (number == 0 || !std::isfinite(number)) return *this;
    const std::int64_t half = std::ilogb(number) >> 1;
    return {times_power(number, -2 * half), exponent + half};
  }

  double log_norm() const { return 0.5 * std::log(number) + double(exponent) * 0x1.62e42fefa39efp-1; }
};

// sum_i squares[i] * 4^exponents[i].
Square sum_of_squares(const double* squares, const std::int64_t* exponents, std::int64_t count) {
  std::int64_t top = std::numeric_limits<std::int64_t>::min();
  for (std::int64_t i = 0; i < count; ++i)
    if (squares[i] != 0) top = std::max(top, exponents[i]);
  double sum = 0;
  for (std::int64_t i = 0; i < count; ++i)
    if (squares[i] != 0) sum += times_power(squares[i], 2 * (exponents[i] - top));
  return {sum, sum == 0 ? 0 : top};
}

// A block of factors: k = top, top - 1, ..., top - count + 1.
struct Block {
  std::int64_t top, count;
};

// The bundles on their way. Rows are cut into tiles once and for all; a thread moves its tiles through a whole block of
// factors on its own, since rows do not meet under multiplication from the right.
class Walk {
 public:
  // With `keeps_rows` the rows after every factor of a block can be asked for.
  Walk(const Factors& factors, const Bundles& bundles, bool keeps_rows)
      : factors_(factors),
        bundles_(bundles),
        length_(row_length<double>(factors.n)),
        size_(bundles.size()),
        tiles_(size_, even_tiles(size_)),
        most_(block_factors((keeps_rows ? size_ : 1) * length_ * 8 +
                            (factors.share_one() ? 0 : factors.n * length_ * 8))),
        slots_(keeps_rows ? most_ + 1 : 2),
        storage_(slots_ * size_ * length_),
        squares_(most_ * size_),
        exponents_(most_ * size_),
        shifts_(std::size_t(factors.share_one() ? 1 : most_)),
        wild_(std::size_t(factors.count)) {
    for (std::size_t i = 0; i < shifts_.size(); ++i) packed_.emplace_back(factors.n, factors.n);
    if (factors.e)
      for (std::int64_t i = 0; i < factors.count; ++i)
        wild_[std::size_t(i)] =
            std::any_of(factors.e[i], factors.e[i] + factors.n, [](std::int64_t e) { return e != 0; });
  }

  std::int64_t most_factors() const { return most_; }

  // The bundles that a factor moves.
  Range active(std::int64_t k) const {
    const std::int64_t *begin = bundles_.stops, *end = begin + bundles_.count;
    const auto first = std::partition_point(begin, end, [&](std::int64_t stop) { return stop <= k; });
    const auto last = std::partition_point(first, end, [&](std::int64_t stop) { return stop < k + bundles_.lags; });
    return {first - begin, last - begin};
  }

  bool moves(std::int64_t s, std::int64_t k) const {
    const std::int64_t lag = bundles_.stops[s] - k;
    return lag > 0 && lag < bundles_.lags;
  }

  // The square of bundle s's Frobenius norm after the j-th factor of the block.
  Square square(std::int64_t s, std::int64_t j) const {
    const std::int64_t at = j * size_ + s * bundles_.height;
    return sum_of_squares(squares_.data() + at, exponents_.data() + at, bundles_.height);
  }

  // Copies bundle s as it was after the j-th factor, times 2^-exponent. Needs kept rows.
  void copy(std::int64_t s, std::int64_t j, std::int64_t exponent, const Rows<double>& to) const {
    for (std::int64_t i = 0; i < bundles_.height; ++i) {
      const std::int64_t row = s * bundles_.height + i;
      shift(slot(j + 1)[row], exponents_.data()[j * size_ + row] - exponent, to[i], length_);
    }
  }

  // Calls after(block, team, rank) on each thread when all have moved through a block.
  template <class After>
  void run(int threads, After&& after) {
    const double block_multiply_adds = double(factors_.n) * factors_.n * double(size_) * double(most_);
    const double blocks = double(factors_.count) / double(most_);
    threads = block_multiply_adds < worth_a_meeting ? 1 : int(std::min<std::int64_t>(threads, tiles_.tiles));
    Team::run(team_size(threads, block_multiply_adds * blocks), [&](Team& team, int rank) {
      const FlushDenormals flush;
      for (std::int64_t left = factors_.count; left > 0; left -= most_) {
        const Block block{factors_.first + left - 1, std::min(left, most_)};
        if (!factors_.share_one() || left == factors_.count) {
          pack(block, rank, team.size());
          team.barrier();
        }
        move(block, team.size());
        team.barrier();
        if (rank == 0) dealt_ = 0;
        after(block, team, rank);
        team.barrier();
      }
    });
  }

 private:
  Rows<double> slot(std::int64_t j) const { return {storage_.data() + j % slots_ * size_ * length_, size_, length_}; }

  // Packs the transposes, because rows of memory are columns to the product, with their largest number in [1/2, 1).
  void pack(const Block& block, int rank, int threads) {
    const std::int64_t n = factors_.n, numbers = n * n;
    for (std::int64_t j = rank; j < std::ssize(packed_) && j < block.count; j += threads) {
      const double* from = factors_.matrices + (factors_.share_one() ? 0 : (block.top - j - factors_.first) * numbers);
      const double largest = largest_modulus(from, numbers);
      // 2^1022 and 2^-1022 are normal numbers.
      const int exponent = largest > 0 ? std::clamp(std::ilogb(largest), -1023, 1021) + 1 : 0;
      PackedMatrix<double>& matrix = packed_[std::size_t(j)];
      matrix.pack(from, 1, n, {0, matrix.panels()}, std::ldexp(1.0, -exponent));
      shifts_[std::size_t(j)] = exponent;
    }
  }

  // Hands of neighbouring tiles go through the whole block one after the other, so that their rows stay in a near cache
  // and nobody writes next to them. Dealt as they are asked for, since bundles come and go.
  void move(const Block& block, int threads) {
    const std::int64_t hand = std::clamp<std::int64_t>(tiles_.tiles / (4 * threads), 1, 8);
    for (std::int64_t first; (first = dealt_.fetch_add(hand)) < tiles_.tiles;)
      move(block, first, std::min(first + hand, tiles_.tiles));
  }

  void move(const Block& block, std::int64_t first_tile, std::int64_t end_tile) {
    const std::int64_t height = bundles_.height, group = PackedMatrix<double>::group;
    Range before{size_, size_};
    for (std::int64_t j = 0; j < block.count; ++j) {
      const std::int64_t k = block.top - j;
      const Range bundles = active(k), all{bundles.begin * height, bundles.end * height};
      const Range joining{all.begin, std::min(all.end, before.begin)};
      const Rows<double> from = slot(j), to = slot(j + 1);
      const PackedMatrix<double>& matrix = packed_[factors_.share_one() ? 0 : std::size_t(j)];
      const auto each_tile = [&](const Range& rows, auto&& work) {
        for (std::int64_t i = first_tile; i < end_tile; ++i) {
          const Range part{std::max(tiles_.begin(i), rows.begin), std::min(tiles_.end(i), rows.end)};
          if (part.begin < part.end) work(part);
        }
      };
      const auto copy = [&](const Rows<double>& source, const Rows<double>& target, const Range& rows) {
        std::copy_n(source[rows.begin], (rows.end - rows.begin) * length_, target[rows.begin]);
      };
      each_tile(joining, [&](const Range& rows) { copy(bundles_.rows, from, rows); });
      for (std::int64_t q = 0; q < matrix.panels(); q += group)
        each_tile(all, [&](const Range& rows) {
          matrix.multiply_add(from.from(rows.begin), {}, to.part(rows.begin, rows.end - rows.begin),
                              {q, std::min(q + group, matrix.panels())});
        });
      each_tile(all, [&](const Range& rows) {
        for (std::int64_t r = rows.begin; r < rows.end; ++r) settle(j, k, to[r], r);
        if (j == block.count - 1) copy(to, bundles_.rows, rows);
      });
      before = all;
    }
  }

  // The rest of a step of row r: times the slopes, back into range, and into the record.
  void settle(std::int64_t j, std::int64_t k, double* row, std::int64_t r) {
    const std::int64_t i = k - factors_.first;
    std::int64_t exponent = bundles_.exponents[r] + shifts_[factors_.share_one() ? 0 : std::size_t(j)];
    double square;
    if (wild_[std::size_t(i)])
      square = multiply(row, factors_.d[i], factors_.e[i], exponent, length_);
    else
      square = factors_.d ? multiply(row, factors_.d[i], length_) : dot(row, row, length_);
    if (!in_range(square)) square = rescale(row, exponent, length_);
    bundles_.exponents[r] = exponent;
    squares_.data()[j * size_ + r] = square;
    exponents_.data()[j * size_ + r] = exponent;
  }

  const Factors factors_;
  const Bundles bundles_;
  const std::int64_t length_, size_;
  const ColumnTiles tiles_;
  const std::int64_t most_, slots_;
  const Buffer<double> storage_, squares_;
  const Buffer<std::int64_t> exponents_;
  std::vector<PackedMatrix<double>> packed_;
  std::vector<int> shifts_;
  std::vector<char> wild_;
  std::atomic<std::int64_t> dealt_ = 0;  // tiles of this block
};

// Writes the log norms of a block: square_of(s, j) is the square of bundle s's norm after the j-th factor.
template <class SquareOf>
void record(const Factors& factors, const Bundles& bundles, const Norms& norms, const Walk& walk, const Block& block,
            int rank, int threads, SquareOf&& square_of) {
  const Range items = part(bundles.count * block.count, 1, rank, threads);
  for (std::int64_t item = items.begin; item < items.end; ++item) {
    const std::int64_t s = item / block.count, j = item % block.count, k = block.top - j;
    if (!walk.moves(s, k)) continue;
    const double offset = norms.offsets ? norms.offsets[k - factors.first] : 0;
    norms.logs[s * bundles.lags + bundles.stops[s] - k] = square_of(s, j).log_norm() + offset;
  }
}

}  // namespace

void advance(const Factors& factors, const Bundles& bundles, const Norms& norms, int threads) {
  const bool spectral = bool(norms.leads);
  Walk walk(factors, bundles, spectral);
  const std::int64_t length = row_length<double>(factors.n);
  const Rows<double> leads = norms.leads;
  const Buffer<double> next(spectral ? bundles.count * length : 0);
  std::vector<SpectralNorm> spectral_norms;
  if (spectral) {
    std::copy_n(leads.data, bundles.count * length, next.data());
    for (int i = 0; i < threads; ++i) spectral_norms.emplace_back(int(bundles.height), factors.n);
  }
  walk.run(threads, [&](const Block& block, Team& team, int rank) {
    if (!norms.logs) return;
    record(factors, bundles, norms, walk, block, rank, team.size(), [&](std::int64_t s, std::int64_t j) {
      if (!spectral) return walk.square(s, j);
      Square square = walk.square(s, j).normal();
      SpectralNorm& norm = spectral_norms[std::size_t(rank)];
      walk.copy(s, j, square.exponent, norm.matrix());
      // All factors of a block start from where the last block ended, so that it is no matter who takes which.
      std::copy_n(leads[s], length, norm.lead());
      square.number = norm.square(square.number);
      const bool last = j + 1 == block.count || !walk.moves(s, block.top - j - 1);
      if (last) std::copy_n(norm.lead(), length, next.data() + s * length);
      return square;
    });
    if (!spectral) return;
    team.barrier();
    if (rank == 0) std::copy_n(next.data(), bundles.count * length, leads.data);
  });
}

void accumulate(const Factors& factors, const Bundles& bundles, Rows<const double> a, double* gradients, int threads) {
  Walk walk(factors, bundles, true);
  const std::int64_t n = factors.n, length = row_length<double>(factors.n);
  std::vector<Buffer<double>> rows;
  for (int i = 0; i < threads; ++i) rows.emplace_back(walk.most_factors() * length);
  walk.run(threads, [&](const Block& block, Team& team, int rank) {
    double* const v = rows[std::size_t(rank)].data();
    const Range own = part(bundles.count, 1, rank, team.size());
    for (std::int64_t s = own.begin; s < own.end; ++s) {
      std::int64_t first = 0, end = block.count;  // of the factors that move bundle s
      while (first < end && !walk.moves(s, block.top - first)) ++first;
      while (first < end && !walk.moves(s, block.top - end + 1)) --end;
      if (first == end) continue;
      for (std::int64_t j = first; j < end; ++j) {
        double* const of_factor = v + (j - first) * length;
        const double* const before = a[block.top - j - factors.first];
        if (std::any_of(before, before + n, [](double number) { return number != 0; }))
          walk.copy(s, j, 0, {of_factor, 1, length});
        else
          std::fill_n(of_factor, length, 0.0);  // v may be beyond float64, and infinity times 0 is no number
      }
      const Strips<double> of_a{a[block.top - first - factors.first], line<double>, -a.stride};
      for (std::int64_t i = 0; i * tile::outer_height < n; ++i)
        outer_sum(v + i * tile::outer_height, length, i, of_a, end - first, Sum{gradients + s * n * n, n, n, n});
    }
  });
}

}  // namespace bptt
