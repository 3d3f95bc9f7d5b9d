// CUDA on the host: what the kernels in csrc/cuda use of CUDA, so that a C++ compiler makes programs of them that run
// without a GPU. For tests of the kernels' logic; nothing of it is in a package.
//
// Blocks run one after the other. The threads of a block are fibers: one runs until it waits for others, at a barrier
// or a collective of its warp, then the next. The order changes from block to block, shared memory begins with
// rubbish, and what hangs or breaks a rule on a GPU throws: a barrier that only some threads reach, a collective that
// not all lanes of a warp take part in, a launch beyond the limits of a device; and of wgmma, what its manual leaves
// undefined: see multiply_tiles.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __constant__ static
#define __restrict__
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

using cudaStream_t = void*;

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace cuda_on_host {

constexpr unsigned kWarp = 32, kWarpgroup = 128;
constexpr uint32_t kWindow = 5 * 1024;  // the address of dynamic shared memory, among those that descriptors have
constexpr size_t kStack = 256 * 1024;

// The threads of one block.
class Block {
 public:
  Block(dim3 threads, size_t shared_bytes)
      : threads_(threads), shared_bytes_(shared_bytes), shared_(shared_bytes + kBorder) {
    const size_t count = size_t{threads.x} * threads.y * threads.z;
    fibers_.resize(count);
    static std::vector<std::unique_ptr<char[]>> stacks;  // for all blocks: to map them again and again takes long
    while (stacks.size() < count) stacks.emplace_back(new char[kStack]);
    for (size_t i = 0; i < count; ++i) fibers_[i].stack = stacks[i].get();
    warps_.resize((count + kWarp - 1) / kWarp);
    warpgroups_.resize((count + kWarpgroup - 1) / kWarpgroup);
  }

  // Runs `body` as each thread of block `index`.
  template <class Body>
  void run(uint3 index, const Body& body, std::minstd_rand& random) {
    current_block = this;
    blockIdx = index;
    for (char& byte : shared_) byte = static_cast<char>(random() | 0x81);
    shown_.assign(shared(), shared() + shared_bytes_);
    all_show_ = true;
    body_ = [](const void* context) { (*static_cast<const Body*>(context))(); };
    context_ = &body;
    std::vector<unsigned> order(fibers_.size());
    std::iota(order.begin(), order.end(), 0U);
    std::shuffle(order.begin(), order.end(), random);
    for (Fiber& fiber : fibers_) {
      fiber.state = State::kNew;
      fiber.copies.clear();
      fiber.sums.clear();
      fiber.may_multiply = fiber.shows = false;
    }
    for (Warp& warp : warps_) warp = Warp{};
    for (Warpgroup& warpgroup : warpgroups_) warpgroup = Warpgroup{};
    error_ = nullptr;
    barrier_count_ = 0;
    votes_[barriers_ % 2] = 0;
    size_t done = 0;
    while (done < fibers_.size()) {
      bool moved = false;
      for (const unsigned i : order) {
        Fiber& fiber = fibers_[i];
        if (fiber.state == State::kDone || (fiber.state == State::kBarrier && fiber.ticket == barriers_) ||
            (fiber.state == State::kWarp && fiber.ticket == warps_[i / kWarp].rounds) ||
            (fiber.state == State::kWarpgroup && fiber.ticket == warpgroups_[i / kWarpgroup].rounds)) {
          continue;
        }
        moved = true;
        resume(i);
        if (error_) std::rethrow_exception(error_);
        done += fiber.state == State::kDone;
      }
      if (!moved) throw std::logic_error("CUDA on the host: a barrier or collective that not all threads reach");
    }
  }

  // Returns how many threads came with `vote`.
  int barrier(bool vote = false) {
    Fiber& self = fibers_[current_];
    const uint64_t now = self.ticket = barriers_;
    votes_[now % 2] += vote;
    all_show_ &= self.shows;
    self.shows = false;
    if (++barrier_count_ == fibers_.size()) {
      if (all_show_) shown_.assign(shared(), shared() + shared_bytes_);
      all_show_ = true;
      barrier_count_ = 0;
      ++barriers_;
      votes_[barriers_ % 2] = 0;  // all have read those of the barrier before
    } else {
      wait(State::kBarrier);
    }
    return votes_[now % 2];
  }

  // All lanes of a warp leave `bytes` bytes and meet; then each reads what it wants of the others', and they meet
  // again.
  template <class Read>
  void collective(const void* mine, size_t bytes, const Read& read) {
    Warp& warp = warps_[current_ / kWarp];
    const unsigned lane = current_ % kWarp;
    if (bytes > sizeof(warp.values[0])) throw std::logic_error("CUDA on the host: a collective's value is too large");
    std::memcpy(warp.values[lane], mine, bytes);
    meet();
    read(warp.values, lane);
    meet();
  }

  void meet() {
    Warp& warp = warps_[current_ / kWarp];
    const size_t lanes = std::min<size_t>(kWarp, fibers_.size() - current_ / kWarp * kWarp);
    fibers_[current_].ticket = warp.rounds;
    if (++warp.arrived == lanes) {
      warp.arrived = 0;
      ++warp.rounds;
    } else {
      wait(State::kWarp);
    }
  }

  // Copies to shared memory, of the first `there` bytes and zeros after them, are made no sooner than their thread
  // waits; until then, there are NaN.
  void copy_later(void* to, const void* from, size_t there, size_t bytes) {
    if (reinterpret_cast<uintptr_t>(to) % bytes != 0 || (there > 0 && reinterpret_cast<uintptr_t>(from) % bytes != 0)) {
      throw std::logic_error("CUDA on the host: a copy that is not on its border");
    }
    std::memset(to, 0xff, bytes);
    fibers_[current_].copies.push_back({to, from, there, bytes, fibers_[current_].groups});
  }
  void end_group() { ++fibers_[current_].groups; }
  void wait_for_groups(uint64_t left) {
    Fiber& self = fibers_[current_];
    size_t done = 0;
    while (done < self.copies.size() && self.copies[done].group + left < self.groups) {
      self.shows = false;
      const Copy& copy = self.copies[done++];
      std::memcpy(copy.to, copy.from, copy.there);
      std::memset(static_cast<char*>(copy.to) + copy.there, 0, copy.bytes - copy.there);
    }
    self.copies.erase(self.copies.begin(), self.copies.begin() + static_cast<std::ptrdiff_t>(done));
  }

  char* shared() {
    const auto address = reinterpret_cast<uintptr_t>(shared_.data());
    return shared_.data() + (kBorder - address % kBorder) % kBorder;
  }
  uint32_t shared_address(const void* pointer) {
    const auto offset = static_cast<const char*>(pointer) - shared();
    if (offset < 0 || static_cast<size_t>(offset) >= shared_bytes_) {
      throw std::logic_error("CUDA on the host: an address that is not in dynamic shared memory");
    }
    return kWindow + static_cast<uint32_t>(offset);
  }

  // wgmma.fence: from here on, the thread's sums are those of wgmma.
  void begin_products() { fibers_[current_].may_multiply = true; }

  // wgmma.mma_async.m64nNk16 with float32 sums (N / 2 of each thread), both operands in shared memory: N = `columns`,
  // their descriptors, whether each is transposed, and `number` that makes a float of 16 bits.
  //
  // Reads take place some time between the instruction and the end of the wait for it: what is in shared memory must be
  // the same all the time, and must have been there, and shown to the other proxy, when the instruction was given. The
  // sums are NaN until they have been waited for, and must be left alone.
  void multiply_tiles(float* sums, int columns, uint64_t a, uint64_t b, bool transposed_a, bool transposed_b,
                      float (*number)(uint16_t)) {
    Fiber& self = fibers_[current_];
    Warpgroup& warpgroup = warpgroups_[current_ / kWarpgroup];
    if (fibers_.size() % kWarpgroup != 0) throw std::logic_error("CUDA on the host: wgmma without a whole warpgroup");
    if (columns % 8 != 0 || columns < 8 || columns > 256) throw std::logic_error("CUDA on the host: wgmma's columns");
    const Request mine{columns, a, b, transposed_a, transposed_b};
    if (warpgroup.arrived == 0) warpgroup.request = mine;
    if (!(warpgroup.request == mine)) {
      throw std::logic_error("CUDA on the host: wgmma is not the same in all threads of a warpgroup");
    }
    self.ticket = warpgroup.rounds;
    if (++warpgroup.arrived == kWarpgroup) {
      warpgroup.arrived = 0;
      ++warpgroup.rounds;
      warpgroup.product = std::make_shared<Product>();
      warpgroup.product->a = read_operand(a, transposed_a, 64, number, warpgroup.product->read);
      warpgroup.product->b = read_operand(b, transposed_b, columns, number, warpgroup.product->read);
    } else {
      wait(State::kWarpgroup);
    }
    auto found =
        std::find_if(self.sums.begin(), self.sums.end(), [&](const PendingSums& each) { return each.at == sums; });
    if (found == self.sums.end()) {
      if (!self.may_multiply) throw std::logic_error("CUDA on the host: wgmma without wgmma.fence after the last wait");
      self.sums.push_back({sums, std::vector<float>(sums, sums + columns / 2), {}});
      found = self.sums.end() - 1;
      std::fill(sums, sums + columns / 2, std::numeric_limits<float>::quiet_NaN());
    }
    found->untouched();
    found->products.emplace_back(warpgroup.product, self.product_groups);
  }
  void end_products() { ++fibers_[current_].product_groups; }  // wgmma.commit_group
  void wait_for_products(uint64_t left) {                      // wgmma.wait_group
    Fiber& self = fibers_[current_];
    for (PendingSums& sums : self.sums) {
      sums.untouched();
      size_t done = 0;
      while (done < sums.products.size() && sums.products[done].second + left < self.product_groups) {
        sums.products[done++].first->add(sums.values, current_ % kWarpgroup);
      }
      sums.products.erase(sums.products.begin(), sums.products.begin() + static_cast<std::ptrdiff_t>(done));
      if (sums.products.empty()) {
        std::copy(sums.values.begin(), sums.values.end(), sums.at);
        self.may_multiply = false;
      }
    }
    self.sums.erase(std::remove_if(self.sums.begin(), self.sums.end(),
                                   [](const PendingSums& sums) { return sums.products.empty(); }),
                    self.sums.end());
  }

  // fence.proxy.async: after the next barrier, wgmma sees what this thread has written by now.
  void show_to_wgmma() { fibers_[current_].shows = true; }

  static inline Block* current_block = nullptr;

 private:
  enum class State { kNew, kReady, kBarrier, kWarp, kWarpgroup, kDone };
  static constexpr size_t kBorder = 1024;

  // What a wgmma has read of shared memory, and its operands: a (64 x 16) and b (columns x 16).
  struct Product {
    struct Piece {
      const char* at;
      char bytes[16];
    };
    std::vector<Piece> read;
    std::vector<float> a, b;

    // Adds a thread's part of it.
    void add(std::vector<float>& sums, unsigned thread) const {
      for (const Piece& piece : read) {
        if (std::memcmp(piece.at, piece.bytes, sizeof(piece.bytes)) != 0) {
          throw std::logic_error("CUDA on the host: shared memory changed before wgmma was waited for");
        }
      }
      for (size_t i = 0; i < sums.size(); ++i) {
        const size_t row = thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8,
                     column = i / 4 * 8 + thread % 4 * 2 + i % 2;
        for (size_t k = 0; k < 16; ++k) sums[i] += a[16 * row + k] * b[16 * column + k];
      }
    }
  };
  struct PendingSums {
    float* at;
    std::vector<float> values;
    std::vector<std::pair<std::shared_ptr<const Product>, uint64_t>> products;  // and their groups

    void untouched() const {
      for (size_t i = 0; i < values.size(); ++i) {
        if (at[i] == at[i]) throw std::logic_error("CUDA on the host: sums that wgmma works on were written to");
      }
    }
  };
  struct Request {
    int columns;
    uint64_t a, b;
    bool transposed_a, transposed_b;
    bool operator==(const Request& other) const {
      return columns == other.columns && a == other.a && b == other.b && transposed_a == other.transposed_a &&
             transposed_b == other.transposed_b;
    }
  };
  struct Warpgroup {
    size_t arrived = 0;
    uint64_t rounds = 0;
    Request request{};
    std::shared_ptr<Product> product;
  };
  struct Copy {
    void* to;
    const void* from;
    size_t there, bytes;
    uint64_t group;
  };
  struct Fiber {
    char* stack = nullptr;
    State state = State::kNew;
    uint64_t ticket = 0, groups = 0, product_groups = 0;
    std::vector<Copy> copies;
    std::vector<PendingSums> sums;
    bool may_multiply = false, shows = false;
    jmp_buf at;
  };
  struct Warp {
    alignas(16) char values[kWarp][64];
    size_t arrived = 0;
    uint64_t rounds = 0;
  };

  // The matrix in shared memory that a descriptor of wgmma describes, `count` rows (of a; of b, columns) by a depth of
  // 16, as the PTX ISA has it: "Matrix Descriptor Format", and "Canonical Layouts", whose rows are written down here as
  // they stand there, in elements, T of which are 16 bytes; then the swizzling, of addresses.
  std::vector<float> read_operand(uint64_t descriptor, bool transposed, int count, float (*number)(uint16_t),
                                  std::vector<Product::Piece>& read) {
    const auto field = [&](int first, int bits) {
      return static_cast<int64_t>(descriptor >> first & ((uint64_t{1} << bits) - 1));
    };
    constexpr int64_t T = 8;
    const int64_t start = field(0, 14) << 4, LBO = (field(16, 14) << 4) / 2, SBO = (field(32, 14) << 4) / 2;
    const int64_t mode = field(62, 2), swizzle_bits = mode == 0 ? 0 : 4 - mode;
    const int64_t W = int64_t{1} << swizzle_bits;  // pieces of 16 bytes that change places
    if (field(49, 3) != 0) throw std::logic_error("CUDA on the host: a base offset, which is not emulated");
    if (descriptor & ~(uint64_t{0x3fff} | uint64_t{0x3fff} << 16 | uint64_t{0x3fff} << 32 | uint64_t{3} << 62)) {
      throw std::logic_error("CUDA on the host: bits of a descriptor that mean nothing");
    }
    std::vector<float> matrix(static_cast<size_t>(count) * 16);
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t k = 0; k < 16; ++k) {
        int64_t at;
        if (!transposed) {
          // ((8,m),(T,2k)) : ((W T, SBO), (1, T)), or LBO for the last without swizzling.
          at = i % 8 * W * T + i / 8 * SBO + k % T + k / T * (mode == 0 ? LBO : T);
        } else if (mode == 0) {
          // ((T,1,m),(8,k)) : ((1, T, SBO), (1T, LBO))
          at = i % T + i / T * SBO + k % 8 * T + k / 8 * LBO;
        } else {
          // ((T,W,m),(8,k)) : ((1, T, LBO), (W T, SBO))
          at = i % T + i / T % W * T + i / (T * W) * LBO + k % 8 * W * T + k / 8 * SBO;
        }
        int64_t address = start + 2 * at;
        address ^= (address >> 7 & (W - 1)) << 4;  // Swizzle<bits, 4, 3>
        const int64_t offset = address - kWindow;
        if (offset < 0 || offset >= static_cast<int64_t>(shared_bytes_)) {
          throw std::logic_error("CUDA on the host: wgmma reads outside of dynamic shared memory");
        }
        uint16_t bits;
        std::memcpy(&bits, shared() + offset, 2);
        matrix[static_cast<size_t>(16 * i + k)] = number(bits);
        const char* piece = shared() + offset / 16 * 16;
        if (!read.empty() && read.back().at == piece) continue;
        if (std::memcmp(piece, shown_.data() + offset / 16 * 16, 16) != 0) {
          throw std::logic_error("CUDA on the host: wgmma reads what no fence.proxy.async and barrier have shown it");
        }
        read.push_back({piece, {}});
        std::memcpy(read.back().bytes, piece, 16);
      }
    }
    return matrix;
  }

  void resume(unsigned i) {
    current_ = i;
    threadIdx = {i % threads_.x, i / threads_.x % threads_.y, i / (threads_.x * threads_.y)};
    Fiber& fiber = fibers_[i];
    if (_setjmp(scheduler_) == 0) {
      if (fiber.state != State::kNew) {
        fiber.state = State::kReady;
        _longjmp(fiber.at, 1);
      }
      fiber.state = State::kReady;
      ucontext_t start;
      getcontext(&start);
      start.uc_stack.ss_sp = fiber.stack;
      start.uc_stack.ss_size = kStack;
      start.uc_link = nullptr;
      makecontext(&start, &Block::enter, 0);
      setcontext(&start);
    }
  }

  static void enter() {
    Block& block = *current_block;
    try {
      block.body_(block.context_);
      if (!block.fibers_[block.current_].sums.empty()) {
        throw std::logic_error("CUDA on the host: a thread ends with wgmma that it has not waited for");
      }
    } catch (...) {
      block.error_ = std::current_exception();
    }
    block.fibers_[block.current_].state = State::kDone;
    _longjmp(block.scheduler_, 1);
  }

  void wait(State state) {
    Fiber& self = fibers_[current_];
    self.state = state;
    if (_setjmp(self.at) == 0) _longjmp(scheduler_, 1);
  }

  dim3 threads_;
  size_t shared_bytes_;
  std::vector<char> shared_, shown_;  // shown_: of it, what wgmma sees
  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  std::vector<Warpgroup> warpgroups_;
  jmp_buf scheduler_;
  void (*body_)(const void*) = nullptr;
  const void* context_ = nullptr;
  std::exception_ptr error_;
  unsigned current_ = 0;
  size_t barrier_count_ = 0;
  uint64_t barriers_ = 0;
  bool all_show_ = true;  // whether all threads that are at the barrier have shown what they wrote
  int votes_[2] = {};
};

