// The kernels in what every processor has; compiled with flags of its own.
#include "simd.h"
#include "simd_beam.h"
