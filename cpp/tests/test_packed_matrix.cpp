// Products against the sum written out, at sizes that straddle the registers: tails, padding, and bits that must not
// depend on how panels are dealt.
#include "kernel/packed_matrix.hpp"

#include <doctest/doctest.h>

#include <random>
#include <vector>

#include "kernel/outer_sum.hpp"

using namespace bptt;

namespace {

template <class Real>
std::vector<Real> normal(std::int64_t count, int seed) {
  std::mt19937 engine(static_cast<unsigned>(seed));
  std::normal_distribution<double> draw;
  std::vector<Real> numbers(static_cast<std::size_t>(count));
  for (Real& x : numbers) x = Real(draw(engine));
  return numbers;
}

}  // namespace

TEST_CASE_TEMPLATE("a packed product is the sum written out", Real, float, double) {
  const double eps = std::numeric_limits<Real>::epsilon();
  for (const int rows : {1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100})
    for (const int inner : {1, 2, 3, 5, 16, 33})
      for (const int columns : {1, 2, 3, 4, 5, 6, 7, 11, 13}) {
        CAPTURE(rows);
        CAPTURE(inner);
        CAPTURE(columns);
        const auto M = normal<Real>(rows * inner, 1), X = normal<Real>(columns * inner, 2);
        PackedMatrix<Real> packed(rows, inner), turned(rows, inner);
        packed.pack(M.data(), inner, 1, {0, packed.panels()});
        const std::int64_t length = row_length<Real>(rows);
        const Buffer<Real> Y(columns * length);
        const Rows<const Real> x{X.data(), columns, inner};
        const Rows<Real> y{Y.data(), columns, length};
        const Buffer<Real> bias(length), fresh(columns * length), biased(columns * length);
        for (std::int64_t i = 0; i < columns * length; ++i) Y.data()[i] = Real(i % 7) / 8;
        for (std::int64_t i = 0; i < length; ++i) bias.data()[i] = Real(i % 5) / 8;
        packed.multiply_add(x, y, y);
        packed.multiply_add(x, {}, {fresh.data(), columns, length});
        packed.multiply_add(x, {bias.data(), columns, 0}, {biased.data(), columns, length});
        double worst = 0;
        for (int j = 0; j < columns; ++j)
          for (std::int64_t i = 0; i < length; ++i) {
            double sum = 0, size = 0;
            for (int k = 0; k < inner && i < rows; ++k) {
              const double term = double(M[std::size_t(i * inner + k)]) * double(X[std::size_t(j * inner + k)]);
              sum += term;
              size += std::abs(term);
            }
            // every partial sum rounds once, and none exceeds the sum of moduli; rows beyond the last are those of C
            const auto compare = [&](const Buffer<Real>& product, double c) {
              const double error = std::abs(double(product.data()[j * length + i]) - (c + sum));
              worst = std::max(worst, error - (inner + 3) * eps * (std::abs(c) + size));
            };
            compare(Y, double((j * length + i) % 7) / 8);
            compare(fresh, 0);
            compare(biased, double(i % 5) / 8);
          }
        CHECK(worst <= 0);
      }
}

TEST_CASE_TEMPLATE("which panels are asked for together changes no bit", Real, float, double) {
  const int n = 200;
  const auto M = normal<Real>(n * n, 3), X = normal<Real>(6 * n, 4);
  PackedMatrix<Real> packed(n, n);
  packed.pack(M.data(), n, 1, {0, packed.panels()});
  const std::int64_t length = row_length<Real>(n);
  for (std::int64_t columns = 1; columns <= tile::max_columns; ++columns) {
    const Buffer<Real> whole(columns * length), parts(columns * length);
    std::fill_n(whole.data(), columns * length, Real(0));
    std::fill_n(parts.data(), columns * length, Real(0));
    const Rows<const Real> x{X.data(), columns, n};
    const Rows<Real> a{whole.data(), columns, length}, b{parts.data(), columns, length};
    packed.multiply_add(x, a, a, {0, packed.panels()});
    for (int rank = 0; rank < 3; ++rank)
      packed.multiply_add(x, b, b, part(packed.panels(), PackedMatrix<Real>::group, rank, 3));
    CHECK(std::memcmp(whole.data(), parts.data(), std::size_t(columns * length) * sizeof(Real)) == 0);
  }
}

TEST_CASE_TEMPLATE("a sum of outer products touches its own rows and columns only", Real, float, double) {
  const double eps = std::numeric_limits<Real>::epsilon();
  for (const int u_count : {1, 2, 5, 6, 7, 8, 9, 17})
    for (const int v_count : {1, 7, 8, 9, 16, 17, 40}) {
      const int columns = 13;
      CAPTURE(u_count);
      CAPTURE(v_count);
      const auto u = normal<Real>(columns * u_count, 5), v = normal<Real>(columns * v_count, 6);
      const std::int64_t strips = (v_count + line<Real> - 1) / line<Real>;
      const Buffer<Real> v_strips(strips * columns * line<Real>), u_strip(columns * tile::outer_height);
      for (std::int64_t q = 0; q < strips; ++q)
        pack_strip<line<Real>>(v.data(), v_count, columns, q * line<Real>, v_count,
                               v_strips.data() + q * columns * line<Real>);
      std::vector<double> sums(std::size_t(u_count * v_count + 1), 0.25);
      for (std::int64_t strip = 0; strip * tile::outer_height < u_count; ++strip) {
        pack_strip<tile::outer_height>(u.data(), u_count, columns, strip * tile::outer_height, u_count, u_strip.data());
        outer_sum(u_strip.data(), std::int64_t{tile::outer_height}, strip,
                  Strips<Real>{v_strips.data(), columns * line<Real>, line<Real>}, columns,
                  Sum{sums.data(), v_count, u_count, v_count});
      }
      double worst = 0;
      for (int i = 0; i < u_count; ++i)
        for (int k = 0; k < v_count; ++k) {
          double sum = 0.25, size = 0.25;
          for (int j = 0; j < columns; ++j) {
            const double term = double(u[std::size_t(j * u_count + i)]) * double(v[std::size_t(j * v_count + k)]);
            sum += term;
            size += std::abs(term);
          }
          worst = std::max(worst, std::abs(sums[std::size_t(i * v_count + k)] - sum) - (columns + 2) * eps * size);
        }
      CHECK(worst <= 0);
      CHECK(sums.back() == 0.25);
    }
}
