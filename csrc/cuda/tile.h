// Products of matrix tiles by a block of threads: operands through shared memory, sums in registers.
//
// A block is 8 warps. Each holds its part of the tile as fragments of 16 x 8 sums, laid out in its lanes as the tensor
// cores' instruction mma.m16n8k16 has them: of fragment (m, n), lane l has the sums of rows 16 m + l / 4 and
// 16 m + l / 4 + 8 and of columns 8 n + l % 4 * 2 and the next. Three engines fill them: Wgmma, the tensor cores of
// compute capability 9.0, which read both operands in shared memory themselves; Mma, the tensor cores of 8.0 and newer,
// whose operands the warps load into registers; both for bfloat16 and float16; and Fma, plain multiply-adds in float32,
// for float32 and older devices.
#pragma once

#include <type_traits>

#include "device.h"

// Code for the device that has wgmma; it is in that of no other, not even a newer one.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define XMPLUG_WGMMA
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
#error "compile for 90a: code for plain 90 has none of the instructions that compute capability 9.0 is served with"
#endif

namespace xmplug::cuda {

constexpr int kTileThreads = 256;

template <class T>
struct Wgmma {
  using Element = T;
  static constexpr bool kTensorCores = true, kWarpgroups = true;
  static constexpr int kWarpsDown = 8, kWarpsAcross = 1;
  static constexpr int kTall = 128;  // rows of a tile of labels
  static constexpr int kWide = 256;  // columns of a wide tile
  static constexpr int kDepth = 32;  // of a stage
  static constexpr int kStages = 4;  // of a pipeline: some are filled while one or two are used
  static constexpr int kLoads = 4;   // how many pieces of a tile a thread asks for at once
};
template <class T>
struct Mma {
  using Element = T;
  static constexpr bool kTensorCores = true, kWarpgroups = false;
  static constexpr int kWarpsDown = 2, kWarpsAcross = 4;
  static constexpr int kTall = 64, kWide = 256, kDepth = 32, kStages = 2, kLoads = 1;
};
struct Fma {
  using Element = float;
  static constexpr bool kTensorCores = false, kWarpgroups = false;
  static constexpr int kWarpsDown = 2, kWarpsAcross = 4;
  static constexpr int kTall = 64, kWide = 128, kDepth = 16, kStages = 2, kLoads = 1;
};

// Whether this device code has to have a kernel for the engine and the type of its inputs: a device with tensor cores
// takes Fma for float32 only, and one with wgmma has Mma too, to compare the two.
template <class Engine, class Input>
__host__ __device__ constexpr bool is_used_here() {
#ifndef __CUDA_ARCH__
  return true;
#else
#ifndef XMPLUG_WGMMA
  if (Engine::kWarpgroups) return false;
#endif
  return __CUDA_ARCH__ < 800 ? !Engine::kTensorCores : Engine::kTensorCores || sizeof(Input) == 4;
#endif
}

// Where element (row, column) of a tile with `width` columns lies in shared memory. Pieces of 16 bytes change places
// within their row, so that eight rows' pieces of one column lie in different banks. `width` is a power of two of at
// least 32 bytes, or a multiple of 128 bytes.
template <class Element>
__device__ inline int place(int row, int column, int width) {
  constexpr int kPiece = 16 / static_cast<int>(sizeof(Element));
  const int pieces = width / kPiece;
  const int turn = pieces >= 8 ? row & 7 : row / (8 / pieces) & (pieces - 1);
  return row * width + ((column / kPiece ^ turn) * kPiece) + column % kPiece;
}

// A tile in shared memory. For wgmma, a wide one is made of panels, one after another, each of all rows and of 64
// columns, 128 bytes: then the places of the pieces within a panel are what PTX calls 128-byte swizzling, and those in
// a tile of 32 columns 64-byte swizzling, if the tile begins on a border of 1024 bytes.
template <class Of, int kNumRows, int kNumColumns>
struct Tile {
  using Engine = Of;
  using Element = typename Engine::Element;
  static constexpr int kRows = kNumRows, kColumns = kNumColumns;
  static constexpr int kPanel = Engine::kWarpgroups && kColumns > 64 ? 64 : kColumns;
  static constexpr int kBytes = kRows * kColumns * static_cast<int>(sizeof(Element));
  static_assert(!Engine::kWarpgroups || (kBytes % 1024 == 0 && kColumns % kPanel == 0 && kPanel % 32 == 0));

