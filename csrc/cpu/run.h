// The kernels of this CPU, on torch's threads.
#pragma once

#include "plan.h"

namespace ladder_kernels::cpu {

void run(const Forward& call, std::int64_t units);
void run(const Backward& call, std::int64_t units);

}  // namespace ladder_kernels::cpu
