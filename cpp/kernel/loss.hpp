// Predictions, errors, and the errors' gradients by the readout's argument z, for a few dozen columns at once.
//
// Classes are rows here and columns (t, b) run along the registers: exp and log work at full width however few classes
// there are.
#pragma once

#include <algorithm>
#include <utility>

#include "elementary.hpp"
#include "network.hpp"

namespace bptt {

// Numbered as in python/bptt/_kernel.py; `upstream`: no error of one's own, dE/do comes from outside.
enum class Loss { upstream = -1, cross_entropy, squared_error };

// Columns treated at once.
inline constexpr int chunk = 48;

// The square block of numbers that `lanes` registers hold, turned about its diagonal.
template <class Real>
[[gnu::always_inline]] inline void transpose(Vector<Real> (&v)[lanes<Real>]) {
  constexpr auto turn = []<int s>(Vector<Real>(&w)[lanes<Real>]) __attribute__((always_inline)) {
    constexpr auto masks = []<std::size_t... k>(std::index_sequence<k...>) {
      constexpr Integer<Real> W = lanes<Real>;
      return std::pair{Mask<Real>{(k & s ? Integer<Real>(k) - s + W : Integer<Real>(k))...},
                       Mask<Real>{(k & s ? Integer<Real>(k) + W : Integer<Real>(k) + s)...}};
    }
    (std::make_index_sequence<lanes<Real>>{});
#pragma GCC unroll 16
    for (int i = 0; i < lanes<Real>; ++i)
      if (!(i & s)) {
        const Vector<Real> low = w[i], high = w[i + s];
        w[i] = __builtin_shuffle(low, high, masks.first);
        w[i + s] = __builtin_shuffle(low, high, masks.second);
      }
  };
  turn.template operator()<1>(v);
  if constexpr (lanes < Real >> 2) turn.template operator()<2>(v);
  if constexpr (lanes < Real >> 4) turn.template operator()<4>(v);
  if constexpr (lanes < Real >> 8) turn.template operator()<8>(v);
}

// A chunk turned on its side: row i holds number i of each of the chunk's columns. Columns that the chunk lacks repeat
// its last one, so that no new kind of number appears in them.
template <class Real>
class Turned {
 public:
  explicit Turned(int rows) : rows_(rows), data_(row_length<Real>(rows) * std::int64_t{chunk}) {}

  Vector<Real> get(int i, int c) const { return load(at(i, c)); }
  void set(int i, int c, Vector<Real> v) { store(at(i, c), v); }

  // Rows of memory padded to a line.
  void turn_in_padded(const Real* rows, std::int64_t stride, int columns) {
    for (int c = 0; c < columns; c += lanes<Real>)
      for (int i = 0; i < rows_; i += lanes<Real>) {
        Vector<Real> block[lanes<Real>];
        for (int k = 0; k < lanes<Real>; ++k) block[k] = load(rows + std::min(c + k, columns - 1) * stride + i);
        transpose<Real>(block);
        for (int k = 0; k < lanes<Real>; ++k) set(i + k, c, block[k]);
      }
  }
  void turn_out_padded(Real* rows, std::int64_t stride, int columns) const {
    for (int c = 0; c < columns; c += lanes<Real>)
      for (int i = 0; i < rows_; i += lanes<Real>) {
        Vector<Real> block[lanes<Real>];
        for (int k = 0; k < lanes<Real>; ++k) block[k] = get(i + k, c);
        transpose<Real>(block);
        for (int k = 0; k < std::min(lanes<Real>, columns - c); ++k) store(rows + (c + k) * stride + i, block[k]);
      }
  }

  // Rows of exactly this many numbers, one after another.
  void turn_in(const Real* rows, int columns) {
    for (int c = 0; c < chunk; ++c)
      for (int i = 0; i < rows_; ++i) *at(i, c) = rows[std::min(c, columns - 1) * rows_ + i];
  }
  void turn_out(Real* rows, int columns) const {
    for (int c = 0; c < columns; ++c)
      for (int i = 0; i < rows_; ++i) rows[c * rows_ + i] = *at(i, c);
  }

 private:
  Real* at(int i, int c) const { return data_.data() + std::int64_t{i} * chunk + c; }

  int rows_;
  Buffer<Real> data_;
};

// Scratch of one thread for the chunks it treats.
template <class Real>
struct LossScratch {
  Turned<Real> z, y;
  LossScratch(int m, bool targets) : z(m), y(targets ? m : 0) {}
};

// z -> softmax(z) in place. log sum_i exp(z_i) of each column is top + log_sum, apart so that no digits are lost in E.
template <class Real>
void softmax(Turned<Real>& z, int m, int columns, Real* top_out = nullptr, Real* log_sum = nullptr) {
  for (int c = 0; c < columns; c += lanes<Real>) {
    Vector<Real> top = z.get(0, c);
    for (int i = 1; i < m; ++i) {
      const Vector<Real> v = z.get(i, c);
      top = v > top ? v : top;
    }
    Vector<Real> sum{};
    for (int i = 0; i < m; ++i) {
      const Vector<Real> v = exp<Real>(z.get(i, c) - top);
      z.set(i, c, v);
      sum += v;
    }
    const Vector<Real> scale = Real(1) / sum;
    for (int i = 0; i < m; ++i) z.set(i, c, z.get(i, c) * scale);
    if (log_sum) {
      store(top_out + c, top);
      store(log_sum + c, log<Real>(sum));
    }
  }
}

// o -> d (diag o - o o^T) in place, for one register of columns. A constant added to d changes nothing: taking away the
// likeliest class's entry leaves nothing to cancel where o is nearly 1.
template <class Real>
void through_softmax(Turned<Real>& o, const Turned<Real>& d, int m, int c) {
  Vector<Real> likeliest = o.get(0, c), base = d.get(0, c), along{};
  for (int i = 1; i < m; ++i) {
    const Vector<Real> p = o.get(i, c);
    base = p > likeliest ? d.get(i, c) : base;
    likeliest = p > likeliest ? p : likeliest;
  }
  for (int i = 0; i < m; ++i) along += o.get(i, c) * (d.get(i, c) - base);
  for (int i = 0; i < m; ++i) o.set(i, c, o.get(i, c) * (d.get(i, c) - base - along));
}

// Targets and weights of a chunk's columns; null: absent.
template <class Real>
struct Targets {
  const std::int32_t* classes = nullptr;  // (C) for cross-entropy
  const Real* values = nullptr;           // (C, m) for squared error
  const Real* weights = nullptr;          // (C); null: ones. Where 0, the target is not used