constexpr size_t kSharedBytes = 227 * 1024;  // the most that a block of a Hopper GPU can have

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, const Arguments&... arguments) {
  const size_t threads = size_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > 1024 || block.z > 64 || grid.y > 65535 || grid.z > 65535 || grid.x > 2147483647U ||
      grid.x == 0 || grid.y == 0 || grid.z == 0 || shared > kSharedBytes) {
    throw std::logic_error("CUDA on the host: a launch that no device takes");
  }
  blockDim = block;
  gridDim = grid;
  static std::minstd_rand random;
  Block threads_of_block(block, shared);
  const auto body = [&] { kernel(static_cast<Parameters>(arguments)...); };
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) threads_of_block.run({x, y, z}, body, random);
    }
  }
}

inline void whole_warp(unsigned mask) {
  if (mask != 0xffffffffU) throw std::logic_error("CUDA on the host: collectives are for whole warps");
}

template <class T, class From>
T exchange(T value, const From& from) {
  static_assert(std::is_trivially_copyable_v<T>);
  T result;
  Block::current_block->collective(&value, sizeof(T), [&](const char (*values)[64], unsigned lane) {
    std::memcpy(&result, values[from(lane)], sizeof(T));
  });
  return result;
}

// The instruction ldmatrix.m8n8.x4 of 16-bit numbers, as PTX defines it.
template <bool kTransposed>
void load_matrices(uint32_t (&registers)[4], const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) throw std::logic_error("CUDA on the host: ldmatrix off its border");
  Block::current_block->collective(&row, sizeof(row), [&](const char (*values)[64], unsigned lane) {
    for (unsigned matrix = 0; matrix < 4; ++matrix) {
      const auto number = [&](unsigned r, unsigned c) {
        const char* from;
        std::memcpy(&from, values[8 * matrix + r], sizeof(from));
        uint16_t bits;
        std::memcpy(&bits, from + 2 * c, 2);
        return uint32_t{bits};
      };
      const unsigned r = lane / 4, c = lane % 4 * 2;
      registers[matrix] = kTransposed ? number(c, r) | number(c + 1, r) << 16 : number(r, c) | number(r, c + 1) << 16;
    }
  });
}

