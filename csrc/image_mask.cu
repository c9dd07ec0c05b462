#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "image_mask_kernel.cuh"

namespace mmbdhs {
namespace {

constexpr int64_t MAX_GRID = 1 << 16;

void launch(uint64_t seed, const int64_t* keys, uint32_t iteration, const int32_t* tokens, int64_t examples,
            uint64_t visible_from, int64_t* counts, const int64_t* offsets, int32_t* indices, void* stream) {
    if (examples == 0) return;
    const auto grid = unsigned(std::min(examples, MAX_GRID));
    visible_kernel<<<grid, THREADS, 0, static_cast<cudaStream_t>(stream)>>>(seed, keys, iteration, tokens, examples,
                                                                            visible_from, counts, offsets, indices);
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess)
        throw std::runtime_error(std::string("sample_visible: CUDA launch failed: ") + cudaGetErrorString(error));
}

}  // namespace

void count_visible_cuda(uint64_t seed, const int64_t* keys, uint32_t iteration, const int32_t* tokens, int64_t examples,
                        uint64_t visible_from, int64_t* counts, void* stream) {
    launch(seed, keys, iteration, tokens, examples, visible_from, counts, nullptr, nullptr, stream);
}

void write_visible_cuda(uint64_t seed, const int64_t* keys, uint32_t iteration, const int32_t* tokens, int64_t examples,
                        uint64_t visible_from, const int64_t* offsets, int32_t* indices, void* stream) {
    launch(seed, keys, iteration, tokens, examples, visible_from, nullptr, offsets, indices, stream);
}

}  // namespace mmbdhs