  Element* memory;

  __device__ explicit Tile(char* bytes) : memory(reinterpret_cast<Element*>(bytes)) {}
  __device__ Element* at(int row, int column) const {
    return memory + column / kPanel * (kRows * kPanel) + place<Element>(row, column % kPanel, kPanel);
  }
};

// As dynamic_shared, on a border of 1024 bytes, which tiles for wgmma need.
__device__ inline char* tile_memory() {
#ifdef __CUDACC__
  extern __shared__ __align__(1024) char tiles[];
  return tiles;
#else
  return cuda_on_host::Block::current_block->shared();
#endif
}

// The address of something in shared memory, in the window of the block.
__device__ inline uint32_t shared_address(const void* pointer) {
#ifdef __CUDACC__
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
#else
  return cuda_on_host::Block::current_block->shared_address(pointer);
#endif
}

// Copies from device to shared memory that go on while the thread does; it waits for all but its last `left` groups.
// Zeros where there is nothing to copy.
__device__ inline void copy_16_bytes(void* to, const void* from, bool there) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(there ? 16 : 0));
#elif defined(__CUDACC__)
  *static_cast<uint4*>(to) = there ? *static_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
#else
  cuda_on_host::Block::current_block->copy_later(to, from, there ? 16 : 0, 16);
#endif
}
__device__ inline void end_group() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;");
#elif !defined(__CUDACC__)
  cuda_on_host::Block::current_block->end_group();
#endif
}
template <int kLeft>
__device__ void wait_for_groups() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
#elif !defined(__CUDACC__)
  cuda_on_host::Block::current_block->wait_for_groups(kLeft);
#endif
}

// Eight elements of memory as floats; `from` on a border of 16 bytes.
__device__ inline void read_8(float (&values)[8], const float* from) {
  const float4 a = *reinterpret_cast<const float4*>(from), b = *reinterpret_cast<const float4*>(from + 4);
  values[0] = a.x, values[1] = a.y, values[2] = a.z, values[3] = a.w;
  values[4] = b.x, values[5] = b.y, values[6] = b.z, values[7] = b.w;
}
template <class Half16>
__device__ void read_8(float (&values)[8], const Half16* from) {
  const uint4 bits = *reinterpret_cast<const uint4*>(from);
  const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    values[i] = to_float(Half16{static_cast<uint16_t>(words[i / 2] >> (i % 2 * 16))});
  }
}

// Eight elements into shared memory, in two pieces where they are float32.
template <class Tile>
__device__ void write_8(const Tile& tile, int row, int column, const float (&values)[8]) {
  using Element = typename Tile::Element;
  if constexpr (sizeof(Element) == 4) {
    *reinterpret_cast<float4*>(tile.at(row, column)) = make_float4(values[0], values[1], values[2], values[3]);
    *reinterpret_cast<float4*>(tile.at(row, column + 4)) = make_float4(values[4], values[5], values[6], values[7]);
  } else {
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      words[i] = from_float<Element>(values[2 * i]).bits |
                 static_cast<uint32_t>(from_float<Element>(values[2 * i + 1]).bits) << 16;
    }
    *reinterpret_cast<uint4*>(tile.at(row, column)) = make_uint4(words[0], words[1], words[2], words[3]);
  }
}

// Two neighbours into memory; `to` on a border of two elements.
__device__ inline void write_2(float* to, float a, float b) { *reinterpret_cast<float2*>(to) = make_float2(a, b); }
template <class Half16>
__device__ void write_2(Half16* to, float a, float b) {
  *reinterpret_cast<uint32_t*>(to) = from_float<Half16>(a).bits | static_cast<uint32_t>(from_float<Half16>(b).bits)
                                                                      << 16;
}

