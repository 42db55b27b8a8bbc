// What Python cannot see: bits for every number of threads whichever way a step is cut, and memory beside what is
// owned.
#include "kernel/segment.hpp"

#include <doctest/doctest.h>

#include <random>
#include <vector>

#include "kernel/team.hpp"

using namespace bptt;

namespace {

// One segment of random numbers, every output surrounded by a rim that must stay as it is.
template <class Real>
struct Case {
  static constexpr std::int64_t rim = 64;
  static constexpr Real mark = Real(12345);

  int n, p = 5, m = 3;
  std::vector<std::int64_t> counts;
  std::int64_t C = 0, B;
  std::vector<Real> W_R, W_I, W_O, b, b_O, x;
  std::vector<std::int32_t> y;

  Case(int units, std::vector<std::int64_t> columns) : n(units), counts(std::move(columns)), B(counts[0]) {
    for (std::size_t s = 1; s + 1 < counts.size(); ++s) C += counts[s];
    std::mt19937 engine(7);
    std::normal_distribution<double> draw;
    const auto fill = [&](std::vector<Real>& to, std::int64_t count, double scale) {
      to.resize(std::size_t(count));
      for (Real& v : to) v = Real(scale * draw(engine));
    };
    fill(W_R, std::int64_t(n) * n, 0.8 / std::sqrt(n));
    fill(W_I, std::int64_t(n) * p, 1);
    fill(W_O, std::int64_t(m) * n, 0.3);
    fill(b, n, 0.1);
    fill(b_O, m, 0.1);
    fill(x, C * p, 1);
    for (std::int64_t c = 0; c < C; ++c) y.push_back(std::int32_t(engine() % unsigned(m)));
  }

  struct Rimmed {
    Buffer<Real> memory;
    std::int64_t size;
    explicit Rimmed(std::int64_t count) : memory(count + 2 * rim), size(count) {
      std::fill_n(memory.data(), count + 2 * rim, mark);
      std::fill_n(data(), count, Real(0));
    }
    Real* data() { return memory.data() + rim; }
    bool intact() {
      bool fine = true;
      for (std::int64_t i = 0; i < rim; ++i) fine = fine && memory.data()[i] == mark && data()[size + i] == mark;
      return fine;
    }
  };

  // All results of forward and backward in a row.
  std::vector<double> run(int threads, int parts = 1) {
    const std::int64_t length = row_length<Real>(n);
    Crowd::forget();  // or one thread might do
    Rimmed a((B + C) * length), h(C * length), carry(B * length), delta(C * length), d_x(C * p);
    const Network<Real> net{n,
                            p,
                            m,
                            W_R.data(),
                            W_I.data(),
                            W_O.data(),
                            b.data(),
                            b_O.data(),
                            Activation::tanh,
                            Form::activation,
                            Readout::activation,
                            Output::softmax};
    const Segment<Real> segment{
        int(counts.size()) - 2, counts.data(), {x.data(), nullptr}, {a.data(), B + C, length}, {h.data(), C, length}};
    struct Part {
      std::vector<double> dW_R, dW_I, dW_O, db, db_O;
    };
    std::vector<Part> sums;
    std::vector<Sums> views;
    const auto unwritten = [](std::int64_t size) { return std::vector<double>(std::size_t(size), 1e3); };
    for (int i = 0; i < parts; ++i)
      sums.push_back({unwritten(n * n), unwritten(n * p), unwritten(n * m), unwritten(n), unwritten(m)});
    for (Part& of : sums)
      views.push_back({of.dW_R.data(), of.dW_I.data(), of.dW_O.data(), of.db.data(), of.db_O.data()});
    std::vector<double> errors(C);
    CHECK(forward(net, segment, threads) == -1);
    const Backward<Real> task{Loss::cross_entropy,
                              {y.data(), nullptr, nullptr},
                              nullptr,
                              nullptr,
                              {carry.data(), B, length},
                              errors.data(),
                              views,
                              false,
                              d_x.data(),
                              {delta.data(), C, length}};
    CHECK(backward(net, segment, task, threads) == -1);
    for (Rimmed* r : {&a, &h, &carry, &delta, &d_x}) CHECK(r->intact());
    std::vector<double> all;
    all.insert(all.end(), errors.begin(), errors.end());
    for (auto sum : {&Part::dW_R, &Part::dW_I, &Part::dW_O, &Part::db, &Part::db_O})
      for (std::size_t i = 0; i < (sums[0].*sum).size(); ++i) {
        double total = 0;
        for (const Part& of : sums) total += (of.*sum)[i];
        all.push_back(total);
      }
    for (Rimmed* r : {&a, &h, &carry, &delta, &d_x}) all.insert(all.end(), r->data(), r->data() + r->size);
    return all;
  }
};

}  // namespace

TEST_CASE_TEMPLATE("the number of threads changes no bit", Real, float, double) {
  const auto even = [](std::int64_t B, std::size_t steps) { return std::vector<std::int64_t>(steps + 2, B); };
  std::vector<std::int64_t> ragged{9, 9, 8, 8, 8, 5, 5, 3, 1, 1, 1, 0};
  for (auto& [n, counts] : std::vector<std::pair<int, std::vector<std::int64_t>>>{{33, even(13, 60)},
                                                                                  {200, even(1, 40)},
                                                                                  {300, even(3, 20)},
                                                                                  {520, even(9, 3)},
                                                                                  {100, ragged},
                                                                                  {16, ragged},
                                                                                  {16, even(8, 70)},
                                                                                  {16, even(1, 900)}}) {
    CAPTURE(n);
    Case<Real> one(n, counts);
    const std::vector<double> alone = one.run(1);
    const std::vector<double> halves = one.run(1, 2);
    double difference = 0, largest = 0;
    for (std::size_t i = 0; i < alone.size(); ++i) {
      difference = std::max(difference, std::abs(alone[i] - halves[i]));
      largest = std::max(largest, std::abs(alone[i]));
    }
    CHECK(difference <= 50 * double(std::numeric_limits<Real>::epsilon()) * largest);
    for (const int threads : {2, 3, 5}) {
      const std::vector<double> together = one.run(threads), in_halves = one.run(threads, 2);
      CHECK(std::memcmp(alone.data(), together.data(), alone.size() * sizeof(double)) == 0);
      CHECK(std::memcmp(halves.data(), in_halves.data(), halves.size() * sizeof(double)) == 0);
    }
  }
}
