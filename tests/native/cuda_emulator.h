// A CUDA block in plain C++: one thread per CUDA thread, real barriers. It shows wrong results and, under a thread
// sanitizer, missing barriers; not what belongs to a device: launches, alignment, speed.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#define __device__
#define __global__
#define __launch_bounds__(threads)
#define __shared__ static

struct Index {
    unsigned x;
};
inline thread_local Index threadIdx, blockIdx;
inline Index gridDim;

class Barrier {
  public:
    explicit Barrier(int count) : count_(count), waiting_(0), turn_(0) {}
    void wait() {
        std::unique_lock<std::mutex> lock(mutex_);
        const int turn = turn_;
        if (++waiting_ == count_) {
            waiting_ = 0;
            ++turn_;
            all_here_.notify_all();
        } else {
            all_here_.wait(lock, [&] { return turn != turn_; });
        }
    }

  private:
    std::mutex mutex_;
    std::condition_variable all_here_;
    int count_, waiting_, turn_;
};

struct Warp {
    Barrier barrier{32};
    int values[32];
};
inline std::unique_ptr<Barrier> block_barrier;
inline std::vector<std::unique_ptr<Warp>> warps;

inline void __syncthreads() { block_barrier->wait(); }

inline int __shfl_up_sync(unsigned, int value, int step) {
    Warp& warp = *warps[threadIdx.x / 32];
    const int lane = threadIdx.x % 32;
    warp.values[lane] = value;
    warp.barrier.wait();
    const int result = warp.values[lane >= step ? lane - step : lane];
    warp.barrier.wait();
    return result;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

// Run `kernel` in `grid` blocks of `threads` threads, block after block.
template <class Kernel>
void emulate(unsigned grid, unsigned threads, Kernel kernel) {
    gridDim.x = grid;
    block_barrier = std::make_unique<Barrier>(threads);
    warps.clear();
    for (unsigned warp = 0; warp < threads / 32; ++warp) warps.push_back(std::make_unique<Warp>());
    for (unsigned block = 0; block < grid; ++block) {
        std::vector<std::thread> running;
        for (unsigned thread = 0; thread < threads; ++thread) {
            running.emplace_back([=] {
                threadIdx.x = thread;
                blockIdx.x = block;
                kernel();
            });
        }
        for (std::thread& thread : running) thread.join();
    }
}
