// The kernels for any CPU of the architecture that the extension is compiled for.
#include "../plan.h"

#define LADDER_ISA baseline
#include "backward.h"
#include "forward.h"
#include "noise.h"

namespace ladder_kernels::cpu {
const Kernels baseline_kernels{baseline::forward, baseline::backward, baseline::scratch_size, baseline::twist, baseline::normal<double>};
}
