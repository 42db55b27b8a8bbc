// What enters the kernel: a pointer, the number of rows, and the distance between them. Contiguous within a row.
#pragma once

#include <cstdint>
#include <new>
#include <type_traits>
#include <utility>

#include "simd.hpp"

namespace bptt {

template <class T>
struct Rows {
  T* data = nullptr;  // null: absent
  std::int64_t count = 0;
  std::int64_t stride = 0;  // numbers from one row to the next

  T* operator[](std::int64_t i) const { return data + i * stride; }
  Rows part(std::int64_t i, std::int64_t rows) const { return {data ? (*this)[i] : nullptr, rows, stride}; }
  Rows from(std::int64_t i) const { return part(i, count - i); }
  explicit operator bool() const { return data != nullptr; }
  operator Rows<const T>() const { return {data, count, stride}; }
};

// Asks for the first `length` numbers of rows that are needed soon, if there are any: where they lie in pieces of a few
// KB, the machine does not foresee them by itself.
template <class T>
void prefetch(Rows<T> rows, std::int64_t length) {
  if (!rows) return;
  for (std::int64_t i = 0; i < rows.count; ++i)
    for (std::int64_t at = 0; at < length; at += row_bytes / std::int64_t(sizeof(T)))
      __builtin_prefetch(rows[i] + at, 0, 2);
  asm volatile("");  // or GCC takes this for a function without effect
}

// Memory of one call, aligned to a line of 64 bytes. Allocated outside parallel regions: nothing may throw inside.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::int64_t size)
      : data_(size ? static_cast<T*>(::operator new(std::size_t(size) * sizeof(T), alignment)) : nullptr) {}
  Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }
  ~Buffer() { ::operator delete(data_, alignment); }

  T* data() const { return data_; }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  static constexpr std::align_val_t alignment{row_bytes};
  T* data_ = nullptr;
};

}  // namespace bptt
