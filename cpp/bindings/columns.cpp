#include "kernel/columns.hpp"

#include "arguments.hpp"

namespace bptt::bindings {

double add_units(const py::array& values, std::int64_t unit, double total) {
  if (unit < 1) throw py::value_error("unit must be at least 1");
  return bptt::add_units(data<const double>(values, "values"), values.size(), unit, total);
}

std::int64_t find_outside(const py::array& indices, std::int64_t limit) {
  if (py::isinstance<py::array_t<std::int32_t>>(indices))
    return bptt::find_outside(data<const std::int32_t>(indices, "indices"), indices.size(), limit);
  return bptt::find_outside(data<const std::int64_t>(indices, "indices"), indices.size(), limit);
}

void bind_columns(py::module_& m) {
  m.def("add_units", &add_units, py::arg("values"), py::arg("unit"), py::arg("total"));
  m.def("find_outside", &find_outside, py::arg("indices"), py::arg("limit"));
}

}  // namespace bptt::bindings
