// The kernel that image_mask.cu launches.
#pragma once

#include <new>

#include "cuda/block.cuh"
#include "image_mask/image_mask.h"

namespace mmbdhs {
namespace {

// One block for each example; a thread takes four tokens at a time. Writes counts if `counts` is given, else indices.
__global__ __launch_bounds__(THREADS) void visible_kernel(uint64_t seed, const int64_t* keys, uint32_t iteration,
                                                          const int32_t* tokens, uint64_t visible_from, int64_t* counts,
                                                          const int64_t* offsets, int32_t* indices) {
    WarpSums& sums = *new (shared_memory) WarpSums;
    const int64_t example = blockIdx.x;
    const Address at = address(seed, keys[example], IMAGE_MASK, iteration, 0);
    const int32_t here = tokens[example];
    const int64_t draws = (int64_t{here} + BLOCK_WORDS - 1) / BLOCK_WORDS;
    int64_t reached = counts ? 0 : offsets[example];
    for (int64_t first = 0; first < draws; first += THREADS) {
        const int64_t draw = first + threadIdx.x;
        const uint32_t bits = draw < draws ? visible_bits(at, uint32_t(draw), here, visible_from) : 0;
        const Scan scan = block_scan(__popc(bits), sums);
        int64_t place = reached + scan.before;
        for (int word = 0; word < BLOCK_WORDS && !counts; ++word) {
            if (bits >> word & 1) indices[place++] = int32_t(BLOCK_WORDS * draw + word);
        }
        reached += scan.total;
    }
    if (counts && threadIdx.x == 0) counts[example] = reached;
}

}  // namespace
}  // namespace mmbdhs
