// What all kernels share: the shape of a block, its shared memory, and a prefix sum over its threads.
#pragma once

#include <cuda_runtime.h>

namespace mmbdhs {

constexpr int WARP = 32;
constexpr int THREADS = 128;
constexpr int WARPS = THREADS / WARP;
constexpr unsigned FULL_WARP = 0xFFFFFFFFu;  // the mask of all lanes of a warp

// Its size is set by the launch.
alignas(16) extern __shared__ unsigned char shared_memory[];

namespace {

struct Scan {
    int before;  // sum over the threads before this one
    int total;   // sum over the block
};

// The shared memory of block_scan.
struct WarpSums {
    int of[WARPS];
};

// Prefix sum over the block; every thread must call it.
__device__ Scan block_scan(int value, WarpSums& sums) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int inclusive = value;
    for (int step = 1; step < WARP; step *= 2) {
        const int other = __shfl_up_sync(FULL_WARP, inclusive, step);
        if (lane >= step) inclusive += other;
    }
    if (lane == WARP - 1) sums.of[warp] = inclusive;
    __syncthreads();
    Scan scan = {inclusive - value, 0};
    for (int w = 0; w < WARPS; ++w) {
        if (w < warp) scan.before += sums.of[w];
        scan.total += sums.of[w];
    }
    __syncthreads();  // the next call overwrites the sums
    return scan;
}

}  // namespace
}  // namespace mmbdhs