// All threads: fills a tile, its row r from `row(r)`, a pointer to a row of memory or null, from `column` on. There are
// zeros in place of null rows and from column `end` on. `pieces`: the rows begin on borders of 16 bytes and `end` is a
// multiple of 8.
template <class Tile, class Rows>
__device__ void load_tile(const Tile& tile, const Rows& row, int column, int end, bool pieces) {
  using Element = typename Tile::Element;
  using Pointer = decltype(row(0));
  // A thread has pieces of one column in some rows.
  constexpr int kPieces = Tile::kColumns / 8, kRowsAtOnce = kTileThreads / kPieces;
  static_assert(kTileThreads % kPieces == 0);
  const int c = static_cast<int>(threadIdx.x % kPieces * 8), first = static_cast<int>(threadIdx.x / kPieces);
  const int left = end - (column + c);
  if constexpr (std::is_same_v<Pointer, const Element*> && sizeof(Element) == 2) {
    if (pieces) {
#pragma unroll(Tile::Engine::kLoads)
      for (int r = 0; r < Tile::kRows; r += kRowsAtOnce) {
        if (Tile::kRows % kRowsAtOnce != 0 && first + r >= Tile::kRows) break;
        Pointer from = row(first + r);
        copy_16_bytes(tile.at(first + r, c), from + column + c, from != nullptr && left > 0);
      }
      return;
    }
  }
  if (pieces) {
#pragma unroll(Tile::Engine::kLoads)
    for (int r = 0; r < Tile::kRows; r += kRowsAtOnce) {
      if (Tile::kRows % kRowsAtOnce != 0 && first + r >= Tile::kRows) break;
      Pointer from = row(first + r);
      float values[8] = {};
      if (from != nullptr && left > 0) read_8(values, from + column + c);
      write_8(tile, first + r, c, values);
    }
    return;
  }
#pragma unroll 1
  for (int r = 0; r < Tile::kRows; r += kRowsAtOnce) {
    if (Tile::kRows % kRowsAtOnce != 0 && first + r >= Tile::kRows) break;
    Pointer from = row(first + r);
    float values[8] = {};
    if (from != nullptr && left > 0) {
#pragma unroll
      for (int j = 0; j < 8; ++j) values[j] = j < left ? to_float(from[column + c + j]) : 0.0F;
    }
    write_8(tile, first + r, c, values);
  }
}

// An operand: element k of its row (or column, of a right operand) i is at (i, k) of the tile, or, where depth goes
// down, at (k, i).
template <class Of, bool kDown>
struct Operand {
  using Tile = Of;
  static constexpr bool kDepthDown = kDown;
  Tile tile;
  __device__ const typename Tile::Element* at(int i, int k) const { return kDown ? tile.at(k, i) : tile.at(i, k); }
};
template <class Tile>
__device__ Operand<Tile, false> depth_across(const Tile& tile) {
  return {tile};
}
template <class Tile>
__device__ Operand<Tile, true> depth_down(const Tile& tile) {
  return {tile};
}

// Four 8 x 8 matrices of 16-bit numbers: lane l says where row l % 8 of matrix l / 8 begins, and gets of each matrix
// the numbers 2 (l % 4) and the next of row l / 4, or, transposed, of column l / 4.
template <bool kTransposed>
__device__ void load_matrices(uint32_t (&registers)[4], const void* row) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 750
  const uint32_t address = shared_address(row);
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                 : "r"(address)
                 : "memory");
  }
#elif !defined(__CUDACC__)
  cuda_on_host::load_matrices<kTransposed>(registers, row);
#endif
}

// sum += a b, on tensor cores: a 16 x 16, b 16 x 8.
__device__ inline void multiply_fragments(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, BFloat16) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#elif !defined(__CUDACC__)
  cuda_on_host::multiply_fragments(sum, a, b0, b1, [](uint16_t bits) { return to_float(BFloat16{bits}); });
#endif
}
__device__ inline void multiply_fragments(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Half) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#elif !defined(__CUDACC__)
  cuda_on_host::multiply_fragments(sum, a, b0, b1, [](uint16_t bits) { return to_float(Half{bits}); });
#endif
}

