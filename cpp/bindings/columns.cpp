#include "kernel/columns.hpp"

#include <numeric>

#include "arguments.hpp"

namespace bptt::bindings {

double add_units(const py::array& values, std::int64_t unit, double total) {
  if (unit < 1) throw py::value_error("unit must be at least 1");
  return bptt::add_units(data<const double>(values, "values"), values.size(), unit, total);
}

bool scale(const py::sequence& values, double factor, const py::array& scaled, int threads) {
  if (values.size() < 1 || values.size() > 2) throw py::value_error("values must be one or two");
  const py::array first = values[0];
  const py::object second = values.size() == 2 ? py::object(values[1]) : py::none();
  const std::int64_t n = scaled.ndim() ? scaled.shape(scaled.ndim() - 1) : 0;
  const std::int64_t rows = scaled.ndim() == 2 ? scaled.shape(0) : 1;
  const std::int64_t width = rows ? first.size() / rows : 0;
  if (rows && width < n) throw py::value_error("values must have as many rows as scaled, none of them shorter");
  return for_dtype(scaled, [&](auto real) {
    using To = decltype(real);
    To* const to = data<To>(scaled, "scaled");
    const auto scale_as = [&](auto from) {
      using From = const decltype(from);
      From* const one = data<From>(first, "values", rows * width);
      From* const more = data<From>(second, "values", rows * width);
      const py::gil_scoped_release release;
      return bptt::scale(one, more, rows, width, factor, to, n, threads);
    };
    return py::isinstance<py::array_t<double>>(first) ? scale_as(double{}) : scale_as(To{});
  });
}

py::tuple arrange(const py::array& lengths) {
  using Integers = py::array_t<std::int64_t>;
  const std::int64_t B = lengths.size();
  Integers order(B), ascending(B), prefix(B + 1), finals(B);
  bptt::arrange(data<const std::int64_t>(lengths, "lengths"), B, order.mutable_data(), ascending.mutable_data(),
                prefix.mutable_data(), finals.mutable_data());
  return py::make_tuple(order, ascending, prefix, finals);
}

void count_present(const py::array& ascending, std::int64_t t0, const py::array& counts) {
  bptt::count_present(data<const std::int64_t>(ascending, "ascending"), ascending.size(), t0, counts.size(),
                      data<std::int64_t>(counts, "counts"));
}

void pick(const py::array& block, const py::array& order, const py::array& counts, const py::array& columns) {
  constexpr int contiguous = py::array::c_style;
  const std::int64_t L = counts.size() - 2, B = order.size();
  if (!(block.flags() & columns.flags() & contiguous) || block.ndim() < 2 || block.shape(0) != L || block.shape(1) != B)
    throw py::value_error("block must be contiguous, of shape (L, B, ...), and so must columns");
  const auto* const ranks = data<const std::int64_t>(order, "order");
  const auto* const present = data<const std::int64_t>(counts, "counts") + 1;
  const std::int64_t size = L && B ? block.nbytes() / (L * B) : 0,
                     total = std::accumulate(present, present + L, std::int64_t{0});
  if (columns.nbytes() != total * size ||
      !std::all_of(present, present + L, [&](std::int64_t count) { return 0 <= count && count <= B; }) ||
      !std::all_of(ranks, ranks + B, [&](std::int64_t b) { return 0 <= b && b < B; }))
    throw py::value_error("columns must have a row for every sequence that is there");
  bptt::pick(static_cast<const std::byte*>(block.data()), L, B, ranks, present, std::size_t(size),
             static_cast<std::byte*>(py::array(columns).mutable_data()));
}

std::int64_t find_outside(const py::array& indices, std::int64_t limit) {
  if (py::isinstance<py::array_t<std::int32_t>>(indices))
    return bptt::find_outside(data<const std::int32_t>(indices, "indices"), indices.size(), limit);
  return bptt::find_outside(data<const std::int64_t>(indices, "indices"), indices.size(), limit);
}

void bind_columns(py::module_& m) {
  m.def("add_units", &add_units, py::arg("values"), py::arg("unit"), py::arg("total"));
  m.def("scale", &scale, py::arg("values"), py::arg("factor"), py::arg("scaled"), py::arg("threads"));
  m.def("arrange", &arrange, py::arg("lengths"));
  m.def("count_present", &count_present, py::arg("ascending"), py::arg("t0"), py::arg("counts"));
  m.def("pick", &pick, py::arg("block"), py::arg("order"), py::arg("counts"), py::arg("columns"));
  m.def("find_outside", &find_outside, py::arg("indices"), py::arg("limit"));
}

}  // namespace bptt::bindings
