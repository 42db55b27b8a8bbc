// Predictions, errors, and the errors' gradients by the readout's argument z, for a few dozen columns at once.
//
// Classes are rows here and columns (t, b) run along the registers: exp and log work at full width however few classes
// there are.
#pragma once

#include <limits>

#include "elementary.hpp"
#include "network.hpp"

namespace bptt {

// Numbered as in python/bptt/_kernel.py; `upstream`: no error of one's own, dE/do comes from outside.
enum class Loss { upstream = -1, cross_entropy, squared_error };

// Columns treated at once.
inline constexpr int chunk = 48;

// A chunk turned on its side: row i holds number i of each of the chunk's columns.
template <class Real>
class Turned {
 public:
  explicit Turned(int rows) : rows_(rows), data_(std::int64_t(rows) * chunk) {}

  Vector<Real> get(int i, int c) const { return load(data_.data() + i * chunk + c); }
  void set(int i, int c, Vector<Real> v) { store(data_.data() + i * chunk + c, v); }

  void turn_in(const Real* rows, std::int64_t stride, int columns) {
    for (int c = 0; c < columns; ++c)
      for (int i = 0; i < rows_; ++i) data_.data()[i * chunk + c] = rows[c * stride + i];
    for (int c = columns; c < chunk; ++c)  // repeat the last column: whatever it holds, no new kind of number appears
      for (int i = 0; i < rows_; ++i) data_.data()[i * chunk + c] = rows[(columns - 1) * stride + i];
  }
  void turn_out(Real* rows, std::int64_t stride, int columns) const {
    for (int c = 0; c < columns; ++c)
      for (int i = 0; i < rows_; ++i) rows[c * stride + i] = data_.data()[i * chunk + c];
  }

 private:
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
};

// Turns z (rows of m numbers, `stride` apart) into e = d(w E)/dz, and writes w E.
template <class Real>
void errors(Loss loss, Output output, int m, Real* z, std::int64_t stride, int columns, const Targets<Real>& targets,
            double* error, LossScratch<Real>& scratch) {
  alignas(row_bytes) Real w[chunk], own[chunk], top[chunk], log_sum[chunk];
  for (int c = 0; c < chunk; ++c) w[c] = c >= columns ? Real(0) : targets.weights ? targets.weights[c] : Real(1);
  Turned<Real>& t = scratch.z;
  t.turn_in(z, stride, columns);
  if (loss == Loss::cross_entropy) {
    for (int c = 0; c < columns; ++c) own[c] = w[c] == 0 ? Real(0) : z[c * stride + targets.classes[c]];
    softmax(t, m, columns, top, log_sum);
    for (int c = 0; c < columns; ++c)
      error[c] = w[c] == 0 ? 0 : double(w[c]) * (double(top[c] - own[c]) + double(log_sum[c]));
    for (int c = 0; c < columns; c += lanes<Real>) {
      const Vector<Real> v = load(w + c);
      for (int i = 0; i < m; ++i) t.set(i, c, v == 0 ? v : t.get(i, c) * v);
    }
    t.turn_out(z, stride, columns);
    for (int c = 0; c < columns; ++c)
      if (w[c] != 0) z[c * stride + targets.classes[c]] -= w[c];
    return;
  }
  Turned<Real>& d = scratch.y;
  d.turn_in(targets.values, m, columns);
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
  t.turn_out(z, stride, columns);
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
  o.turn_in(z, stride, columns);
  d.turn_in(d_outputs, m, columns);
  softmax(o, m, columns);
  for (int c = 0; c < columns; c += lanes<Real>) through_softmax(o, d, m, c);
  o.turn_out(z, stride, columns);
}

// Turns z into predictions o, rows of m numbers.
template <class Real>
void predict(Output output, int m, const Real* z, std::int64_t stride, int columns, Real* o,
             LossScratch<Real>& scratch) {
  if (output == Output::linear) {
    for (int c = 0; c < columns; ++c) std::copy_n(z + c * stride, m, o + std::int64_t(c) * m);
    return;
  }
  scratch.z.turn_in(z, stride, columns);
  softmax(scratch.z, m, columns);
  scratch.z.turn_out(o, m, columns);
}

}  // namespace bptt
