// From Python's arrays to the kernel's views. The facade hands over what the kernel wants; these guards only keep a
// mistake there from becoming a crash.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

#include "kernel/view.hpp"

namespace bptt::bindings {

namespace py = pybind11;

inline constexpr std::int64_t any_size = -1;

// The data of a contiguous array of T with `size` numbers; null for None.
template <class T>
T* data(py::handle object, const char* name, std::int64_t size = any_size) {
  if (object.is_none()) return nullptr;
  if (!py::isinstance<py::array_t<std::remove_const_t<T>, py::array::c_style>>(object))
    throw py::type_error(std::string(name) + ": a contiguous array of the network's dtype is wanted");
  const auto array = py::reinterpret_borrow<py::array>(object);
  if (size != any_size && array.size() != size)
    throw py::value_error(std::string(name) + " must hold " + std::to_string(size) + " numbers, but holds " +
                          std::to_string(array.size()));
  if constexpr (std::is_const_v<T>)
    return static_cast<T*>(array.data());
  else
    return static_cast<T*>(py::array(array).mutable_data());
}

// Rows of `width` numbers padded to a line; absent for None.
template <class T>
Rows<T> rows(py::handle object, const char* name, int width, std::int64_t count) {
  const std::int64_t length = row_length<std::remove_const_t<T>>(width);
  return {data<T>(object, name, count * length), count, length};
}

// Calls work(Real{}) for the precision that `array` has.
template <class Work>
auto for_dtype(py::handle array, Work&& work) {
  if (py::isinstance<py::array_t<float>>(array)) return work(float{});
  if (py::isinstance<py::array_t<double>>(array)) return work(double{});
  throw py::type_error("an array of float32 or float64 is wanted");
}

}  // namespace bptt::bindings
