#include <pybind11/pybind11.h>

#include <Eigen/Core>
#include <string>

#include "kernel/simd.hpp"

namespace py = pybind11;

namespace bptt::bindings {
void bind_activation(py::module_& m);
void bind_chain(py::module_& m);
void bind_columns(py::module_& m);
void bind_jacobian(py::module_& m);
void bind_lyapunov(py::module_& m);
void bind_segment(py::module_& m);
void bind_stream(py::module_& m);
}  // namespace bptt::bindings

PYBIND11_MODULE(BPTT_MODULE, m) {
  bptt::bindings::bind_activation(m);
  bptt::bindings::bind_chain(m);
  bptt::bindings::bind_columns(m);
  bptt::bindings::bind_jacobian(m);
  bptt::bindings::bind_lyapunov(m);
  bptt::bindings::bind_segment(m);
  bptt::bindings::bind_stream(m);
  m.def("build_info", [] {
    return py::dict(py::arg("level") = BPTT_LEVEL, py::arg("compiler") = "g++ " __VERSION__,
                    py::arg("flags") = BPTT_FLAGS, py::arg("vector_bytes") = bptt::vector_bytes,
                    py::arg("eigen") = std::to_string(EIGEN_WORLD_VERSION) + "." + std::to_string(EIGEN_MAJOR_VERSION) +
                                       "." + std::to_string(EIGEN_MINOR_VERSION));
  });
}
