#include "kernel/team.hpp"

#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <limits>
#include <vector>

using namespace bptt;

TEST_CASE("parts cover the whole, in order, cut at the grain") {
  for (const std::int64_t count : {0, 1, 5, 16, 17, 100})
    for (const std::int64_t grain : {1, 4, 16})
      for (const int size : {1, 2, 3, 7}) {
        std::int64_t next = 0;
        for (int rank = 0; rank < size; ++rank) {
          const Range r = part(count, grain, rank, size);
          CHECK(r.begin == next);
          CHECK((r.begin % grain == 0 || r.begin == count));
          next = r.end;
        }
        CHECK(next == count);
      }
}

TEST_CASE("no thread passes a barrier before the last has come") {
  constexpr int threads = 3, rounds = 2000;
  std::atomic<int> arrived = 0;
  std::atomic<bool> early = false;
  Team::run(threads, [&](Team& team, int) {
    for (int round = 1; round <= rounds; ++round) {
      ++arrived;
      team.barrier();
      if (arrived < round * team.size()) early = true;
      team.barrier();
    }
  });
  CHECK(!early);
  CHECK(arrived % rounds == 0);
}

TEST_CASE("after calls that waited for their processors one thread does, for a while") {
  constexpr std::int64_t millisecond = 1'000'000;
  const auto sleeping = [](Team&, int) { usleep(2000); };  // asleep is off the processor, too
  Crowd::forget();
  CHECK(team_size(2, 1e9) == 2);
  CHECK(team_size(2, 1) == 1);
  if (std::thread::hardware_concurrency() < 2) return;
  Team::run(2, sleeping);
  CHECK(team_size(2, 1e9) == 2);
  for (int call = 0; call < 20; ++call) Team::run(2, sleeping);
  CHECK(team_size(2, 1e9) == 1);
  usleep(500'000);
  CHECK(team_size(2, 1e9) == 2);
  Crowd::forget();
  for (int second = 0; second < 10; ++second) {  // what is lost now and then is paid back
    Crowd::hear(2, Crowd::nanoseconds(CLOCK_MONOTONIC) - 20 * millisecond, 20 * millisecond);
    Crowd::hear(2, Crowd::nanoseconds(CLOCK_MONOTONIC) - 980 * millisecond, 0);
  }
  CHECK(team_size(2, 1e9) == 2);
}

TEST_CASE("a forked child works alone, and does not hang") {
  Team::run(2, [](Team&, int) {});
  const pid_t child = fork();
  if (child == 0) {
    int size = 0;
    Team::run(2, [&](Team& team, int) { size = team.size(); });
    _exit(size == 1 ? 0 : 1);
  }
  int status = -1;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
}

#if defined(__x86_64__)
TEST_CASE("denormals are flushed while the guard lives, and not after") {
  const volatile double least = std::numeric_limits<double>::denorm_min();
  CHECK(least + least > 0);
  {
    const FlushDenormals flush;
    CHECK(!(least + least > 0));
  }
  CHECK(least + least > 0);
}
#endif
