// Marks what the CPU and CUDA kernels share; nothing to a C++ compiler.
#pragma once

#if defined(__CUDACC__)
#define ONESHOT_HOST_DEVICE __host__ __device__
#else
#define ONESHOT_HOST_DEVICE
#endif
