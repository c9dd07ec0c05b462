// The part of the CUDA runtime that launches use, on the emulator.
#pragma once

#include <cstdlib>
#include <map>

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
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorLaunchFailure = 719 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize, cudaFuncAttributePreferredSharedMemoryCarveout };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
constexpr int cudaSharedmemCarveoutMaxShared = 100;

inline const char* cudaGetErrorString(cudaError_t) { return emulator::device.error.c_str(); }

namespace emulator {

inline std::map<const void*, size_t> allowed_shared_bytes;  // of each kernel that has asked for more than usual

template <class Kernel>
const void* address(Kernel* kernel) {
    return reinterpret_cast<const void*>(kernel);
}

}  // namespace emulator

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute attribute, int value) {
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (size_t(value) > mmbdhs::SHARED_LIMIT) return cudaErrorInvalidValue;
    emulator::allowed_shared_bytes[emulator::address(kernel)] = size_t(value);
    return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
    emulator::device.stream = config->stream;
    const auto allowed = emulator::allowed_shared_bytes.find(emulator::address(kernel));
    const bool asked = allowed != emulator::allowed_shared_bytes.end();
    if (config->dynamicSmemBytes > (asked ? allowed->second : emulator::SHARED_WITHOUT_ASKING)) {
        emulator::device.error = "more shared memory than the kernel was allowed";
        return cudaErrorInvalidValue;
    }
    const bool done = emulator::device.launch(config->gridDim.x, config->blockDim.x, config->dynamicSmemBytes,
                                              [&] { kernel(arguments...); });
    return done ? cudaSuccess : cudaErrorLaunchFailure;
}

inline cudaError_t cudaMalloc(void** address, size_t bytes) {
    *address = std::malloc(bytes);
    return cudaSuccess;
}
inline cudaError_t cudaFree(void* address) {
    std::free(address);
    return cudaSuccess;
}
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
    std::memcpy(to, from, bytes);
    return cudaSuccess;
}