// What tells wgmma where a piece of an operand is, from row (or column, of a right operand) `i` on and from depth `k`
// on: multiples of 64 and 16. PTX ISA, "Matrix Descriptor Format" and "Canonical Layouts". In units of 16 bytes: the
// address, without swizzling; bits 16 to 29, only where depth goes down, how far the next 64 rows are: a panel; bits 32
// to 45, the next 8 rows, or, where depth goes down, the next 8 of the depth: eight lines. The last two bits are 1 for
// 128-byte and 2 for 64-byte swizzling.
template <class Operand>
__device__ uint64_t descriptor(const Operand& operand, int i, int k) {
  using Tile = typename Operand::Tile;
  constexpr int kLine = Tile::kPanel * 2, kPanelBytes = Tile::kRows * kLine;
  static_assert(kLine == 128 || (kLine == 64 && !Operand::kDepthDown));
  const int row = Operand::kDepthDown ? k : i, column = Operand::kDepthDown ? i : k;
  const uint32_t address =
      shared_address(operand.tile.memory) +
      static_cast<uint32_t>(column / Tile::kPanel * kPanelBytes + row * kLine + column % Tile::kPanel * 2);
  constexpr uint64_t kNextPanel = Operand::kDepthDown ? kPanelBytes / 16 : 1, kNextLines = 8 * kLine / 16;
  constexpr uint64_t kSwizzling = kLine == 128 ? 1 : 2;
  return (address & 0x3ffffU) >> 4 | kNextPanel << 16 | kNextLines << 32 | kSwizzling << 62;
}

// sums += a b, by the 128 threads of a warpgroup: a 64 x 16, b 16 x 8 kAcross, both in shared memory. Called
// between begin_products and end_products. It is done when wait_for_products comes back: until then nobody writes to
// the operands, and nothing touches the sums.
#ifdef XMPLUG_WGMMA
#define XMPLUG_TEN(tens)                                                                                               \
  "%" tens "0, %" tens "1, %" tens "2, %" tens "3, %" tens "4, %" tens "5, %" tens "6, %" tens "7, %" tens "8, %" tens \
  "9, "
#define XMPLUG_60 XMPLUG_TEN("") XMPLUG_TEN("1") XMPLUG_TEN("2") XMPLUG_TEN("3") XMPLUG_TEN("4") XMPLUG_TEN("5")
#define XMPLUG_60_MORE XMPLUG_TEN("6") XMPLUG_TEN("7") XMPLUG_TEN("8") XMPLUG_TEN("9") XMPLUG_TEN("10") XMPLUG_TEN("11")
#define XMPLUG_64_REGISTERS XMPLUG_60 "%60, %61, %62, %63"
#define XMPLUG_128_REGISTERS XMPLUG_60 XMPLUG_60_MORE "%120, %121, %122, %123, %124, %125, %126, %127"
#define XMPLUG_SUMS(n) "+f"(sums[n][0]), "+f"(sums[n][1]), "+f"(sums[n][2]), "+f"(sums[n][3])
#define XMPLUG_4_SUMS(n) XMPLUG_SUMS(n), XMPLUG_SUMS(n + 1), XMPLUG_SUMS(n + 2), XMPLUG_SUMS(n + 3)
#define XMPLUG_16_SUMS(n) XMPLUG_4_SUMS(n), XMPLUG_4_SUMS(n + 4), XMPLUG_4_SUMS(n + 8), XMPLUG_4_SUMS(n + 12)
#define XMPLUG_MULTIPLY(type)                                                                            \
  if constexpr (kAcross == 32) {                                                                         \
    asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type " {" XMPLUG_128_REGISTERS  \
                 "}, %128, %129, 1, 1, 1, %130, %131;"                                                   \
                 : XMPLUG_16_SUMS(0), XMPLUG_16_SUMS(16)                                                 \
                 : "l"(a), "l"(b), "n"(static_cast<int>(kLeftDown)), "n"(static_cast<int>(kRightDown))); \
  } else {                                                                                               \
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" XMPLUG_64_REGISTERS   \
                 "}, %64, %65, 1, 1, 1, %66, %67;"                                                       \
                 : XMPLUG_16_SUMS(0)                                                                     \
                 : "l"(a), "l"(b), "n"(static_cast<int>(kLeftDown)), "n"(static_cast<int>(kRightDown))); \
  }
