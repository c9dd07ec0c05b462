// A CUDA device in plain C++. Every thread of a block is a fibre, which runs until it must wait for others; a schedule
// chooses which one continues. The emulator shows wrong results, barriers that are missing or never completed, wide
// loads that are not aligned, and writes past the shared memory. It cannot show races within a warp, or speed.
#pragma once

#include <math.h>
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#define __device__
#define __global__
#define __shared__
#define __launch_bounds__(...)
#define __syncthreads() emulator::device.wait_at(__FILE__, __LINE__)
#define __builtin_assume_aligned(address, bytes) emulator::device.aligned(address, bytes)

struct Index {
    unsigned x;
};
inline Index threadIdx, blockIdx;

namespace mmbdhs {
constexpr size_t SHARED_LIMIT = 48 * 1024;
alignas(16) inline unsigned char shared_memory[SHARED_LIMIT];
}  // namespace mmbdhs

namespace emulator {

constexpr int WARP = 32;
constexpr unsigned char POISON = 0xFF;  // NaN as a float, -1 as an integer

enum Schedule : int { ASCENDING, DESCENDING, RANDOM };

struct Barrier {
    int needed = 0, arrived = 0, line = 0;
};

struct Fibre {
    static constexpr size_t STACK = 256 * 1024;
    std::unique_ptr<char[]> stack{new char[STACK]};
    ucontext_t entry;
    jmp_buf state;
    bool started, done;
    const Barrier* waits;
    int exchanges;
};

class Device {
  public:
    int schedule = ASCENDING;
    std::string removed;  // "file:line" of a barrier that is skipped
    std::string error;    // of the last launch
    void* stream = nullptr;

    // Runs the kernel, one block after another. Returns false if an error ended it.
    bool launch(unsigned blocks, unsigned threads, size_t shared_bytes, const std::function<void()>& kernel) {
        kernel_ = &kernel;
        error = shared_bytes > mmbdhs::SHARED_LIMIT ? "too much shared memory" : "";
        for (blockIdx.x = 0; blockIdx.x < blocks && error.empty(); ++blockIdx.x) run_block(int(threads), shared_bytes);
        return error.empty();
    }

    void wait_at(const char* file, int line) {
        const std::string path = file;
        if (removed != path.substr(path.rfind('/') + 1) + ":" + std::to_string(line)) wait(block_, line);
    }

    template <class T>
    T* aligned(T* address, size_t bytes) {
        if (reinterpret_cast<uintptr_t>(address) % bytes != 0) fail("a wide access is not aligned");
        return address;
    }

    // Returns what each lane of the warp gives. Two sets of slots alternate, so that no lane overwrites a value that
    // another has not read yet.
    template <class V>
    std::array<V, WARP> exchange(const V& mine) {
        static_assert(sizeof(V) <= sizeof(Slot));
        Warp& warp = warps_[threadIdx.x / WARP];
        auto& slots = warp.slots[fibres_[threadIdx.x].exchanges++ % 2];
        std::memcpy(&slots[threadIdx.x % WARP], &mine, sizeof mine);
        wait(warp.barrier, 0);
        std::array<V, WARP> all;
        for (int lane = 0; lane < WARP; ++lane) std::memcpy(&all[lane], &slots[lane], sizeof mine);
        return all;
    }

  private:
    using Slot = std::array<uint32_t, 6>;
    struct Warp {
        Barrier barrier{WARP};
        std::array<std::array<Slot, WARP>, 2> slots;
    };

    void run_block(int threads, size_t shared_bytes) {
        unsigned char* const shared = mmbdhs::shared_memory;
        std::memset(shared, POISON, mmbdhs::SHARED_LIMIT);
        block_ = {threads};
        warps_.assign(threads / WARP, {});
        fibres_.resize(threads);
        for (Fibre& fibre : fibres_) prepare(fibre);
        if (_setjmp(host_) == 0) resume();
        const bool overrun = std::any_of(shared + shared_bytes, shared + mmbdhs::SHARED_LIMIT,
                                         [](unsigned char byte) { return byte != POISON; });
        if (overrun && error.empty()) error = "shared memory was written past its end";
    }

