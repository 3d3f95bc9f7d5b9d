// What all CUDA kernels stand on: the device's language, number types and how to launch.
//
// Without nvcc, cuda_on_host.h of tests/cuda takes the place of CUDA: a C++ compiler then makes of the same kernels
// functions that run on the host, which is how their logic is tested where there is no GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "cuda_on_host.h"
#endif

namespace xmplug::cuda {

constexpr unsigned kAllLanes = 0xffffffffU;

// Threads of a block, all of which call it, get the same memory: as much as the launch asked for, on a 128-byte border.
__device__ inline char* dynamic_shared() {
#ifdef __CUDACC__
  extern __shared__ __align__(128) char memory[];
  return memory;
#else
  return cuda_on_host::Block::current_block->shared();
#endif
}

// Runs `kernel` on `stream`, with `shared` bytes of dynamic shared memory, which may be more than 48 KiB.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, [[maybe_unused]] cudaStream_t stream,
            const Arguments&... arguments) {
#ifdef __CUDACC__
  constexpr size_t kAlwaysThere = 48 * 1024;
  cudaError_t error = cudaSuccess;
  if (shared > kAlwaysThere) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
  }
  if (error == cudaSuccess) {
    kernel<<<grid, block, shared, stream>>>(static_cast<Parameters>(arguments)...);
    error = cudaGetLastError();
  }
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
#else
  cuda_on_host::launch(kernel, grid, block, shared, arguments...);
#endif
}

// How much shared memory a block can have on the current device.
inline int64_t shared_bytes_of_a_block() {
#ifdef __CUDACC__
  int device = 0, bytes = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess) {
    throw std::runtime_error("CUDA: no device");
  }
  return bytes;
#else
  return cuda_on_host::kSharedBytes;
#endif
}

// bfloat16 and float16, as PyTorch stores them.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(BFloat16 value) { return __uint_as_float(static_cast<uint32_t>(value.bits) << 16); }
__device__ inline float to_float(Half value) {
#ifdef __CUDACC__
  return __half2float(__ushort_as_half(value.bits));
#else
  _Float16 half;
  std::memcpy(&half, &value.bits, 2);
  return half;
#endif
}

// Rounded to the nearest.
template <class T>
__device__ T from_float(float value);
template <>
__device__ inline float from_float<float>(float value) {
  return value;
}
template <>
__device__ inline BFloat16 from_float<BFloat16>(float value) {
#ifdef __CUDACC__
  return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};
#else
  const uint32_t bits = __float_as_uint(value);
  if (value != value) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fffU + (bits >> 16 & 1U)) >> 16)};
#endif
}
template <>
__device__ inline Half from_float<Half>(float value) {
#ifdef __CUDACC__
  return {__half_as_ushort(__float2half_rn(value))};
#else
  const auto half = static_cast<_Float16>(value);
  Half result;
  std::memcpy(&result.bits, &half, 2);
  return result;
#endif
}

// How many parts of `part` are needed to hold `whole`.
template <class Integer>
__host__ __device__ constexpr Integer parts(Integer whole, int part) {
  return (whole + part - 1) / part;
}

// How a kernel stops where an index that a caller gave is beyond what it has: a CUDA error, as PyTorch's own checks.
__device__ inline void check_index(bool valid) {
  if (!valid) __trap();
}

}  // namespace xmplug::cuda
