#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace xmplug {

// How many threads are worth starting for `items` pieces of about `nanoseconds` each: one per millisecond of work, or
// another `share` of it.
inline int useful_threads(int64_t items, double nanoseconds, int threads, double share = 1e6) {
  const double shares = static_cast<double>(items) * nanoseconds / share;
  return std::max(
      1, static_cast<int>(std::min<double>({static_cast<double>(threads), shares, static_cast<double>(items)})));
}

// Calls work(context, worker) at the same time for `threads` workers, or fewer where no more threads are to be had, and
// waits for all. So `work` must be one that any of them can do alone.
void with_workers(int threads, void (*work)(void* context, int worker), void* context);

// Calls body(worker, begin, end) over [0, items) in chunks of `chunk`, taken in turn by `threads` workers. Which worker
// gets which chunk is chance: a body's result must depend on the chunk alone.
template <class Body>
void parallel_for(int64_t items, int64_t chunk, int threads, const Body& body) {
  struct Context {
    int64_t items, chunk;
    const Body& body;
    std::atomic<int64_t> next;
  } shared{items, chunk, body, {0}};
  const auto work = [](void* context, int worker) {
    auto& [items, chunk, body, next] = *static_cast<Context*>(context);
    for (int64_t begin; (begin = next.fetch_add(chunk)) < items;) {
      body(worker, begin, std::min(items, begin + chunk));
    }
  };
  with_workers(threads, work, &shared);
}

}  // namespace xmplug
