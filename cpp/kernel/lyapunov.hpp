// Growth of an orthonormal basis along a trajectory: log diag R of J_L ... J_2 J_1 Q = Q' R, which over the number of
// steps is the Lyapunov exponents.
//
// A basis carried along needs no orthonormal columns, only independent ones: whatever upper triangular U is divided out
// on the way, the R of the product is that of what remains times all those U, and its diagonal the product of theirs
// (Rutishauser's Treppeniteration). So each step is one product and one elimination, whose columns are as independent
// as those of a QR at a quarter of its work, and only the end of a call is a QR.
//
// Of J = W diag d, d is eliminated as weights of the rows of what W gave the step before: sigma' of saturated units may
// be e^-1000, and every pivot is still as exact as W allows. Steps are taken together, d multiplied in, while their
// pivots stay near enough to one another.
#pragma once

#include "view.hpp"

namespace bptt {

// J_t = matrix diag(exp(log_d_t)) for t = 1 .. steps. Matrices are row-major and finite.
struct StepJacobians {
  int n;
  std::int64_t steps;
  const double* matrices;  // (n, n), or (steps, n, n)
  bool one_each;
  const double* log_d;  // (steps, n), -inf where d is 0; null: d is 1
  bool singular;        // whether directions may die of the matrix that is there for all steps
};

// Replaces Q by Q' and writes log diag R.
//   Q: one row a column of the basis, orthonormal or zero, padded with zeros
//   log_r: (Q.count). A direction that is dead, exactly or within rounding, has -inf, and its column becomes zero
void grow(const StepJacobians& J, Rows<double> Q, double* log_r, int threads);

}  // namespace bptt
