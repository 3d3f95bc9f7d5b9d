// The kernels in AVX-512 with bfloat16 products; compiled with flags of its own.
#include "simd_attention.h"
#include "simd_bce.h"
#include "simd_beam.h"
#include "simd_linear.h"
