// The kernel behind image_mask.cu, apart from its launch: without a device, the tests run it under an emulator.
#pragma once

#include "image_mask.h"

namespace mmbdhs {
namespace {

constexpr int WARP = 32;
constexpr int THREADS = 128;
constexpr int WARPS = THREADS / WARP;
constexpr unsigned ALL_LANES = 0xFFFFFFFFu;

struct Scan {
    int before;  // sum over the threads before this one
    int total;   // sum over the block
};

// Prefix sum over the block; every thread must call it. `warp_sums` is shared memory of WARPS words.
__device__ Scan block_scan(int value, int* warp_sums) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int inclusive = value;
    for (int step = 1; step < WARP; step *= 2) {
        const int other = __shfl_up_sync(ALL_LANES, inclusive, step);
        if (lane >= step) inclusive += other;
    }
    if (lane == WARP - 1) warp_sums[warp] = inclusive;
    __syncthreads();
    Scan scan = {inclusive - value, 0};
    for (int w = 0; w < WARPS; ++w) {
        if (w < warp) scan.before += warp_sums[w];
        scan.total += warp_sums[w];
    }
    __syncthreads();  // the next call writes warp_sums
    return scan;
}

// One block of threads per example, four tokens per thread and turn. Writes counts if `counts` is given, else indices.
__global__ __launch_bounds__(THREADS) void visible_kernel(uint64_t seed, const int64_t* keys, uint32_t iteration,
                                                          const int32_t* tokens, int64_t examples,
                                                          uint64_t visible_from, int64_t* counts,
                                                          const int64_t* offsets, int32_t* indices) {
    __shared__ int warp_sums[WARPS];
    for (int64_t example = blockIdx.x; example < examples; example += gridDim.x) {
        const Address at = address(seed, keys[example], IMAGE_MASK, iteration, 0);
        const int32_t here = tokens[example];
        const int64_t blocks = (int64_t{here} + LANES - 1) / LANES;
        int64_t reached = counts ? 0 : offsets[example];
        for (int64_t first = 0; first < blocks; first += THREADS) {
            const int64_t block = first + threadIdx.x;
            const uint32_t bits = block < blocks ? visible_bits(at, uint32_t(block), here, visible_from) : 0;
            const Scan scan = block_scan(__popc(bits), warp_sums);
            int64_t place = reached + scan.before;
            for (int lane = 0; lane < LANES && !counts; ++lane) {
                if (bits >> lane & 1) indices[place++] = int32_t(LANES * block + lane);
            }
            reached += scan.total;
        }
        if (counts && threadIdx.x == 0) counts[example] = reached;
    }
}

}  // namespace
}  // namespace mmbdhs
