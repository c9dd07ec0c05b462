// A CUDA device in plain C++. The threads of a block are fibres (fibres.h) or, with MMBDHS_EMULATE_WITH_THREADS, threads
// (threads.h). Shared memory begins as NaN, and the emulator shows wide accesses that are not aligned and writes past
// the shared memory.
#pragma once

#include <math.h>

#include <algorithm>
#include <array>
#include <climits>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#define __device__
#define __global__
#define __shared__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __syncthreads() emulator::device.wait_at(__FILE__, __LINE__)
#define __syncthreads_or(value) emulator::device.vote_at(__FILE__, __LINE__, value)
#define wait_for_copies() emulator::device.await_copies_at(__FILE__, __LINE__)
#define __builtin_assume_aligned(address, bytes) emulator::aligned(address, bytes)

struct Index {
    unsigned x;
};
inline Index blockIdx;

namespace mmbdhs {
constexpr size_t SHARED_LIMIT = 99 * 1024;  // the least that an architecture from sm_80 on gives a block that asks
alignas(16) inline unsigned char shared_memory[SHARED_LIMIT];
}  // namespace mmbdhs

namespace emulator {

constexpr int WARP = 32, MAX_THREADS = 128;
constexpr size_t SHARED_WITHOUT_ASKING = 48 * 1024;
constexpr unsigned char POISON = 0xFF;  // NaN as a float, -1 as an integer

// Sixteen bytes on their way, or zeros if they come from nowhere.
struct Copy {
    void* to;
    const void* from;

    void land() const {
        if (from) {
            std::memcpy(to, from, 16);
        } else {
            std::memset(to, 0, 16);
        }
    }
};

// What the threads of a group give each other. Two sets of slots take turns, so that no thread overwrites a value that
// another has not read yet.
template <int COUNT>
class Exchange {
  public:
    static constexpr size_t BYTES = 24;
    template <class V>
    void give(int turn, int member, const V& value) {
        static_assert(sizeof(V) <= BYTES);
        std::memcpy(slots_[turn % 2][member].data(), &value, sizeof value);
    }
    template <class V>
    std::array<V, COUNT> all(int turn) const {
        std::array<V, COUNT> values;
        for (int i = 0; i < COUNT; ++i) std::memcpy(&values[i], slots_[turn % 2][i].data(), sizeof(V));
        return values;
    }

  private:
    std::array<std::array<std::array<unsigned char, BYTES>, COUNT>, 2> slots_ = {};
};

// Whether "file:line" is this place.
inline bool is_place(const std::string& place, const std::string& path, int line) {
    return place == path.substr(path.rfind('/') + 1) + ":" + std::to_string(line);
}

// Poisons the shared memory before a block runs, and tells afterwards whether the bytes from `used` on are still so.
inline void poison_shared_memory() { std::memset(mmbdhs::shared_memory, POISON, mmbdhs::SHARED_LIMIT); }
inline bool is_poisoned_from(size_t used) {
    return std::all_of(mmbdhs::shared_memory + used, mmbdhs::shared_memory + mmbdhs::SHARED_LIMIT,
                       [](unsigned char byte) { return byte == POISON; });
}

}  // namespace emulator

#ifdef MMBDHS_EMULATE_WITH_THREADS
#include "threads.h"
#else
#include "fibres.h"
#endif

namespace emulator {

template <class T>
T* aligned(T* address, size_t bytes) {
    if (reinterpret_cast<uintptr_t>(address) % bytes != 0) device.fail("a wide access is not aligned");
    return address;
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
inline unsigned __ballot_sync(unsigned, bool value) {
    const auto all = emulator::device.exchange(value);
    unsigned bits = 0;
    for (int lane = 0; lane < emulator::WARP; ++lane) bits |= unsigned(all[lane]) << lane;
    return bits;
}
inline unsigned __match_any_sync(unsigned, int value) {
    const auto all = emulator::device.exchange(value);
    unsigned bits = 0;
    for (int lane = 0; lane < emulator::WARP; ++lane) bits |= unsigned(all[lane] == value) << lane;
    return bits;
}
// Over the lanes of the mask; lanes with different masks may call it together.
template <class Pick>
int reduce_sync(unsigned mask, int value, const Pick& pick) {
    const auto all = emulator::device.exchange(value);
    for (int lane = 0; lane < emulator::WARP; ++lane) {
        if (mask >> lane & 1) value = pick(value, all[lane]);
    }
    return value;
}
inline int __reduce_max_sync(unsigned mask, int value) { return reduce_sync(mask, value, max<int>); }
inline int __reduce_min_sync(unsigned mask, int value) { return reduce_sync(mask, value, min<int>); }
inline int __shfl_up_sync(unsigned, int value, int step) {
    const int lane = threadIdx.x % emulator::WARP;
    return emulator::device.exchange(value)[lane >= step ? lane - step : lane];
}
inline float __shfl_xor_sync(unsigned, float value, int mask) {
    return emulator::device.exchange(value)[threadIdx.x % emulator::WARP ^ unsigned(mask)];
}

namespace mmbdhs {

// The copies of csrc/attention/cuda/async_copies.cuh.
inline void copy_chunk(void* to, const void* from, bool there) {
    emulator::device.copy({emulator::aligned(to, 16), there ? emulator::aligned(from, 16) : nullptr});
}
inline void commit_copies() { emulator::device.commit_copies(); }

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
    const auto rows = emulator::device.exchange(emulator::aligned(row, 16));
    const int lane = threadIdx.x % emulator::WARP;
    for (int i = 0; i < 2; ++i) {
        const T pair[2] = {rows[8 * i + lane % 4 * 2][lane / 4], rows[8 * i + lane % 4 * 2 + 1][lane / 4]};
        std::memcpy(&b[i], pair, sizeof pair);
    }
}

}  // namespace mmbdhs
