#include "kernel/columns.hpp"

#include "arguments.hpp"

namespace bptt::bindings {

double add_units(const py::array& values, std::int64_t unit, double total) {
  if (unit < 1) throw py::value_error("unit must be at least 1");
  return bptt::add_units(data<const double>(values, "values"), values.size(), unit, total);
}

bool scale(const py::array& values, double factor, const py::array& scaled) {
  const std::int64_t n = scaled.ndim() ? scaled.shape(scaled.ndim() - 1) : 0;
  const std::int64_t rows = n ? scaled.size() / n : 0;
  const std::int64_t width = rows ? values.size() / rows : 0;
  if (width < n) throw py::value_error("values must have as many rows as scaled, none of them shorter");
  return for_dtype(scaled, [&](auto real) {
    using To = decltype(real);
    To* const to = data<To>(scaled, "scaled");
    if (py::isinstance<py::array_t<double>>(values))
      return bptt::scale(data<const double>(values, "values"), rows, width, factor, to, n);
    return bptt::scale(data<const To>(values, "values"), rows, width, factor, to, n);
  });
}

std::int64_t find_outside(const py::array& indices, std::int64_t limit) {
  if (py::isinstance<py::array_t<std::int32_t>>(indices))
    return bptt::find_outside(data<const std::int32_t>(indices, "indices"), indices.size(), limit);
  return bptt::find_outside(data<const std::int64_t>(indices, "indices"), indices.size(), limit);
}

void bind_columns(py::module_& m) {
  m.def("add_units", &add_units, py::arg("values"), py::arg("unit"), py::arg("total"));
  m.def("scale", &scale, py::arg("values"), py::arg("factor"), py::arg("scaled"));
  m.def("find_outside", &find_outside, py::arg("indices"), py::arg("limit"));
}

}  // namespace bptt::bindings