  Targets from(std::int64_t c, int m) const {
    return {classes ? classes + c : nullptr, values ? values + c * m : nullptr, weights ? weights + c : nullptr};
  }
  // Whether none of the columns has an error.
  bool silent(std::int64_t columns) const {
    return weights && std::all_of(weights, weights + columns, [](Real w) { return w == 0; });
  }
};

// Turns z (rows of m numbers, `stride` apart) into e = d(w E)/dz, and writes w E.
template <class Real>
void errors(Loss loss, Output output, int m, Real* z, std::int64_t stride, int columns, const Targets<Real>& targets,
            double* error, LossScratch<Real>& scratch) {
  alignas(row_bytes) Real w[chunk], own[chunk], top[chunk], log_sum[chunk];
  for (int c = 0; c < chunk; ++c) w[c] = c >= columns ? Real(0) : targets.weights ? targets.weights[c] : Real(1);
  Turned<Real>& t = scratch.z;
  t.turn_in_padded(z, stride, columns);
  if (loss == Loss::cross_entropy) {
    alignas(row_bytes) Integer<Real> wanted[chunk];
    for (int c = 0; c < chunk; ++c) wanted[c] = w[c] == 0 ? -1 : targets.classes[c];
    const auto is = [&](int i, int c) { return load(wanted + c) == Integer<Real>(i); };
    for (int c = 0; c < columns; c += lanes<Real>) {
      Vector<Real> z_y{};
      for (int i = 0; i < m; ++i) z_y = is(i, c) ? t.get(i, c) : z_y;
      store(own + c, z_y);
    }
    softmax(t, m, columns, top, log_sum);
    for (int c = 0; c < columns; ++c)
      error[c] = w[c] == 0 ? 0 : double(w[c]) * (double(top[c] - own[c]) + double(log_sum[c]));
    for (int c = 0; c < columns; c += lanes<Real>) {
      // o_y - 1 as minus the others: nothing cancels where the class is nearly certain
      const Vector<Real> v = load(w + c), zero{};
      Vector<Real> others{};
      for (int i = 0; i < m; ++i) others += is(i, c) ? zero : t.get(i, c);
      for (int i = 0; i < m; ++i) t.set(i, c, v == 0 ? zero : v * (is(i, c) ? -others : t.get(i, c)));
    }
    t.turn_out_padded(z, stride, columns);
    return;
  }
  Turned<Real>& d = scratch.y;
  d.turn_in(targets.values, columns);
  if (output == Output::softmax) softmax(t, m, columns);
  for (int c = 0; c < columns; c += lanes<Real>) {
    Vector<Real> square{};
    for (int i = 0; i < m; ++i) {
      const Vector<Real> difference = t.get(i, c) - d.get(i, c);
      square += difference * difference;
      d.set(i, c, 2 * difference);
    }
    store(own + c, square);
    if (output == Output::softmax)
      through_softmax(t, d, m, c);
    else
      for (int i = 0; i < m; ++i) t.set(i, c, d.get(i, c));
    const Vector<Real> v = load(w + c);
    for (int i = 0; i < m; ++i) t.set(i, c, v == 0 ? v : t.get(i, c) * v);
  }
  for (int c = 0; c < columns; ++c) error[c] = w[c] == 0 ? 0 : double(w[c]) * double(own[c]);
  t.turn_out_padded(z, stride, columns);
}

// Turns z into e = dE/dz for a given dE/do (rows of m numbers).
template <class Real>
void pull_back(Output output, int m, Real* z, std::int64_t stride, int columns, const Real* d_outputs,
               LossScratch<Real>& scratch) {
  if (output == Output::linear) {
    for (int c = 0; c < columns; ++c) std::copy_n(d_outputs + std::int64_t(c) * m, m, z + c * stride);
    return;
  }
  Turned<Real>&o = scratch.z, &d = scratch.y;
  o.turn_in_padded(z, stride, columns);
  d.turn_in(d_outputs, columns);
  softmax(o, m, columns);
  for (int c = 0; c < columns; c += lanes<Real>) through_softmax(o, d, m, c);
  o.turn_out_padded(z, stride, columns);
}

// Turns z into predictions o, rows of m numbers.
template <class Real>
void predict(Output output, int m, const Real* z, std::int64_t stride, int columns, Real* o,
             LossScratch<Real>& scratch) {
  if (output == Output::linear) {
    for (int c = 0; c < columns; ++c) std::copy_n(z + c * stride, m, o + std::int64_t(c) * m);
    return;
  }
  scratch.z.turn_in_padded(z, stride, columns);
  softmax(scratch.z, m, columns);
  scratch.z.turn_out(o, columns);
}

}  // namespace bptt
