// The kernels that are compiled once for each instruction set, and which of them this processor can run.
#pragma once

namespace xmplug {

// In ascending order: each can do what those before it can.
enum InstructionSet { kBaseline, kAvx2, kAvx512, kAvx512Bf16 };

inline InstructionSet best_instruction_set() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    return __builtin_cpu_supports("avx512bf16") ? kAvx512Bf16 : kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return kAvx2;
#endif
  return kBaseline;
}

// What simd_*.cpp offer for an operation: each defines `kernels<Kernels, set>()` for its own set.
template <class Kernels, InstructionSet set>
const Kernels& kernels();

// The kernels of one operation for `set`, which this processor must be able to run.
template <class Kernels>
const Kernels& kernels_for(InstructionSet set) {
#if defined(__x86_64__)
  if (set == kAvx512Bf16) return kernels<Kernels, kAvx512Bf16>();
  if (set == kAvx512) return kernels<Kernels, kAvx512>();
  if (set == kAvx2) return kernels<Kernels, kAvx2>();
#endif
  return kernels<Kernels, kBaseline>();
}

}  // namespace xmplug
