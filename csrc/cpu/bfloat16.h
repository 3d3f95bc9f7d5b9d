#pragma once

#include <cstdint>

namespace xmplug {

// bfloat16, as PyTorch stores it: the upper half of a float32.
struct BFloat16 {
  uint16_t bits;
};

}  // namespace xmplug
