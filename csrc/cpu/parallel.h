#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace xmplug {

// How many threads are worth starting for `items` pieces of about `nanoseconds` each: one per millisecond of work, or
// another `share` of it.
inline int useful_threads(int64_t items, double nanoseconds, int threads, double share = 1e6) {
  const double shares = static_cast<double>(items) * nanoseconds / share;
  return std::max(
      1, static_cast<int>(std::min<double>({static_cast<double>(threads), shares, static_cast<double>(items)})));
}

// Calls body(worker, begin, end) over [0, items) in chunks of `chunk`, taken in turn by `threads` workers, of which the
// caller is worker 0. Which worker gets which chunk is chance: a body's result must depend on the chunk alone.
// Plain threads, not OpenMP: PyTorch brings its own OpenMP runtime, and two in one process fight for the cores.
template <class Body>
void parallel_for(int64_t items, int64_t chunk, int threads, const Body& body) {
  std::atomic<int64_t> next{0};
  const auto work = [&](int worker) {
    for (int64_t begin; (begin = next.fetch_add(chunk)) < items;) {
      body(worker, begin, std::min(items, begin + chunk));
    }
  };
  std::vector<std::thread> others;
  others.reserve(static_cast<size_t>(threads));
  for (int worker = 1; worker < threads; ++worker) {
    try {
      others.emplace_back(work, worker);
    } catch (const std::system_error&) {
      break;  // no more threads to be had: those that run share the work
    }
  }
  work(0);
  for (auto& thread : others) thread.join();
}

}  // namespace xmplug
