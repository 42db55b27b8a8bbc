#include "kernel/lyapunov.hpp"

#include "arguments.hpp"

namespace bptt::bindings {

void grow(const py::array& matrices, const py::object& log_d, const py::array& Q, const py::array& log_r, bool singular,
          int threads) {
  const bool one_each = matrices.ndim() == 3;
  const std::int64_t n = matrices.shape(matrices.ndim() - 1), k = Q.shape(0);
  if (!one_each && log_d.is_none()) throw py::type_error("one matrix for all steps comes with log_d");
  const std::int64_t steps = one_each ? matrices.shape(0) : py::reinterpret_borrow<py::array>(log_d).shape(0);
  const StepJacobians J{int(n),
                        steps,
                        data<const double>(matrices, "matrices", (one_each ? steps : 1) * n * n),
                        one_each,
                        data<const double>(log_d, "log_d", steps * n),
                        singular};
  const auto basis = rows<double>(Q, "Q", int(n), k);
  auto* logs = data<double>(log_r, "log_r", k);
  const py::gil_scoped_release release;
  bptt::grow(J, basis, logs, threads);
}

void bind_lyapunov(py::module_& m) {
  m.def("grow", &grow, py::arg("matrices"), py::arg("log_d"), py::arg("Q"), py::arg("log_r"), py::arg("singular"),
        py::arg("threads"));
}

}  // namespace bptt::bindings
