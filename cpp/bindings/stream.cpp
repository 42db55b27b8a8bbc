#include "kernel/stream.hpp"

#include "arguments.hpp"

namespace bptt::bindings {

std::int64_t read_stream(const py::array& buffer, std::int64_t repeats) {
  const auto* from = data<const double>(buffer, "buffer");
  if (buffer.nbytes() % row_bytes) throw py::value_error("buffer must hold a multiple of 64 bytes");
  const std::int64_t bytes = buffer.nbytes();
  const py::gil_scoped_release release;
  return bptt::read_stream(from, bytes, repeats);
}

void bind_stream(py::module_& m) { m.def("read_stream", &read_stream, py::arg("buffer"), py::arg("repeats")); }

}  // namespace bptt::bindings
