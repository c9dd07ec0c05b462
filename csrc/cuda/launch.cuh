// Checked launches on the current device.
#pragma once

#include <cuda_runtime.h>

#include <climits>
#include <stdexcept>
#include <string>

#include "cuda/block.cuh"

namespace mmbdhs {
namespace {

constexpr size_t LITTLE_SHARED_MEMORY = 16 * 1024;  // bytes that a block gets without asking

// Allows a kernel blocks with so much shared memory, and prefers shared memory to cache on its multiprocessors.
template <class Kernel>
cudaError_t allow_shared_memory(Kernel kernel, size_t bytes) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
    if (error != cudaSuccess) return error;
    return cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
}

// Launches `blocks` blocks of THREADS threads with `shared_bytes` of shared memory each on `stream` (a cudaStream_t).
// Throws std::runtime_error with the name of the op if the launch fails.
template <class... Parameters, class... Arguments>
void launch(const char* op, int64_t blocks, size_t shared_bytes, void* stream, void (*kernel)(Parameters...),
            const Arguments&... arguments) {
    if (blocks == 0) return;
    if (blocks > INT_MAX)
        throw std::runtime_error(std::string(op) + ": needs at most 2^31 - 1 blocks, got " + std::to_string(blocks));
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(unsigned(blocks));
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = static_cast<cudaStream_t>(stream);
    cudaError_t error = cudaSuccess;
    if (shared_bytes > LITTLE_SHARED_MEMORY) error = allow_shared_memory(kernel, shared_bytes);
    if (error == cudaSuccess) error = cudaLaunchKernelEx(&config, kernel, arguments...);
    if (error != cudaSuccess)
        throw std::runtime_error(std::string(op) + ": CUDA launch failed: " + cudaGetErrorString(error));
}

}  // namespace
}  // namespace mmbdhs
