// Products of matrix tiles by a block of threads: operands through shared memory, sums in registers.
//
// A block is 8 warps, two down by four across the tile. Each warp holds its part as fragments of 16 x 8 sums, laid out
// in its lanes as the tensor cores' instruction mma.m16n8k16 has them: of fragment (m, n), lane l has the sums of rows
// 16 m + l / 4 and 16 m + l / 4 + 8 and of columns 8 n + l % 4 * 2 and the next. Two engines fill them: Mma, the tensor
// cores (compute capability 8.0), for bfloat16 and float16; and Fma, plain multiply-adds in float32, for float32 and
// older devices.
#pragma once

#include <type_traits>

#include "device.h"

namespace xmplug::cuda {

constexpr int kTileThreads = 256;
constexpr int kWarpsDown = 2, kWarpsAcross = 4;
constexpr int kStages = 2;  // of a pipeline: one is filled while another is used

template <class T>
struct Mma {
  using Element = T;
  static constexpr bool kTensorCores = true;
  static constexpr int kDepth = 32;  // of a stage
  static constexpr int kWide = 256;  // columns of a wide tile
};
struct Fma {
  using Element = float;
  static constexpr bool kTensorCores = false;
  static constexpr int kDepth = 16;
  static constexpr int kWide = 128;
};

// Whether this device code has to have a kernel for the engine and the type of its inputs: a device with tensor cores
// takes Fma for float32 only.
template <class Engine, class Input>
__host__ __device__ constexpr bool is_used_here() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  return !Engine::kTensorCores;
#elif defined(__CUDA_ARCH__)
  return Engine::kTensorCores || sizeof(Input) == 4;
#else
  return true;
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

// Copies from device to shared memory that go on while the thread does; it waits for all but its last `left` groups.
__device__ inline void copy_16_bytes(void* to, const void* from) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from));
#elif defined(__CUDACC__)
  *static_cast<uint4*>(to) = *static_cast<const uint4*>(from);
#else
  cuda_on_host::Block::current_block->copy_later(to, from, 16);
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
__device__ inline void write_8(float* tile, int row, int column, int width, const float (&values)[8]) {
  *reinterpret_cast<float4*>(tile + place<float>(row, column, width)) =
      make_float4(values[0], values[1], values[2], values[3]);
  *reinterpret_cast<float4*>(tile + place<float>(row, column + 4, width)) =
      make_float4(values[4], values[5], values[6], values[7]);
}
template <class Half16>
__device__ void write_8(Half16* tile, int row, int column, int width, const float (&values)[8]) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    words[i] = from_float<Half16>(values[2 * i]).bits |
               static_cast<uint32_t>(from_float<Half16>(values[2 * i + 1]).bits) << 16;
  }
  *reinterpret_cast<uint4*>(tile + place<Half16>(row, column, width)) =
      make_uint4(words[0], words[1], words[2], words[3]);
}

// Two neighbours into memory; `to` on a border of two elements.
__device__ inline void write_2(float* to, float a, float b) { *reinterpret_cast<float2*>(to) = make_float2(a, b); }
template <class Half16>
__device__ void write_2(Half16* to, float a, float b) {
  *reinterpret_cast<uint32_t*>(to) = from_float<Half16>(a).bits | static_cast<uint32_t>(from_float<Half16>(b).bits)
                                                                      << 16;
}

// All threads: a tile of kRows x kColumns, its row r from `row(r)`, a pointer to a row of memory or null, from `column`
// on. There are zeros in place of null rows and from column `end` on. `pieces`: the rows begin on borders of 16 bytes
// and `end` is a multiple of 8.
template <int kRows, int kColumns, class Element, class Rows>
__device__ void load_tile(Element* tile, const Rows& row, int column, int end, bool pieces) {
  using Pointer = decltype(row(0));
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < kRows * (kColumns / 8); i += kTileThreads) {
    const int r = i / (kColumns / 8), c = i % (kColumns / 8) * 8;
    const int left = end - (column + c);
    Pointer from = row(r);
    float values[8] = {};
    if (from != nullptr && left > 0) {
      from += column + c;
      if (pieces) {
        if constexpr (std::is_same_v<Pointer, const Element*> && sizeof(Element) == 2) {
          copy_16_bytes(tile + place<Element>(r, c, kColumns), from);
          continue;
        } else {
          read_8(values, from);
        }
      } else {
#pragma unroll
        for (int j = 0; j < 8; ++j) values[j] = j < left ? to_float(from[j]) : 0.0F;
      }
    }
    write_8(tile, r, c, kColumns, values);
  }
}

// All threads: `load(memory, i)` puts what `use(memory, i)` needs into one stage of shared memory, while others are
// used. Begins and ends with all threads done with the memory.
template <class Load, class Use>
__device__ void pipeline(char* memory, int stage_bytes, int count, const Load& load, const Use& use) {
  __syncthreads();
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) {
    if (stage < count) load(memory + stage * stage_bytes, stage);
    end_group();
  }
  for (int i = 0; i < count; ++i) {
    wait_for_groups<kStages - 2>();
    __syncthreads();  // what all threads loaded is there, and nobody uses the stage that is filled next
    const int next = i + kStages - 1;
    if (next < count) load(memory + next % kStages * stage_bytes, next);
    end_group();
    use(memory + i % kStages * stage_bytes, i);
  }
  wait_for_groups<0>();
  __syncthreads();
}

// An operand in shared memory: element k of its row (or column, of a right operand) i is at (i, k) of the tile, or,
// where depth goes down, at (k, i).
template <class Element, bool kDepthDown>
struct Operand {
  const Element* tile;
  int width;
  __device__ const Element* at(int i, int k) const {
    return tile + (kDepthDown ? place<Element>(k, i, width) : place<Element>(i, k, width));
  }
};

// Four 8 x 8 matrices of 16-bit numbers: lane l says where row l % 8 of matrix l / 8 begins, and gets of each matrix
// the numbers 2 (l % 4) and the next of row l / 4, or, transposed, of column l / 4.
template <bool kTransposed>
__device__ void load_matrices(uint32_t (&registers)[4], const void* row) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 750
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
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

  // Adds the product of `depth` columns of the left operand, from `from` on, and rows of the right one, from 0 on.
  template <class Left, class Right>
  __device__ void add_product(const Left& left, int from, const Right& right, int depth) {
    if constexpr (Engine::kTensorCores) {
      add_on_tensor_cores(left, from, right, depth);
    } else {
      add_plainly(left, from, right, depth);
    }
  }

 private:
  template <class Element, bool kLeftDown, bool kRightDown>
  __device__ void add_on_tensor_cores(const Operand<Element, kLeftDown>& left, int from,
                                      const Operand<Element, kRightDown>& right, int depth) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    for (int k = 0; k < depth; k += 16) {
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
          multiply_fragments(sums_[m][n], a, b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1], Element{});
        }
      }
    }
  }

  template <bool kLeftDown, bool kRightDown>
  __device__ void add_plainly(const Operand<float, kLeftDown>& left, int from, const Operand<float, kRightDown>& right,
                              int depth) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    for (int k = 0; k < depth; ++k) {
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

}  // namespace xmplug::cuda
