// What enters the kernel: a pointer, the number of rows, and the distance between them. Contiguous within a row.
#pragma once

#include <cstdint>
#include <new>
#include <utility>

#include "simd.hpp"

namespace bptt {

template <class T>
struct Rows {
  T* data = nullptr;  // null: absent
  std::int64_t count = 0;
  std::int64_t stride = 0;  // numbers from one row to the next

  T* operator[](std::int64_t i) const { return data + i * stride; }
  Rows from(std::int64_t i) const { return {data ? (*this)[i] : nullptr, count - i, stride}; }
  explicit operator bool() const { return data != nullptr; }
  operator Rows<const T>() const { return {data, count, stride}; }
};

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
