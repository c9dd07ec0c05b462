// The threads of a block as fibres. Each runs until it must wait for others, and a schedule chooses which one continues.
// They show barriers that are missing or never completed. A copy lands while its thread waits for it, on the turn of
// another. Fibres cannot show races within a warp, or speed.
#pragma once

#include <setjmp.h>
#include <signal.h>
#include <ucontext.h>

#include <memory>
#include <random>

#include "cuda_emulator.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

inline Index threadIdx;

namespace emulator {

enum Schedule : int { ASCENDING, DESCENDING, RANDOM };

struct Barrier {
    int needed = 0, arrived = 0, line = 0;
};

struct Fibre {
    static constexpr size_t STACK = 256 * 1024;
    std::unique_ptr<char[]> stack{new char[STACK]};
    ucontext_t entry;
    jmp_buf state;
    bool started, done, lands;
    const Barrier* waits;
    int exchanges, votes;
    std::vector<Copy> copies;
};

class Device {
  public:
    int schedule = ASCENDING;
    std::string removed;  // "file:line" of a barrier, or of a wait for copies, that is skipped
    std::string error;    // of the last launch
    void* stream = nullptr;

    // Runs the kernel, one block after another. Returns false if an error ended it.
    bool launch(unsigned blocks, unsigned threads, size_t shared_bytes, const std::function<void()>& kernel) {
        kernel_ = &kernel;
        error.clear();
        const CrashesFail handled;
        for (blockIdx.x = 0; blockIdx.x < blocks && error.empty(); ++blockIdx.x) run_block(int(threads), shared_bytes);
        return error.empty();
    }

    void wait_at(const char* file, int line) {
        if (!is_place(removed, file, line)) wait(block_, line);
    }

    // Whether any thread of the block gives true.
    bool vote_at(const char* file, int line, bool value) {
        const int turn = self().votes++;
        votes_.give(turn, threadIdx.x, value);
        wait_at(file, line);
        const auto all = votes_.all<bool>(turn);
        return std::any_of(all.begin(), all.end(), [](bool vote) { return vote; });
    }

    // Returns what each lane of the warp gives.
    template <class V>
    std::array<V, WARP> exchange(const V& mine) {
        Warp& warp = warps_[threadIdx.x / WARP];
        const int turn = self().exchanges++;
        warp.values.give(turn, threadIdx.x % WARP, mine);
        wait(warp.barrier, 0);
        return warp.values.template all<V>(turn);
    }

    // A copy may also land at once: in the random schedule, half of them do.
    void copy(const Copy& copy) {
        if (schedule == RANDOM && random_() % 2) return copy.land();
        self().copies.push_back(copy);
    }

    void commit_copies() {}

    void await_copies_at(const char* file, int line) {
        if (is_place(removed, file, line)) return;
        self().lands = true;
        leave();
    }

    [[noreturn]] void fail(const char* what) {
        error = what;
        to_host();
    }

  private:
    struct Warp {
        Barrier barrier{WARP};
        Exchange<WARP> values;
    };

    // Meanwhile an access to an address that nobody has ends the launch, not the process.
    class CrashesFail {
      public:
        CrashesFail();
        ~CrashesFail() { sigaction(SIGSEGV, &before_, nullptr); }

      private:
        struct sigaction before_;
    };

    Fibre& self() { return fibres_[threadIdx.x]; }

    void run_block(int threads, size_t shared_bytes) {
        poison_shared_memory();
        block_ = {threads};
        votes_ = {};
        warps_.assign(threads / WARP, {});
        fibres_.resize(threads);
        for (Fibre& fibre : fibres_) prepare(fibre);
        forbid_shared_memory_from(shared_bytes);
        if (_setjmp(host_) == 0) resume();
        arrive();
        forbid_shared_memory_from(mmbdhs::SHARED_LIMIT);
        if (!is_poisoned_from(shared_bytes) && error.empty()) error = "shared memory was written past its end";
    }

