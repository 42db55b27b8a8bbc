// Forward and backward over one segment of steps, t0+1 .. t1. See python/bptt/_kernel.py for columns and counts.
#pragma once

#include <vector>

#include "loss.hpp"

namespace bptt {

// The steps of a segment and what is stored of them. Rows of a and h hold n numbers, padded to row_length(n).
template <class Real>
struct Segment {
  int steps;                   // L
  const std::int64_t* counts;  // (L + 2): columns at steps t0, t0+1, ..., t1, t1+1; not increasing
  Inputs<Real> inputs;         // C columns
  Rows<Real> a;                // (counts[0] + C): a_t0 first
  Rows<Real> h;                // (C) pre-activations; absent where nothing reads them
};

// Accumulators of the gradient, row-major; null where not wanted. No two may overlap.
struct Sums {
  double* W_R;  // (n, n)
  double* W_I;  // (n, p); for tokens its transpose, (p, n)
  double* W_O;  // (m, n)
  double* b;    // (n)
  double* b_O;  // (m)
};

// Where the error enters, and what is wanted of its gradient.
template <class Real>
struct Backward {
  Loss loss;
  Targets<Real> targets;   // for a loss of one's own
  const Real* d_outputs;   // (C, m) dE/do_t, null: zero; for Loss::upstream
  const Real* d_states;    // (C, n) added dE/d(state, the form's own), null: zero
  Rows<Real> carry;        // (B) in: dE/da_t1 of the counts[L+1] columns that go on, dE/d(final state, the form's own)
                           //         of the others; out: the first counts[1] rows become dE/da_t0
  double* errors;          // (C) w_t E_t, written; for a loss of one's own
  std::vector<Sums> sums;  // one, or one for each half of the batch
  bool more;               // whether they hold the sums over later steps, to be added to
  Real* d_x;               // (C, p) dE/dx_t, written; null: not wanted
  Rows<Real> delta;        // (C) delta_t = dE/dh_t, written; absent: not wanted
};

// Writes the states. Returns the first column where a state is not finite, or -1.
template <class Real>
std::int64_t forward(const Network<Real>& net, const Segment<Real>& segment, int threads);

// Writes the predictions (C, m) of the states r that the readout reads, `unit` columns after `unit`, so that time can
// be cut between them and no bit changes.
template <class Real>
void outputs(const Network<Real>& net, Rows<const Real> r, Real* o, std::int64_t unit, int threads);

// Writes the errors w_t E_t (C) and their direct part g_t = d(w_t E_t)/dh_t, from a_t and, where the readout reads it,
// h_t.
template <class Real>
void direct(const Network<Real>& net, Loss loss, Rows<const Real> a, Rows<const Real> h, const Targets<Real>& targets,
            double* errors, Rows<Real> g, int threads);

// Writes the gradient, or adds it. Returns the last column where delta is not finite, or -1.
template <class Real>
std::int64_t backward(const Network<Real>& net, const Segment<Real>& segment, const Backward<Real>& task, int threads);

}  // namespace bptt
