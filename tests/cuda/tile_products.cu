// Products of tiles (csrc/cuda/tile.h) alone, for test_cuda_tile.py: a module for the host, as cuda_on_host.h has it,
// or, with nvcc, for a GPU.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "../../csrc/cuda/label_attention.h"

namespace {

using namespace xmplug::cuda;

// Of a (kRows x depth), or, where it is transposed, its transpose, and b (depth x kColumns), whose transpose b is where
// it is not: the product. kHeld: a, of at most 256 columns, is in one tile, written by plain stores.
template <class Engine, int kRows, int kColumns, bool kLeftDown, bool kRightDown, bool kHeld>
__global__ void __launch_bounds__(kTileThreads, 1)
    multiply(const typename Engine::Element* a, const typename Engine::Element* b, float* product, int depth) {
  if constexpr (is_used_here<Engine, BFloat16>()) {
    using Element = typename Engine::Element;
    constexpr int kDepth = Engine::kDepth;
    using Left = Tile<Engine, kLeftDown ? kDepth : kRows, kLeftDown ? kRows : kDepth>;
    using Held = Tile<Engine, kRows, 256>;
    using Right = Tile<Engine, kRightDown ? kDepth : kColumns, kRightDown ? kColumns : kDepth>;
    constexpr int kStage = Left::kBytes + Right::kBytes;
    const auto load = [&](auto tile, const Element* from, bool down, int width, int i) {
      const int left = depth - i * kDepth;
      if (down) {
        load_tile(tile, Rows<Element>{from + static_cast<int64_t>(i) * kDepth * width, width, left}, 0, width, true);
      } else {
        load_tile(tile, Rows<Element>{from, depth, width}, i * kDepth, depth, depth % 8 == 0);
      }
    };
    char* stages = tile_memory();
    const Held held(stages + Engine::kStages * kStage);
    Sums<Engine, kRows, kColumns> sums;
    if constexpr (kHeld) {
      for (int i = static_cast<int>(threadIdx.x); i < kRows * 256; i += kTileThreads) {
        *held.at(i / 256, i % 256) = i % 256 < depth ? a[i / 256 * depth + i % 256] : Element{0};
      }
    }
    Pipeline<Engine, Engine::kStages, kStage>::start_and_run(
        stages, parts(depth, kDepth),
        [&](char* stage, int i) {
          if constexpr (!kHeld) load(Left(stage), a, kLeftDown, kRows, i);
          load(Right(stage + Left::kBytes), b, kRightDown, kColumns, i);
        },
        [&](char* stage, int i) {
          const Operand<Right, kRightDown> right{Right(stage + Left::kBytes)};
          if constexpr (kHeld) {
            sums.add_product(depth_across(held), i * kDepth, right);
          } else {
            sums.add_product(Operand<Left, kLeftDown>{Left(stage)}, 0, right);
          }
        },
        sums);
    sums.each([&](int row, int column, float& x, float& y) {
      product[row * kColumns + column] = x;
      product[row * kColumns + column + 1] = y;
    });
  } else {
    __trap();
  }
}

template <class Engine, int kRows, int kColumns, bool kLeftDown, bool kRightDown, bool kHeld = false>
void run(uintptr_t a, uintptr_t b, uintptr_t product, int depth, uintptr_t stream) {
  using Element = typename Engine::Element;
  constexpr size_t kBytes =
      (Engine::kStages * Engine::kDepth * (kRows + kColumns) + (kHeld ? kRows * 256 : 0)) * sizeof(Element);
  launch(multiply<Engine, kRows, kColumns, kLeftDown, kRightDown, kHeld>, 1, kTileThreads, kBytes,
         reinterpret_cast<cudaStream_t>(stream), reinterpret_cast<const Element*>(a),
         reinterpret_cast<const Element*>(b), reinterpret_cast<float*>(product), depth);
}

template <class Engine, int kRows, int kColumns>
void add(pybind11::module_& module, const std::string& name) {
  const std::string start = name + "_" + std::to_string(kRows) + "_" + std::to_string(kColumns) + "_";
  module.def((start + "across_across").c_str(), &run<Engine, kRows, kColumns, false, false>);
  module.def((start + "across_down").c_str(), &run<Engine, kRows, kColumns, false, true>);
  module.def((start + "down_across").c_str(), &run<Engine, kRows, kColumns, true, false>);
  module.def((start + "down_down").c_str(), &run<Engine, kRows, kColumns, true, true>);
  module.def((start + "held_across").c_str(), &run<Engine, kRows, kColumns, false, false, true>);
  module.def((start + "held_down").c_str(), &run<Engine, kRows, kColumns, false, true, true>);
}

#ifndef __CUDACC__
// What wgmma does not allow, one at a time, each of which the emulation has to notice; 0 is as it should be.
__global__ void break_a_rule(int rule) {
  using Engine = Wgmma<BFloat16>;
  const Tile<Engine, 128, 32> left(tile_memory());
  const Tile<Engine, 32, 256> right(tile_memory() + left.kBytes);
  const auto thread = static_cast<int>(threadIdx.x);
  const float one[8] = {1, 1, 1, 1, 1, 1, 1, 1};
  for (int i = thread; i < 128 * 4; i += kTileThreads) write_8(left, i / 4, i % 4 * 8, one);
  for (int i = thread; i < 32 * 32; i += kTileThreads) write_8(right, i / 32, i % 32 * 8, one);
  if (rule == 1) __syncthreads();
  if (rule != 2) show_to_wgmma();
  if (rule != 1) __syncthreads();
  Sums<Engine, 128, 256> sums;
  if (rule != 3) begin_products();
  if (rule == 4 && thread / 32 == 3) return;
  sums.add_product(depth_across(left), 0, depth_down(right));
  end_products();
  if (rule == 5 && thread == 0) *right.at(31, 255) = BFloat16{0};
  if (rule == 6) sums.clear();
  if (rule == 7) return;
  wait_for_products<0>();
  sums.each([&](int, int, float& x, float& y) {
    if (x != 32.0F || y != 32.0F) throw std::logic_error("a wrong sum");
  });
}
#endif

}  // namespace

PYBIND11_MODULE(XMPLUG_MODULE, module) {
  add<Mma<BFloat16>, 64, 256>(module, "mma_bfloat16");
  add<Mma<BFloat16>, 128, 128>(module, "mma_bfloat16");
  add<Mma<Half>, 64, 256>(module, "mma_float16");
  add<Wgmma<BFloat16>, 128, 256>(module, "wgmma_bfloat16");
  add<Wgmma<BFloat16>, 128, 128>(module, "wgmma_bfloat16");
  add<Wgmma<Half>, 128, 256>(module, "wgmma_float16");
  add<Wgmma<Half>, 128, 128>(module, "wgmma_float16");
#ifndef __CUDACC__
  module.def("break_a_rule",
             [](int rule) { launch(break_a_rule, 1, kTileThreads, size_t{(128 + 256) * 32 * 2}, nullptr, rule); });
#endif
}