    void prepare(Fibre& fibre) {
        fibre.started = fibre.done = fibre.lands = false;
        fibre.waits = nullptr;
        fibre.exchanges = fibre.votes = 0;
        fibre.copies.clear();
#if defined(__SANITIZE_ADDRESS__)
        ASAN_UNPOISON_MEMORY_REGION(fibre.stack.get(), Fibre::STACK);
#endif
        getcontext(&fibre.entry);
        fibre.entry.uc_stack.ss_sp = fibre.stack.get();
        fibre.entry.uc_stack.ss_size = Fibre::STACK;
        makecontext(&fibre.entry, &Device::enter, 0);
    }

    static void enter();

    void wait(Barrier& barrier, int line) {
        if (barrier.arrived > 0 && barrier.line != line) fail("threads wait at different barriers");
        barrier.line = line;
        self().waits = &barrier;
        if (++barrier.arrived == barrier.needed) {
            barrier.arrived = 0;
            for (Fibre& fibre : fibres_) {
                if (fibre.waits == &barrier) fibre.waits = nullptr;
            }
        }
        leave();
    }

    // Lets other threads run.
    void leave() {
        if (_setjmp(self().state) == 0) resume();
        arrive();
    }

    // Continues with the next thread of the schedule, or with the host if no thread can run. Copies that a thread waits
    // for land when its turn comes; it continues on the turn after.
    [[noreturn]] void resume() {
        const unsigned count = unsigned(fibres_.size()), start = schedule == RANDOM ? random_() % count : 0;
        bool all_done = false;
        for (bool landed = true; landed && !all_done;) {
            landed = false;
            all_done = true;
            for (unsigned i = 0; i < count; ++i) {
                const unsigned thread = schedule == DESCENDING ? count - 1 - i : (start + i) % count;
                Fibre& fibre = fibres_[thread];
                all_done &= fibre.done;
                if (fibre.lands) {
                    for (const Copy& copy : fibre.copies) copy.land();
                    fibre.copies.clear();
                    fibre.lands = false;
                    landed = true;
                } else if (!fibre.done && !fibre.waits) {
                    run(thread);
                }
            }
        }
        if (!all_done) error = "a barrier was never completed";
        to_host();
    }

    [[noreturn]] void run(unsigned thread) {
        threadIdx.x = thread;
        Fibre& fibre = self();
        depart(fibre.stack.get(), Fibre::STACK);
        if (fibre.started) _longjmp(fibre.state, 1);
        fibre.started = true;
        setcontext(&fibre.entry);
        std::abort();
    }

    [[noreturn]] void to_host() {
        depart(host_stack_, host_stack_size_);
        _longjmp(host_, 1);
    }

    // The address sanitizer has to know the stack that is used.
#if defined(__SANITIZE_ADDRESS__)
    void depart(const void* stack, size_t size) { __sanitizer_start_switch_fiber(nullptr, stack, size); }
    void arrive() {
        const void* from;
        size_t size;
        __sanitizer_finish_switch_fiber(nullptr, &from, &size);
        const bool is_host =
            std::none_of(fibres_.begin(), fibres_.end(), [&](const Fibre& fibre) { return fibre.stack.get() == from; });
        if (is_host) host_stack_ = from, host_stack_size_ = size;
    }
    static void forbid_shared_memory_from(size_t used) {
        ASAN_UNPOISON_MEMORY_REGION(mmbdhs::shared_memory, mmbdhs::SHARED_LIMIT);
        ASAN_POISON_MEMORY_REGION(mmbdhs::shared_memory + used, mmbdhs::SHARED_LIMIT - used);
    }
#else
    void depart(const void*, size_t) {}
    void arrive() {}
    static void forbid_shared_memory_from(size_t) {}
#endif

    const std::function<void()>* kernel_;
    std::vector<Fibre> fibres_;
    std::vector<Warp> warps_;
    Exchange<MAX_THREADS> votes_;
    Barrier block_;
    jmp_buf host_;
    const void* host_stack_ = nullptr;
    size_t host_stack_size_ = 0;
    std::minstd_rand random_{1};
};

inline Device device;

inline void Device::enter() {
    device.arrive();
    (*device.kernel_)();
    device.self().done = true;
    device.resume();
}

inline Device::CrashesFail::CrashesFail() {
    struct sigaction action = {};
    action.sa_handler = [](int) { device.fail("an address is nobody's"); };
    action.sa_flags = SA_NODEFER;
    sigaction(SIGSEGV, &action, &before_);
}

}  // namespace emulator
