#include "parallel.h"

#include <dlfcn.h>
#include <pthread.h>

#include <system_error>
#include <thread>
#include <vector>

namespace xmplug {
namespace {

struct Team {
  void (*work)(void*, int);
  void* context;
  std::atomic<int> next;

  static void join(void* team) {
    auto& [work, context, next] = *static_cast<Team*>(team);
    work(context, next++);
  }
};

// GNU's OpenMP, where PyTorch brings it: its threads are there already and keep the cores busy for a while after each
// of PyTorch's operations, in wait for the next, so that others would have to wait for a core. Null where there is
// none, and in a process forked from this one, whose threads it would believe to have.
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
std::atomic<Parallel> openmp{reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"))};
[[maybe_unused]] const int left_at_fork = pthread_atfork(nullptr, nullptr, [] { openmp = nullptr; });

void with_new_threads(int threads, Team& team) {
  std::vector<std::thread> others;
  others.reserve(static_cast<size_t>(threads));
  for (int other = 1; other < threads; ++other) {
    try {
      others.emplace_back(Team::join, &team);
    } catch (const std::system_error&) {
      break;  // no more threads to be had: those that run share the work
    }
  }
  Team::join(&team);
  for (auto& thread : others) thread.join();
}

}  // namespace

void with_workers(int threads, void (*work)(void* context, int worker), void* context) {
  if (threads <= 1) return work(context, 0);
  Team team{work, context, {0}};
  if (const Parallel parallel = openmp) {
    parallel(Team::join, &team, static_cast<unsigned>(threads), 0);
  } else {
    with_new_threads(threads, team);
  }
}

}  // namespace xmplug
