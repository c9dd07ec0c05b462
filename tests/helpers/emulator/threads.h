// The threads of a block as threads of the host, with real barriers, so that the thread sanitizer sees what races. A group
// of copies is carried out by one more thread, from the moment when it is committed.
#pragma once

#include <pthread.h>

#include <cstdio>
#include <cstdlib>
#include <thread>

#include "cuda_emulator.h"

inline thread_local Index threadIdx;

namespace emulator {

class Barrier {
  public:
    explicit Barrier(int count) { pthread_barrier_init(&barrier_, nullptr, unsigned(count)); }
    ~Barrier() { pthread_barrier_destroy(&barrier_); }
    Barrier(const Barrier&) = delete;
    void wait() { pthread_barrier_wait(&barrier_); }

  private:
    pthread_barrier_t barrier_;
};

// What a thread keeps to itself.
struct Own {
    int exchanges = 0, votes = 0;
    std::vector<Copy> copies;
    std::vector<std::thread> on_their_way;
};
inline thread_local Own own;

class Device {
  public:
    std::string error;
    void* stream = nullptr;

    // Runs the kernel, one block after another.
    bool launch(unsigned blocks, unsigned threads, size_t shared_bytes, const std::function<void()>& kernel) {
        for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
            poison_shared_memory();
            std::vector<std::thread> running;
            for (unsigned thread = 0; thread < threads; ++thread)
                running.emplace_back([thread, &kernel] {
                    threadIdx.x = thread;
                    kernel();
                });
            for (std::thread& thread : running) thread.join();
            if (!is_poisoned_from(shared_bytes)) fail("shared memory was written past its end");
        }
        return true;
    }

    void wait_at(const char*, int) { block_.wait(); }

    bool vote_at(const char*, int, bool value) {
        const int turn = own.votes++;
        votes_.give(turn, threadIdx.x, value);
        block_.wait();
        const auto all = votes_.all<bool>(turn);
        return std::any_of(all.begin(), all.end(), [](bool vote) { return vote; });
    }

    template <class V>
    std::array<V, WARP> exchange(const V& mine) {
        Warp& warp = warps_[threadIdx.x / WARP];
        const int turn = own.exchanges++;
        warp.values.give(turn, threadIdx.x % WARP, mine);
        warp.barrier.wait();
        return warp.values.template all<V>(turn);
    }

    void copy(const Copy& copy) { own.copies.push_back(copy); }

    void commit_copies() {
        own.on_their_way.emplace_back([copies = std::move(own.copies)] {
            for (const Copy& copy : copies) copy.land();
        });
        own.copies.clear();
    }

    void await_copies_at(const char*, int) {
        for (std::thread& group : own.on_their_way) group.join();
        own.on_their_way.clear();
    }

    [[noreturn]] void fail(const char* what) {
        std::fprintf(stderr, "%s\n", what);
        std::abort();
    }

  private:
    struct Warp {
        Barrier barrier{WARP};
        Exchange<WARP> values;
    };
    std::array<Warp, MAX_THREADS / WARP> warps_;
    Exchange<MAX_THREADS> votes_;
    Barrier block_{MAX_THREADS};
};

inline Device device;

}  // namespace emulator
