#include "kernel/chain.hpp"

#include "arguments.hpp"

namespace bptt::bindings {
namespace {

using Array = py::array;
using Optional = py::object;  // an array or None

// The fields of _kernel.Factors.
Factors factors(const py::tuple& t) {
  const auto matrices = t[0].cast<Array>();
  const bool share_one = !t[1].is_none();
  const int n = int(matrices.shape(matrices.ndim() - 1));
  const std::int64_t count = (share_one ? t[1].cast<Array>() : matrices).shape(0);
  return {n,
          t[3].cast<std::int64_t>(),
          count,
          data<const double>(matrices, "matrices", (share_one ? 1 : count) * n * n),
          rows<const double>(t[1], "d", n, count),
          rows<const std::int64_t>(t[2], "e", n, count)};
}

// The fields of _kernel.Bundles.
Bundles bundles(const py::tuple& t, int n) {
  const auto stops = t[0].cast<Array>(), exponents = t[3].cast<Array>();
  const std::int64_t count = stops.shape(0), size = exponents.shape(0);
  if (!count || !size || size % count)
    throw py::value_error("bundles must all have the same number of rows, at least 1");
  return {count,
          size / count,
          data<const std::int64_t>(stops, "stops"),
          t[1].cast<std::int64_t>(),
          rows<double>(t[2], "rows", n, size),
          data<std::int64_t>(exponents, "exponents")};
}

void advance(const py::tuple& f, const py::tuple& b, const Optional& norms, const Optional& offsets,
             const Optional& leads, int threads) {
  const auto chain = factors(f);
  const auto moved = bundles(b, chain.n);
  const Norms record{data<double>(norms, "norms", moved.count * moved.lags),
                     data<const double>(offsets, "offsets", chain.count),
                     rows<double>(leads, "leads", chain.n, moved.count)};
  if (record.leads && moved.height > chain.n) throw py::value_error("spectral norms are of bundles of at most n rows");
  const py::gil_scoped_release release;
  bptt::advance(chain, moved, record, threads);
}

void accumulate(const py::tuple& f, const py::tuple& b, const Array& a, const Array& gradients, int threads) {
  const auto chain = factors(f);
  const auto moved = bundles(b, chain.n);
  const auto before = rows<const double>(a, "a", chain.n, chain.count);
  auto* sums = data<double>(gradients, "gradients", moved.count * chain.n * chain.n);
  if (moved.height != 1) throw py::value_error("gradients are of bundles of one row");
  const py::gil_scoped_release release;
  bptt::accumulate(chain, moved, before, sums, threads);
}

}  // namespace

void bind_chain(py::module_& m) {
  using namespace py::literals;
  m.def("advance", &advance, "factors"_a, "bundles"_a, "norms"_a, "offsets"_a, "leads"_a, "threads"_a);
  m.def("accumulate", &accumulate, "factors"_a, "bundles"_a, "a"_a, "gradients"_a, "threads"_a);
}

}  // namespace bptt::bindings