#endif
template <class Element, bool kLeftDown, bool kRightDown, int kAcross>
__device__ void multiply_tiles(float (&sums)[kAcross][4], uint64_t a, uint64_t b) {
  static_assert(kAcross == 32 || kAcross == 16);
#ifdef XMPLUG_WGMMA
  if constexpr (std::is_same_v<Element, BFloat16>) {
    XMPLUG_MULTIPLY("bf16")
  } else {
    XMPLUG_MULTIPLY("f16")
  }
#elif !defined(__CUDACC__)
  cuda_on_host::Block::current_block->multiply_tiles(&sums[0][0], 8 * kAcross, a, b, kLeftDown, kRightDown,
                                                     [](uint16_t bits) { return to_float(Element{bits}); });
#endif
}
#ifdef XMPLUG_WGMMA
#undef XMPLUG_TEN
#undef XMPLUG_60
#undef XMPLUG_60_MORE
#undef XMPLUG_64_REGISTERS
#undef XMPLUG_128_REGISTERS
#undef XMPLUG_SUMS
#undef XMPLUG_4_SUMS
#undef XMPLUG_16_SUMS
#undef XMPLUG_MULTIPLY
#endif
__device__ inline void begin_products() {
#ifdef XMPLUG_WGMMA
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#elif !defined(__CUDACC__)
  cuda_on_host::Block::current_block->begin_products();
#endif
}
__device__ inline void end_products() {
#ifdef XMPLUG_WGMMA
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#elif !defined(__CUDACC__)
  cuda_on_host::Block::current_block->end_products();
#endif
}
template <int kLeft>
__device__ void wait_for_products() {
#ifdef XMPLUG_WGMMA
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
#elif !defined(__CUDACC__)
  cuda_on_host::Block::current_block->wait_for_products(kLeft);
#endif
}

// What this thread wrote to shared memory, by stores or copies that it waited for, is there for wgmma, which reads by
// way of the "async proxy", after the next barrier.
__device__ inline void show_to_wgmma() {
#ifdef XMPLUG_WGMMA
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#elif !defined(__CUDACC__)
  cuda_on_host::Block::current_block->show_to_wgmma();
#endif
}

// The lane of this thread, as a value that the compiler does not know: what is made of it, it makes again each time,
// where it would keep the places of all sums in registers from one loop to the next.
__device__ inline int some_lane() {
#ifdef __CUDACC__
  int lane;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
#else
  return static_cast<int>(threadIdx.x) % 32;
#endif
}

// A warp's part of a tile of kRows x kColumns sums.
template <class Engine, int kRows, int kColumns>
class Sums {
 public:
  static constexpr int kWarpsDown = Engine::kWarpsDown, kWarpsAcross = Engine::kWarpsAcross;
  static constexpr int kDown = kRows / kWarpsDown / 16, kAcross = kColumns / kWarpsAcross / 8;
  static_assert(kDown * kWarpsDown * 16 == kRows && kAcross * kWarpsAcross * 8 == kColumns && kAcross % 2 == 0);

  __device__ Sums()
      : row_(static_cast<int>(threadIdx.x) / 32 / kWarpsAcross * (kRows / kWarpsDown)),
        column_(static_cast<int>(threadIdx.x) / 32 % kWarpsAcross * (kColumns / kWarpsAcross)) {
    clear();
  }

  __device__ void clear() {
    each([](int, int, float& a, float& b) { a = b = 0.0F; });
  }

  // f(row, column, sum, next) for the lane's sums: `next` is that of the next column. Two rows of each fragment.
  template <class F>
  __device__ void each(const F& f) {
    const int lane = some_lane();
#pragma unroll
    for (int m = 0; m < kDown; ++m) {
#pragma unroll
      for (int n = 0; n < kAcross; ++n) {
        const int column = column_ + 8 * n + lane % 4 * 2;
        f(row_ + 16 * m + lane / 4, column, sums_[m][n][0], sums_[m][n][1]);
        f(row_ + 16 * m + lane / 4 + 8, column, sums_[m][n][2], sums_[m][n][3]);
      }
    }
  }

