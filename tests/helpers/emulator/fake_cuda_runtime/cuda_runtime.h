// The part of the CUDA runtime that launches use, on the emulator.
#pragma once

#include "../cuda_emulator.h"

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1) : x(x), y(1), z(1) {}
};
using cudaStream_t = void*;
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
};
enum cudaError_t { cudaSuccess, cudaErrorLaunchFailure = 719 };

inline const char* cudaGetErrorString(cudaError_t) { return emulator::device.error.c_str(); }

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
    emulator::device.stream = config->stream;
    const bool done = emulator::device.launch(config->gridDim.x, config->blockDim.x, config->dynamicSmemBytes,
                                              [&] { kernel(arguments...); });
    return done ? cudaSuccess : cudaErrorLaunchFailure;
}
