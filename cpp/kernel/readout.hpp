// The readout of a block of columns: predictions, or errors and their gradient pulled back to the states.
#pragma once

#include <vector>

#include "loss.hpp"
#include "packed_matrix.hpp"

namespace bptt {

template <class Real>
class PackedReadout {
 public:
  PackedReadout(const Network<Real>& net, bool backward, bool targets, int threads)
      : net_(net), z_length_(row_length<Real>(net.m)), W_O_(net.m, net.n), bias_(z_length_) {
    W_O_.pack(net.W_O, net.n, 1, {0, W_O_.panels()});
    if (backward) {
      W_O_turned_ = PackedMatrix<Real>(net.n, net.m);
      W_O_turned_.pack(net.W_O, 1, net.n, {0, W_O_turned_.panels()});
    }
    std::fill_n(bias_.data(), z_length_, Real(0));
    if (net.b_O) std::copy_n(net.b_O, net.m, bias_.data());
    for (int i = 0; i < threads; ++i) {
      scratch_.emplace_back(net.m, targets);
      z_.emplace_back(chunk * z_length_);
    }
  }

  std::int64_t z_length() const { return z_length_; }

  // o, rows of m numbers, for at most `chunk` columns of r.
  void predict(Rows<const Real> r, int columns, Real* o, int rank) {
    Real* z = z_[std::size_t(rank)].data();
    argument(r, columns, z);
    bptt::predict(net_.output, net_.m, z, z_length_, columns, o, scratch_[std::size_t(rank)]);
  }

  // z of any number of columns, into rows of z_length numbers.
  void argument(Rows<const Real> r, std::int64_t columns, Real* z) const {
    W_O_.multiply_add(r, {bias_.data(), columns, 0}, {z, columns, z_length_});
  }

  // From z of at most `chunk` columns to e = d(w E)/dz in its place, w E into `error`. False if the targets are silent:
  // z is not read then, and e is 0.
  bool errors(Loss loss, const Targets<Real>& targets, int columns, Real* e, double* error, int rank) {
    if (targets.silent(columns)) {
      std::fill_n(e, columns * z_length_, Real(0));
      std::fill_n(error, columns, 0.0);
      return false;
    }
    bptt::errors(loss, net_.output, net_.m, e, z_length_, columns, targets, error, scratch_[std::size_t(rank)]);
    return true;
  }

  // From z to e = dE/dz in its place, for a given dE/do.
  void pull_back(const Real* d_outputs, int columns, Real* e, int rank) {
    bptt::pull_back(net_.output, net_.m, e, z_length_, columns, d_outputs, scratch_[std::size_t(rank)]);
  }

  // g = c + e W_O, rows of n numbers.
  void to_states(const Real* e, Rows<const Real> c, Rows<Real> g) const {
    W_O_turned_.multiply_add({e, g.count, z_length_}, c, g);
  }

 private:
  const Network<Real>& net_;
  std::int64_t z_length_;
  PackedMatrix<Real> W_O_, W_O_turned_;
  Buffer<Real> bias_;
  std::vector<LossScratch<Real>> scratch_;  // one a thread
  std::vector<Buffer<Real>> z_;
};

}  // namespace bptt
