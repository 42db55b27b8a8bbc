#include "kernel/activation.hpp"

#include "arguments.hpp"

namespace bptt::bindings {

void activate(int activation, const py::array& h, const py::object& a, const py::object& d, const py::object& log_d) {
  for_dtype(h, [&](auto real) {
    using Real = decltype(real);
    const auto* from = data<const Real>(h, "h");
    Real *to = data<Real>(a, "a", h.size()), *slope = data<Real>(d, "d", h.size()),
         *log_slope = data<Real>(log_d, "log_d", h.size());
    const auto sigma = static_cast<Activation>(activation);
    const py::gil_scoped_release release;
    if (slope || log_slope) derivative(sigma, from, slope, log_slope, h.size());
    if (to) bptt::activate(sigma, from, to, h.size());
  });
}

void bind_activation(py::module_& m) {
  m.def("activate", &activate, py::arg("activation"), py::arg("h"), py::arg("a"), py::arg("d"), py::arg("log_d"));
}

}  // namespace bptt::bindings