  // f(row, columns) for each of the lane's rows, where columns(g) calls g(column, sum, next) for its sums.
  template <class F>
  __device__ void each_row(const F& f) {
    const int lane = some_lane();
#pragma unroll
    for (int m = 0; m < kDown; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        f(row_ + 16 * m + lane / 4 + 8 * half, [&](const auto& g) {
#pragma unroll
          for (int n = 0; n < kAcross; ++n) {
            g(column_ + 8 * n + lane % 4 * 2, sums_[m][n][2 * half], sums_[m][n][2 * half + 1]);
          }
        });
      }
    }
  }

  // Of each row, what `combine` makes of its columns in this warp, from `start` on: f(row, value), once for each row of
  // the lane, with the same value in the four lanes that share it.
  template <class Combine, class F>
  __device__ void reduce_rows(float start, const Combine& combine, const F& f) {
    const int lane = some_lane();
#pragma unroll
    for (int m = 0; m < kDown; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float value = start;
#pragma unroll
        for (int n = 0; n < kAcross; ++n) {
          value = combine(combine(value, sums_[m][n][2 * half]), sums_[m][n][2 * half + 1]);
        }
        value = combine(value, __shfl_xor_sync(kAllLanes, value, 1));
        value = combine(value, __shfl_xor_sync(kAllLanes, value, 2));
        f(row_ + 16 * m + lane / 4 + 8 * half, value);
      }
    }
  }

  // Adds the product of a stage's depth of the left operand, from `from` on, and of the right one, from 0 on. In the
  // `use` of a pipeline that has been given the sums.
  template <class Left, class Right>
  __device__ void add_product(const Left& left, int from, const Right& right) {
    if constexpr (Engine::kWarpgroups) {
      add_by_warpgroups(left, from, right);
    } else if constexpr (Engine::kTensorCores) {
      add_by_warps(left, from, right);
    } else {
      add_plainly(left, from, right);
    }
  }

  // Keeps the compiler from moving what is done to the sums over this line: it does not see that wgmma works on them
  // until it has been waited for.
  __device__ void pin() {
#ifdef XMPLUG_WGMMA
#pragma unroll
    for (int n = 0; n < kAcross; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(sums_[0][n][i])::"memory");
    }
#endif
  }

 private:
  template <class Left, class Right>
  __device__ void add_by_warpgroups(const Left& left, int from, const Right& right) {
    static_assert(kDown == 1 && std::is_same_v<typename Left::Tile::Engine, Engine>);
    // Of all threads of a warp, in a way that the compiler knows it: descriptors are in registers that they share.
    const int warpgroup = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / 128, 0);
