// The threads of one call. They split outputs, never sums, so that their number changes no bit of any result.
#pragma once

#include <omp.h>
#include <pthread.h>
#include <sched.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace bptt {

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// Half-open range of whole numbers.
struct Range {
  std::int64_t begin, end;
};

// The rank-th of `size` nearly equal parts of 0..count, cut at multiples of `grain`.
inline Range part(std::int64_t count, std::int64_t grain, int rank, int size) {
  const std::int64_t grains = (count + grain - 1) / grain;
  return {std::min(count, grains * rank / size * grain), std::min(count, grains * (rank + 1) / size * grain)};
}

// Whether the processors have other work too. A team whose members wait for their turns is many times slower than one
// thread: each barrier then takes a time slice. So when calls have been off their processors for too long, one thread
// does for a while, before the next team tries again. No result depends on it.
class Crowd {
 public:
  static bool here() {
    const std::int64_t end = until();
    return end && nanoseconds(CLOCK_MONOTONIC) < end;
  }
  static void forget() { until() = owed() = 0; }

  // How long this thread has been off its processor, from some beginning.
  static std::int64_t off() { return nanoseconds(CLOCK_MONOTONIC) - nanoseconds(CLOCK_THREAD_CPUTIME_ID); }

  // Hears of a call of `size` threads that began then, and how long they were off in all. Every machine takes a thread
  // off its processor now and then, for a millisecond or ten: what calls lose beyond their share, later ones pay back.
  static void hear(int size, std::int64_t begun, std::int64_t off) {
    static const int processors = int(std::thread::hardware_concurrency());
    if (size > processors) return;
    const std::int64_t now = nanoseconds(CLOCK_MONOTONIC);
    const std::int64_t debt =
        std::max<std::int64_t>(0, owed() + off - std::int64_t(share * double(now - begun) * size));
    owed() = debt > patience ? 0 : debt;
    if (debt > patience) until() = now + rest;
  }

  static std::int64_t nanoseconds(clockid_t clock) {
    timespec t;
    clock_gettime(clock, &t);
    return std::int64_t(t.tv_sec) * 1'000'000'000 + t.tv_nsec;
  }

 private:
  // Of the threads' time: two of them with one processor shared half and half are off for a quarter.
  static constexpr double share = 0.15;
  static constexpr std::int64_t patience = 25'000'000, rest = 400'000'000;  // nanoseconds

  static std::atomic<std::int64_t>& until() {
    static std::atomic<std::int64_t> end = 0;
    return end;
  }
  static std::atomic<std::int64_t>& owed() {
    static std::atomic<std::int64_t> time = 0;
    return time;
  }
};

// Below this many multiply-adds a call is over before a second thread has woken up.
inline constexpr double worth_a_team = 4e5;
// Threads that have fewer than this between them from one meeting to the next wait more than they work.
inline constexpr double worth_a_meeting = 1e5;

inline int team_size(int threads, double multiply_adds) {
  return multiply_adds < worth_a_team || Crowd::here() ? 1 : threads;
}

class Team {
 public:
  explicit Team(int size) : size_(size) {}

  int size() const { return size_; }

  // All wait for the last. Spins first, since steps last microseconds; yields when the machine has other work.
  void barrier() {
    if (size_ == 1) return;
    const unsigned turn = turn_.load(std::memory_order_relaxed);
    if (waiting_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
      waiting_.store(0, std::memory_order_relaxed);
      turn_.store(turn + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; turn_.load(std::memory_order_acquire) == turn;)
      if (++spins < 2000)
        pause();
      else
        sched_yield();
  }

  // Calls work(team, rank) on each of `threads` threads; in a forked child on one, since the pool of the parent's
  // OpenMP runtime did not come along and waiting for it would never end.
  template <class Work>
  static void run(int threads, Work&& work) {
    if (threads == 1 || in_child()) {
      Team alone(1);
      work(alone, 0);
      return;
    }
    Team team(threads);
    const std::int64_t begun = Crowd::nanoseconds(CLOCK_MONOTONIC);
    std::atomic<std::int64_t> off = 0;
#pragma omp parallel num_threads(threads)
    {
#pragma omp single
      team.size_ = omp_get_num_threads();  // the runtime may grant fewer
      const std::int64_t off_before = Crowd::off();
      work(team, omp_get_thread_num());
      off += Crowd::off() - off_before;
    }
    Crowd::hear(team.size_, begun, off);
  }

 private:
  friend class Crew;

  static std::atomic<bool>& in_child() {
    static std::atomic<bool> child = false;
    static const int registered = pthread_atfork(nullptr, nullptr, [] { in_child() = true; });
    (void)registered;
    return child;
  }

  int size_;
  alignas(64) std::atomic<int> waiting_ = 0;
  alignas(64) std::atomic<unsigned> turn_ = 0;
};

// One of `size` threads that share a piece of work.
struct Member {
  int rank, size;
  int thread;  // its rank among all threads of the call

  Range part(std::int64_t count, std::int64_t grain = 1) const { return bptt::part(count, grain, rank, size); }
};

// A team cut into one for each part of its work, at most two; a thread that is alone does part after part.
class Crew {
 public:
  explicit Crew(int parts) : parts_(parts) {}

  // By one thread, before the others begin.
  void split(const Team& all) {
    for (int i = 0; i < parts_; ++i) teams_[i].size_ = std::max(1, end(all, i) - begin(all, i));
  }

  // work(part, its team, member) on this thread.
  template <class Work>
  void run(Team& all, int rank, Work&& work) {
    for (int i = 0; i < parts_; ++i)
      if (all.size() < parts_ || parts_ == 1)
        work(i, all, Member{rank, all.size(), rank});
      else if (begin(all, i) <= rank && rank < end(all, i))
        work(i, teams_[i], Member{rank - begin(all, i), teams_[i].size_, rank});
  }

 private:
  int begin(const Team& all, int i) const { return all.size() * i / parts_; }
  int end(const Team& all, int i) const { return begin(all, i + 1); }

  int parts_;
  Team teams_[2] = {Team(1), Team(1)};
};

// Flushes denormal numbers to zero on this thread while it lives. A gradient that has decayed below the normal range
// is zero for every purpose, and arithmetic on it would be many times slower.
class FlushDenormals {
#if defined(__x86_64__)
 public:
  FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }  // flush to zero, denormals are zero
  ~FlushDenormals() { _mm_setcsr(saved_); }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  unsigned saved_;
#endif
};

}  // namespace bptt
