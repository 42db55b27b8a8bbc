// The derivative of the state by the weights, dh_t/d(wrt), by the chain of its steps and by the recursion forward in
// time. In both the direct derivative of h_k is I (x) v_k^T, with q numbers v_k: a_{k-1} for W_R, x_k for W_I, 1 for b.
#pragma once

#include "network.hpp"

namespace bptt {

// Steps k = t0+1 .. t1 of a run. Matrices are row-major.
struct Run {
  int n;
  std::int64_t steps;
  const double* W_R;  // (n, n)
  const double* d;    // (steps, n) sigma'(h_{k-1}): the diagonals of D_t0 .. D_{t1-1}
  Inputs<double> v;   // (steps, q), or tokens that stand for one-hot v; both null: there is no direct derivative
  std::int64_t q;
  std::int64_t single = 0;  // how many of the first steps the chain goes through, and sums up, in float32
};

// The sum over a run of P(k) (x) v_k^T, from its last step back, where P(t1) is given and P(k-1) = P(k) W_R D_{k-1}:
// added to J if it holds that over later steps, `more`, else written there.
//   P: (n) rows, padded with zeros; P(t1) on entry, P(t0) on return;  J: (n, n, q), null without v
// Returns whether J is finite.
bool jacobian_by_chain(const Run& run, Rows<double> P, double* J, bool more, int threads);

// J <- I (x) v_k^T + W_R D_{k-1} J over the run, from its first step on (RTRL).
//   J: turned, so that its columns are rows, padded with zeros: (n q) rows, number a q + b the derivative by weight (a,
//   b). Without v it has any number of rows.
// Returns the first step, from 0, after which J is not finite, or -1.
std::int64_t jacobian_by_recursion(const Run& run, Rows<double> J, int threads);

}  // namespace bptt
