#include "cuda_emulator.h"
#include "image_mask_kernel.cuh"

extern "C" void visible(uint64_t seed, const int64_t* keys, uint32_t iteration, const int32_t* tokens, int64_t examples,
                        uint64_t visible_from, int64_t* counts, const int64_t* offsets, int32_t* indices,
                        unsigned grid) {
    emulate(grid, mmbdhs::THREADS, [=] {
        mmbdhs::visible_kernel(seed, keys, iteration, tokens, examples, visible_from, counts, offsets, indices);
    });
}
