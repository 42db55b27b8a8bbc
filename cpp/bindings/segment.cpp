#include "kernel/segment.hpp"

#include <numeric>

#include "arguments.hpp"
#include "kernel/steps.hpp"

namespace bptt::bindings {
namespace {

using Array = py::array;
using Optional = py::object;  // an array or None

int extent(py::handle array, int axis) { return int(py::reinterpret_borrow<py::array>(array).shape(axis)); }

// _kernel.Ordered, or its parts: the array alone if it is in order.
struct Given {
  Array x;
  py::object order;

  explicit Given(const py::object& inputs) {
    const bool ordered = py::isinstance<py::tuple>(inputs);
    x = Array(ordered ? py::object(inputs[py::int_(0)]) : inputs);
    order = ordered ? py::object(inputs[py::int_(1)]) : py::none();
  }
};

bool are_tokens(const Array& x) { return py::isinstance<py::array_t<std::int32_t>>(x); }

// The fields of _kernel.Network. W_I has the shape that the inputs x want, (n, p), or (p, row_length(n)) for tokens;
// without x it is not read.
template <class Real>
Network<Real> network(const py::tuple& t, const Given* given = nullptr) {
  const Array* const x = given ? &given->x : nullptr;
  const bool tokens = x && are_tokens(*x);
  const int n = extent(t[0], 0), p = x ? extent(t[1], tokens ? 0 : 1) : 0, m = t[2].is_none() ? 0 : extent(t[2], 0);
  return {n,
          p,
          m,
          data<const Real>(t[0], "W_R", std::int64_t(n) * n),
          x ? data<const Real>(t[1], "W_I", std::int64_t(p) * (tokens ? row_length<Real>(n) : n)) : nullptr,
          data<const Real>(t[2], "W_O", std::int64_t(m) * n),
          data<const Real>(t[3], "b", n),
          data<const Real>(t[4], "b_O", m),
          static_cast<Activation>(t[5].cast<int>()),
          static_cast<Form>(t[6].cast<int>()),
          static_cast<Readout>(t[7].cast<int>()),
          static_cast<Output>(t[8].cast<int>())};
}

// C: those of the steps t0+1 .. t1.
std::int64_t columns(const py::array_t<std::int64_t>& counts) {
  const py::ssize_t size = counts.size();
  if (size < 2) throw py::value_error("counts must hold L + 2 numbers");
  const std::int64_t* c = counts.data();
  bool right = c[size - 1] >= 0;
  for (py::ssize_t s = 1; s < size; ++s) right &= c[s] <= c[s - 1];
  if (!right) throw py::value_error("counts must not be negative and not increase");
  return std::accumulate(c + 1, c + size - 1, std::int64_t{0});
}

template <class Real>
Segment<Real> segment(const Network<Real>& net, const Given& given, const py::array_t<std::int64_t>& counts,
                      py::handle a, py::handle h) {
  const std::int64_t C = columns(counts);
  Segment<Real> s{int(counts.size()) - 2, counts.data(), {}, {}, {}};
  const Array& x = given.x;
  if (are_tokens(x))
    s.inputs.tokens = data<const std::int32_t>(x, "x", C);
  else if (given.order.is_none())
    s.inputs.x = data<const Real>(x, "x", C * net.p);
  else {
    const std::int64_t B = x.ndim() == 3 ? x.shape(1) : 0;
    s.inputs.x = data<const Real>(x, "x", s.steps * B * net.p);
    s.inputs.order = data<const std::int64_t>(given.order, "order", B);
    s.inputs.size = B;
    if (counts.data()[1] > B ||
        !std::all_of(s.inputs.order, s.inputs.order + B, [B](auto b) { return 0 <= b && b < B; }))
      throw py::value_error("order must name a sequence of x for every column");
  }
  s.a = rows<Real>(a, "a", net.n, counts.data()[0] + C);
  s.h = rows<Real>(h, "h", net.n, C);
  return s;
}

template <class Real>
Targets<Real> targets(const Network<Real>& net, int loss, py::handle y, py::handle weights, std::int64_t C) {
  Targets<Real> t;
  if (static_cast<Loss>(loss) == Loss::cross_entropy)
    t.classes = data<const std::int32_t>(y, "y", C);
  else if (static_cast<Loss>(loss) == Loss::squared_error)
    t.values = data<const Real>(y, "y", C * net.m);
  t.weights = data<const Real>(weights, "weights", C);
  return t;
}

std::int64_t forward(const py::tuple& net, const py::object& x, const py::array_t<std::int64_t>& counts, const Array& a,
                     const Optional& h, int threads) {
  return for_dtype(a, [&](auto real) {
    const Given given(x);
    const auto n = network<decltype(real)>(net, &given);
    const auto s = segment(n, given, counts, a, h);
    const py::gil_scoped_release release;
    return bptt::forward(n, s, threads);
  });
}

void outputs(const py::tuple& net, const Array& r, const Array& o, std::int64_t unit, int threads) {
  if (unit < 1) throw py::value_error("unit must be at least 1");
  for_dtype(r, [&](auto real) {
    using Real = decltype(real);
    const auto n = network<Real>(net);
    const std::int64_t C = r.shape(0);
    const auto from = rows<const Real>(r, "r", n.n, C);
    Real* to = data<Real>(o, "o", C * n.m);
    const py::gil_scoped_release release;
    bptt::outputs(n, from, to, unit, threads);
  });
}

void direct(const py::tuple& net, int loss, const Array& a, const Optional& h, const Array& y, const Optional& weights,
            const Array& errors, const Array& g, int threads) {
  for_dtype(a, [&](auto real) {
    using Real = decltype(real);
    const auto n = network<Real>(net);
    const std::int64_t C = a.shape(0);
    const auto states = rows<const Real>(a, "a", n.n, C), pre = rows<const Real>(h, "h", n.n, C);
    const auto goals = targets(n, loss, y, weights, C);
    double* E = data<double>(errors, "errors", C);
    const auto out = rows<Real>(g, "g", n.n, C);
    const py::gil_scoped_release release;
    bptt::direct(n, static_cast<Loss>(loss), states, pre, goals, E, out, threads);
  });
}

std::int64_t backward(const py::tuple& net, int loss, const py::object& x, const py::array_t<std::int64_t>& counts,
                      const Array& a, const Optional& h, const Optional& y, const Optional& weights,
                      const Optional& d_outputs, const Optional& d_states, const Array& carry, const Optional& errors,
                      const py::tuple& sums, bool more, const Optional& d_x, const Optional& delta, int threads) {
  return for_dtype(a, [&](auto real) {
    using Real = decltype(real);
    const Given given(x);
    const auto n = network<Real>(net, &given);
    const auto s = segment(n, given, counts, a, h);
    const std::int64_t C = s.a.count - s.counts[0], nn = n.n;
    std::vector<Sums> parts;
    for (const py::handle part : sums) {
      const auto t = py::reinterpret_borrow<py::tuple>(part);
      parts.push_back({data<double>(t[0], "sums.W_R", nn * nn), data<double>(t[1], "sums.W_I", nn * n.p),
                       data<double>(t[2], "sums.W_O", nn * n.m), data<double>(t[3], "sums.b", nn),
                       data<double>(t[4], "sums.b_O", n.m)});
    }
    if (parts.empty() || parts.size() > 2) throw py::value_error("sums must be one or two");
    const Backward<Real> task{static_cast<Loss>(loss),
                              targets(n, loss, y, weights, C),
                              data<const Real>(d_outputs, "d_outputs", C * n.m),
                              data<const Real>(d_states, "d_states", C * nn),
                              rows<Real>(carry, "carry", n.n, carry.shape(0)),
                              data<double>(errors, "errors", C),
                              std::move(parts),
                              more,
                              data<Real>(d_x, "d_x", C * n.p),
                              rows<Real>(delta, "delta", n.n, C)};
    if (carry.shape(0) < counts.data()[1]) throw py::value_error("carry must hold a row for every column");
    const py::gil_scoped_release release;
    return bptt::backward(n, s, task, threads);
  });
}

}  // namespace

void bind_segment(py::module_& m) {
  using namespace py::literals;
  m.def("forward", &forward, "network"_a, "x"_a, "counts"_a, "a"_a, "h"_a, "threads"_a);
  m.def("outputs", &outputs, "network"_a, "r"_a, "o"_a, "unit"_a, "threads"_a);
  m.def("direct", &direct, "network"_a, "loss"_a, "a"_a, "h"_a, "y"_a, "weights"_a, "errors"_a, "g"_a, "threads"_a);
  m.def("best_parts", &bptt::best_parts, "n"_a, "size"_a);
  m.def("backward", &backward, "network"_a, "loss"_a, "x"_a, "counts"_a, "a"_a, "h"_a, "y"_a, "weights"_a,
        "d_outputs"_a, "d_states"_a, "carry"_a, "errors"_a, "sums"_a, "more"_a, "d_x"_a, "delta"_a, "threads"_a);
}

}  // namespace bptt::bindings