    void prepare(Fibre& fibre) {
        fibre.started = fibre.done = false;
        fibre.waits = nullptr;
        fibre.exchanges = 0;
        getcontext(&fibre.entry);
        fibre.entry.uc_stack.ss_sp = fibre.stack.get();
        fibre.entry.uc_stack.ss_size = Fibre::STACK;
        makecontext(&fibre.entry, &Device::enter, 0);
    }

    static void enter();

    void wait(Barrier& barrier, int line) {
        if (barrier.arrived > 0 && barrier.line != line) fail("threads wait at different barriers");
        barrier.line = line;
        Fibre& self = fibres_[threadIdx.x];
        self.waits = &barrier;
        if (++barrier.arrived == barrier.needed) {
            barrier.arrived = 0;
            for (Fibre& fibre : fibres_) {
                if (fibre.waits == &barrier) fibre.waits = nullptr;
            }
        }
        if (_setjmp(self.state) == 0) resume();
    }

    // Continues with the next thread of the schedule, or with the host if no thread can run.
    [[noreturn]] void resume() {
        const unsigned count = unsigned(fibres_.size()), start = schedule == RANDOM ? random_() % count : 0;
        bool all_done = true;
        for (unsigned i = 0; i < count; ++i) {
            const unsigned thread = schedule == DESCENDING ? count - 1 - i : (start + i) % count;
            Fibre& fibre = fibres_[thread];
            all_done &= fibre.done;
            if (fibre.done || fibre.waits) continue;
            threadIdx.x = thread;
            if (fibre.started) _longjmp(fibre.state, 1);
            fibre.started = true;
            setcontext(&fibre.entry);
        }
        if (!all_done) error = "a barrier was never completed";
        _longjmp(host_, 1);
    }

    [[noreturn]] void fail(const char* what) {
        error = what;
        _longjmp(host_, 1);
    }

    const std::function<void()>* kernel_;
    std::vector<Fibre> fibres_;
    std::vector<Warp> warps_;
    Barrier block_;
    jmp_buf host_;
    std::minstd_rand random_{1};
};

inline Device device;

inline void Device::enter() {
    (*device.kernel_)();
    device.fibres_[threadIdx.x].done = true;
    device.resume();
}

}  // namespace emulator

template <class T>
T min(T a, T b) {
    return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
    return a < b ? b : a;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __shfl_up_sync(unsigned, int value, int step) {
    const int lane = threadIdx.x % emulator::WARP;
    return emulator::device.exchange(value)[lane >= step ? lane - step : lane];
}
inline float __shfl_xor_sync(unsigned, float value, int mask) {
    return emulator::device.exchange(value)[threadIdx.x % emulator::WARP ^ unsigned(mask)];
}

namespace mmbdhs {

// The warp-wide products of csrc/attention/cuda/tensor_cores.cuh, as the tables of the PTX manual define them.
template <class T>
void multiply_add(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    const auto lanes = emulator::device.exchange(std::array<uint32_t, 6>{a[0], a[1], a[2], a[3], b[0], b[1]});
    const auto element = [&](int group, int k, int first) {
        T pair[2];
        std::memcpy(pair, &lanes[group * 4 + k % 8 / 2][first], sizeof pair);
        return float(pair[k % 2]);
    };
    const int lane = threadIdx.x % emulator::WARP;
    for (int i = 0; i < 4; ++i) {
        const int high = i / 2, column = lane % 4 * 2 + i % 2;  // the place of the element c[i]
        for (int k = 0; k < 16; ++k) c[i] += element(lane / 4, k, high + k / 8 * 2) * element(column, k, 4 + k / 8);
    }
}

template <class T>
void load_transposed(uint32_t (&b)[2], const T* row) {
    const auto rows = emulator::device.exchange(emulator::device.aligned(row, 16));
    const int lane = threadIdx.x % emulator::WARP;
    for (int i = 0; i < 2; ++i) {
        const T pair[2] = {rows[8 * i + lane % 4 * 2][lane / 4], rows[8 * i + lane % 4 * 2 + 1][lane / 4]};
        std::memcpy(&b[i], pair, sizeof pair);
    }
}

}  // namespace mmbdhs