#pragma unroll
    for (int k = 0; k < Engine::kDepth; k += 16) {
      multiply_tiles<typename Engine::Element, Left::kDepthDown, Right::kDepthDown>(
          sums_[0], descriptor(left, 64 * warpgroup, from + k), descriptor(right, 0, k));
    }
  }

  template <class Left, class Right>
  __device__ void add_by_warps(const Left& left, int from, const Right& right) {
    constexpr bool kLeftDown = Left::kDepthDown, kRightDown = Right::kDepthDown;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    for (int k = 0; k < Engine::kDepth; k += 16) {
      uint32_t b[kAcross / 2][4];
#pragma unroll
      for (int n = 0; n < kAcross / 2; ++n) {
        // Matrices: depth 0 and 8 of columns 0, then of columns 8. Where depth goes down, a matrix' rows are along it.
        const int i = column_ + 16 * n + lane / 16 * 8, d = k + lane / 8 % 2 * 8;
        load_matrices<kRightDown>(b[n], kRightDown ? right.at(i, d + lane % 8) : right.at(i + lane % 8, d));
      }
#pragma unroll
      for (int m = 0; m < kDown; ++m) {
        const int lane = some_lane();
        // Matrices: rows 0 and 8 of depth 0, then of depth 8.
        const int i = row_ + 16 * m + lane / 8 % 2 * 8, d = from + k + lane / 16 * 8;
        uint32_t a[4];
        load_matrices<kLeftDown>(a, kLeftDown ? left.at(i, d + lane % 8) : left.at(i + lane % 8, d));
#pragma unroll
        for (int n = 0; n < kAcross; ++n) {
          multiply_fragments(sums_[m][n], a, b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1], typename Engine::Element{});
        }
      }
    }
  }

  template <class Left, class Right>
  __device__ void add_plainly(const Left& left, int from, const Right& right) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    for (int k = 0; k < Engine::kDepth; ++k) {
      float a[kDown][2], b[kAcross][2];
#pragma unroll
      for (int m = 0; m < kDown; ++m) {
        a[m][0] = *left.at(row_ + 16 * m + lane / 4, from + k);
        a[m][1] = *left.at(row_ + 16 * m + lane / 4 + 8, from + k);
      }
#pragma unroll
      for (int n = 0; n < kAcross; ++n) {
        b[n][0] = *right.at(column_ + 8 * n + lane % 4 * 2, k);
        b[n][1] = *right.at(column_ + 8 * n + lane % 4 * 2 + 1, k);
      }
#pragma unroll
      for (int m = 0; m < kDown; ++m) {
#pragma unroll
        for (int n = 0; n < kAcross; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) sums_[m][n][i] += a[m][i / 2] * b[n][i % 2];
        }
      }
    }
  }

  int row_, column_;  // of the tile, where this warp's part begins
  float sums_[kDown][kAcross][4];
};

// A pipeline of stages in shared memory, which all threads work at: `load(stage, i)` puts there what `use(stage, i)`
// needs to add a product to sums, for i from 0 to `count`, while other stages are used.
template <class Engine, int kStages, int kStageBytes>
struct Pipeline {
  // How many products of wgmma go on while the next are asked for: then the stage that is filled next is not that of
  // the last product, but of the one before it.
  static constexpr int kLate = Engine::kWarpgroups ? 1 : 0, kAhead = kStages - 1 - kLate;
  static_assert(kAhead > 0);

  // Begins to load. All threads are done with the memory.
  template <class Load>
  static __device__ void start(char* memory, int count, const Load& load) {
    if (Engine::kWarpgroups && shared_address(memory) % 1024 != 0) __trap();
#pragma unroll 1
    for (int i = 0; i < kAhead; ++i) load_stage(memory, i, count, load);
  }

  // The products from `begin` to `end`, the next that are due. Ends with them made, and, after the last of all, with
  // all threads done with the memory.
  template <class Load, class Use, int kRows, int... kColumns>
  static __device__ void run(char* memory, int begin, int end, int count, const Load& load, const Use& use,
                             Sums<Engine, kRows, kColumns>&... sums) {
    (sums.pin(), ...);
#pragma unroll 1
    for (int i = begin; i < end; ++i) {
      wait_for_groups<kAhead - 1>();
      if constexpr (Engine::kWarpgroups) show_to_wgmma();
      __syncthreads();  // what all threads loaded is there, and nobody uses the stage that is filled next
      if constexpr (Engine::kWarpgroups) {
        begin_products();
        use(memory + i % kStages * kStageBytes, i);
        end_products();
        load_stage(memory, i + kAhead, count, load);
        wait_for_products<kLate>();
      } else {
        load_stage(memory, i + kAhead, count, load);
        use(memory + i % kStages * kStageBytes, i);
      }
    }
    if constexpr (Engine::kWarpgroups) wait_for_products<0>();
    (sums.pin(), ...);
    if (end == count) {
      wait_for_groups<0>();
      __syncthreads();
    }
  }

  template <class Load, class Use, int kRows, int... kColumns>
  static __device__ void start_and_run(char* memory, int count, const Load& load, const Use& use,
                                       Sums<Engine, kRows, kColumns>&... sums) {
    start(memory, count, load);
    run(memory, 0, count, count, load, use, sums...);
  }

 private:
  template <class Load>
  static __device__ void load_stage(char* memory, int i, int count, const Load& load) {
    if (i < count) load(memory + i % kStages * kStageBytes, i);
    end_group();
  }
};

}  // namespace xmplug::cuda
