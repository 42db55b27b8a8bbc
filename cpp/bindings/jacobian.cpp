#include "kernel/jacobian.hpp"

#include "arguments.hpp"

namespace bptt::bindings {
namespace {

Run run(const py::array& W_R, const py::array& d, const py::object& v, std::int64_t q) {
  const std::int64_t n = W_R.shape(0), steps = d.shape(0);
  Run r{int(n), steps, data<const double>(W_R, "W_R", n * n), data<const double>(d, "d", steps * n), {}, q};
  if (py::isinstance<py::array_t<std::int32_t>>(v))
    r.v.tokens = data<const std::int32_t>(v, "v", steps);
  else
    r.v.x = data<const double>(v, "v", steps * q);
  return r;
}

bool jacobian_by_chain(const py::array& W_R, const py::array& d, const py::object& v, const py::array& P,
                       const py::object& J, bool more, std::int64_t single, int threads) {
  const std::int64_t n = W_R.shape(0);
  const std::int64_t q = J.is_none() ? 0 : py::reinterpret_borrow<py::array>(J).size() / (n * n);
  if (J.is_none() != v.is_none()) throw py::type_error("v and J go together");
  Run steps = run(W_R, d, v, q);
  steps.single = single;
  const auto product = rows<double>(P, "P", int(n), n);
  auto* result = data<double>(J, "J", n * n * q);
  const py::gil_scoped_release release;
  return bptt::jacobian_by_chain(steps, product, result, more, threads);
}

std::int64_t jacobian_by_recursion(const py::array& W_R, const py::array& d, const py::object& v, const py::array& J,
                                   int threads) {
  const std::int64_t n = W_R.shape(0), count = J.shape(0);
  const std::int64_t q = v.is_none() ? 0 : count / n;
  if (!v.is_none() && count != n * q) throw py::value_error("J must hold a row for every weight");
  const Run steps = run(W_R, d, v, q);
  const auto turned = rows<double>(J, "J", int(n), count);
  const py::gil_scoped_release release;
  return bptt::jacobian_by_recursion(steps, turned, threads);
}

}  // namespace

void bind_jacobian(py::module_& m) {
  using namespace py::literals;
  m.def("jacobian_by_chain", &jacobian_by_chain, "W_R"_a, "d"_a, "v"_a, "P"_a, "J"_a, "more"_a, "single"_a,
        "threads"_a);
  m.def("jacobian_by_recursion", &jacobian_by_recursion, "W_R"_a, "d"_a, "v"_a, "J"_a, "threads"_a);
}

}  // namespace bptt::bindings
