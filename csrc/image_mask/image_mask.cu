#include "cuda/launch.cuh"
#include "image_mask/image_mask_kernel.cuh"

namespace mmbdhs {
namespace {

void launch_visible(uint64_t seed, const int64_t* keys, uint32_t iteration, const int32_t* tokens, int64_t examples,
                    uint64_t visible_from, int64_t* counts, const int64_t* offsets, int32_t* indices, void* stream) {
    launch("sample_visible", examples, sizeof(WarpSums), stream, visible_kernel, seed, keys, iteration, tokens,
           visible_from, counts, offsets, indices);
}

}  // namespace

void count_visible_cuda(uint64_t seed, const int64_t* keys, uint32_t iteration, const int32_t* tokens, int64_t examples,
                        uint64_t visible_from, int64_t* counts, void* stream) {
    launch_visible(seed, keys, iteration, tokens, examples, visible_from, counts, nullptr, nullptr, stream);
}

void write_visible_cuda(uint64_t seed, const int64_t* keys, uint32_t iteration, const int32_t* tokens, int64_t examples,
                        uint64_t visible_from, const int64_t* offsets, int32_t* indices, void* stream) {
    launch_visible(seed, keys, iteration, tokens, examples, visible_from, nullptr, offsets, indices, stream);
}

}  // namespace mmbdhs
