// A network as the kernel sees it: views of its weights and the four choices that make it one.
#pragma once

#include "activation.hpp"
#include "view.hpp"

namespace bptt {

// Numbered as in python/bptt/_kernel.py.
enum class Form { activation, preactivation };     // what the carried state is: a_t or h_t
enum class Readout { activation, preactivation };  // what the readout reads
enum class Output { softmax, linear };

//   h_t = W_R a_{t-1} + W_I x_t + b,   a_t = sigma(h_t),   z_t = W_O r_t + b_O,   r_t = a_t or h_t,   o_t =
//   softmax(z_t) or z_t
template <class Real>
struct Network {
  int n, p, m;      // hidden units, inputs, outputs (m = 0: no readout)
  const Real* W_R;  // (n, n), row-major like all the weights
  const Real* W_I;  // (n, p); for tokens its transpose in padded rows, (p, row_length(n))
  const Real* W_O;  // (m, n), null without a readout
  const Real* b;    // (n), null: none
  const Real* b_O;  // (m), null: none
  Activation activation;
  Form form;
  Readout readout;
  Output output;
};

// Inputs of a segment, one row a column (t, b): numbers, or tokens that stand for one-hot columns of W_I. Numbers may
// lie as the caller has them: sequence by sequence, those that are not there among them.
template <class Real>
struct Inputs {
  const Real* x = nullptr;               // (C, p), or with an order (L, B, p)
  const std::int32_t* tokens = nullptr;  // (C), each in 0..p-1; null where x is given
  const std::int64_t* order = nullptr;   // (B): the sequence of each rank
  std::int64_t size = 0;                 // B

  // With an order: those of step s, from 1 on, and of a rank.
  const Real* row(int s, std::int64_t rank, int p) const { return x + ((s - 1) * size + order[rank]) * p; }
};

}  // namespace bptt