// The instruction mma.m16n8k16.row.col with float32 sums; `number` makes a float of 16 bits.
template <class Number>
void multiply_fragments(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const Number& number) {
  const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
  Block::current_block->collective(mine, sizeof(mine), [&](const char (*values)[64], unsigned lane) {
    const auto operand = [&](unsigned from, unsigned word, unsigned half) {
      uint32_t bits;
      std::memcpy(&bits, values[from] + 4 * word, 4);
      return number(static_cast<uint16_t>(bits >> (16 * half)));
    };
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      for (unsigned k = 0; k < 16; ++k) {
        const unsigned pair = k % 8 / 2;
        sum[i] +=
            operand(row % 8 * 4 + pair, row / 8 + k / 8 * 2, k % 2) * operand(column * 4 + pair, 4 + k / 8, k % 2);
      }
    }
  });
}

}  // namespace cuda_on_host

inline void __syncthreads() { cuda_on_host::Block::current_block->barrier(); }
inline int __syncthreads_or(int predicate) { return cuda_on_host::Block::current_block->barrier(predicate != 0) != 0; }
inline void __syncwarp(unsigned mask = 0xffffffffU) {
  cuda_on_host::whole_warp(mask);
  cuda_on_host::Block::current_block->meet();
}
inline void __threadfence() {}
[[noreturn]] inline void __trap() { throw std::runtime_error("CUDA on the host: a trap"); }

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int = 32) {
  cuda_on_host::whole_warp(mask);
  return cuda_on_host::exchange(value, [&](unsigned) { return static_cast<unsigned>(lane) % 32U; });
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int other, int = 32) {
  cuda_on_host::whole_warp(mask);
  return cuda_on_host::exchange(value, [&](unsigned lane) { return lane ^ static_cast<unsigned>(other); });
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int = 32) {
  cuda_on_host::whole_warp(mask);
  return cuda_on_host::exchange(value, [&](unsigned lane) { return lane + delta < 32U ? lane + delta : lane; });
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int = 32) {
  cuda_on_host::whole_warp(mask);
  return cuda_on_host::exchange(value, [&](unsigned lane) { return lane >= delta ? lane - delta : lane; });
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  cuda_on_host::whole_warp(mask);
  unsigned result = 0;
  const char mine = predicate != 0;
  cuda_on_host::Block::current_block->collective(&mine, 1, [&](const char (*values)[64], unsigned) {
    for (unsigned lane = 0; lane < 32; ++lane) result |= static_cast<unsigned>(values[lane][0]) << lane;
  });
  return result;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == 0xffffffffU; }

template <class T>
T atomicAdd(T* address, T value) {
  const T before = *address;
  *address += value;
  return before;
}
template <class T>
T atomicMax(T* address, T value) {
  const T before = *address;
  *address = std::max(before, value);
  return before;
}
template <class T>
T atomicExch(T* address, T value) {
  const T before = *address;
  *address = value;
  return before;
}
template <class T>
T atomicCAS(T* address, T compare, T value) {
  const T before = *address;
  if (before == compare) *address = value;
  return before;
}

template <class T>
T __ldg(const T* address) {
  return *address;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned>(bits)); }
inline int __clzll(long long bits) { return bits == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(bits)); }
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline long long __double_as_longlong(double value) {
  long long bits;
  std::memcpy(&bits, &value, 8);
  return bits;
}
inline double __longlong_as_double(long long bits) {
  double value;
  std::memcpy(&value, &bits, 8);
  return value;
}
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1.0F / std::sqrt(x); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
using std::max;
using std::min;
