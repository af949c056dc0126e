// Stands in for the CUDA toolkit's.
#pragma once

using cudaStream_t = void*;
