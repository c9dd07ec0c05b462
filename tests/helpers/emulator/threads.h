// The threads of a block as threads of the host, with real barriers, so that the thread sanitizer sees what races. Each
// has a second thread, which carries out its copies from the moment when they are committed.
#pragma once

#include <pthread.h>
#include <semaphore.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
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

class Signal {
  public:
    Signal() { sem_init(&semaphore_, 0, 0); }
    ~Signal() { sem_destroy(&semaphore_); }
    Signal(const Signal&) = delete;
    void give() { sem_post(&semaphore_); }
    void wait() { sem_wait(&semaphore_); }

  private:
    sem_t semaphore_;
};

// A thread's copies: those of the group that is still open, and the one group that may be on its way.
class Copies {
  public:
    Copies() : thread_([this] { carry_out(); }) {}
    ~Copies() {
        stopped_ = true;
        committed_.give();
        thread_.join();
    }

    void add(const Copy& copy) { open_.push_back(copy); }

    void commit() {
        wait();
        group_.swap(open_);
        on_their_way_ = true;
        committed_.give();
    }

    void wait() {
        if (on_their_way_) done_.wait();
        on_their_way_ = false;
    }

  private:
    void carry_out() {
        for (committed_.wait(); !stopped_; committed_.wait()) {
            for (const Copy& copy : group_) copy.land();
            group_.clear();
            done_.give();
        }
    }

    std::vector<Copy> open_, group_;
    bool on_their_way_ = false, stopped_ = false;
    Signal committed_, done_;
    std::thread thread_;
};

// What a thread keeps to itself.
struct Own {
    int exchanges = 0, votes = 0;
    Copies copies;
};
inline thread_local std::unique_ptr<Own> own;

class Device {
  public:
    std::string error;
    void* stream = nullptr;

    Device() {
        for (unsigned thread = 0; thread < MAX_THREADS; ++thread)
            threads_.emplace_back([this, thread] {
                threadIdx.x = thread;
                own = std::make_unique<Own>();
                for (begin_.wait(); kernel_; begin_.wait()) {
                    (*kernel_)();
                    end_.wait();
                }
                own.reset();
            });
    }

    ~Device() {
        kernel_ = nullptr;
        begin_.wait();
        for (std::thread& thread : threads_) thread.join();
    }

    // Runs the kernel with MAX_THREADS threads, one block after another.
    bool launch(unsigned blocks, unsigned, size_t shared_bytes, const std::function<void()>& kernel) {
        kernel_ = &kernel;
        for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
            poison_shared_memory();
            begin_.wait();
            end_.wait();
            if (!is_poisoned_from(shared_bytes)) fail("shared memory was written past its end");
        }
        return true;
    }

    void wait_at(const char* file, int line) {
        if (!is_place(removed_, file, line)) block_.wait();
    }

    bool vote_at(const char* file, int line, bool value) {
        const int turn = own->votes++;
        votes_.give(turn, threadIdx.x, value);
        wait_at(file, line);
        const auto all = votes_.all<bool>(turn);
        return std::any_of(all.begin(), all.end(), [](bool vote) { return vote; });
    }

    template <class V>
    std::array<V, WARP> exchange(const V& mine) {
        Warp& warp = warps_[threadIdx.x / WARP];
        const int turn = own->exchanges++;
        warp.values.give(turn, threadIdx.x % WARP, mine);
        warp.barrier.wait();
        return warp.values.template all<V>(turn);
    }

    void copy(const Copy& copy) { own->copies.add(copy); }
    void commit_copies() { own->copies.commit(); }
    void await_copies_at(const char* file, int line) {
        if (!is_place(removed_, file, line)) own->copies.wait();
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
    // The environment names a place "file:line" that is skipped, to show that this is noticed.
    const std::string removed_ = std::getenv("MMBDHS_REMOVED") ? std::getenv("MMBDHS_REMOVED") : "";
    std::array<Warp, MAX_THREADS / WARP> warps_;
    Exchange<MAX_THREADS> votes_;
    Barrier block_{MAX_THREADS}, begin_{MAX_THREADS + 1}, end_{MAX_THREADS + 1};
    const std::function<void()>* kernel_ = nullptr;
    std::vector<std::thread> threads_;
};

inline Device device;

}  // namespace emulator
