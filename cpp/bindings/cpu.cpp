// What this processor and this process allow. Compiled for the oldest processor: it runs before a level is chosen.
#include <pybind11/pybind11.h>

#include <cstdlib>
#include <thread>
#if defined(__linux__)
#include <sched.h>
#endif

namespace {

const char* best_level() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("x86-64-v4")) return "v4";
  if (__builtin_cpu_supports("x86-64-v3")) return "v3";
  if (__builtin_cpu_supports("x86-64-v2")) return "v2";
  return "v1";
#else
  return "base";
#endif
}

int processors() {
#if defined(__linux__)
  cpu_set_t mask;
  if (sched_getaffinity(0, sizeof mask, &mask) == 0) return CPU_COUNT(&mask);  // fails beyond 1024 processors
#endif
  return std::max(1, int(std::thread::hardware_concurrency()));
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.def("best_level", &best_level);
  m.def("processors", &processors);
  m.def("environment", [](const char* name) { return static_cast<const char*>(std::getenv(name)); });
}
