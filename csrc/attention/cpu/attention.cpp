#include "attention/attention.h"

#include <pthread.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>

#include "attention/cpu/attention_parts.h"

namespace mmbdhs {
namespace {

// From the least capable instruction set to the most capable.
const Kernels* const ALL_KERNELS[] = {
    &base::kernels,
#if defined(__x86_64__)
    &avx2::kernels,
    &avx512::kernels,
    &avx512_bf16::kernels,
#endif
};

const Kernels& choose_kernels() {
    const char* wanted = std::getenv("MMBDHS_ISA");
    const Kernels* best = nullptr;
    for (const Kernels* kernels : ALL_KERNELS) {
        if (kernels->supported() && (!wanted || !*wanted || wanted == std::string(kernels->name))) best = kernels;
    }
    if (!best) throw std::invalid_argument(std::string("MMBDHS_ISA: this machine has no '") + wanted + "' kernels");
    return *best;
}

bool forked = false;
const int at_fork = pthread_atfork(nullptr, nullptr, [] { forked = true; });

}  // namespace

const Kernels& live_kernels() {
    static const Kernels& kernels = choose_kernels();
    return kernels;
}

int usable(int threads) { return forked ? 1 : threads; }

RowState& thread_state() {
    static thread_local auto state = std::make_unique<RowState>();
    return *state;
}

void Partial::take(const RowState& state, int count, int64_t at) {
    for (int row = 0; row < count; ++row, ++at) {
        std::copy_n(state.out[row], state.head_dim, &out[at * state.head_dim]);
        largest[at] = state.largest[row];
        sum[at] = std::accumulate(state.sums[row], std::end(state.sums[row]), 0.0f);
    }
}

int64_t parts_of(int64_t keys, int64_t tasks, int threads) {
    tasks = std::max<int64_t>(1, tasks);
    return std::clamp<int64_t>(keys / (2 * TILE), 1, (threads + tasks - 1) / tasks);
}

void merge_parts(const Kernels& kernels, const Partial& partial, int64_t first, int64_t parts, RowState& state,
                 int count) {
    for (int64_t part = first; part < first + parts; ++part) {
        for (int row = 0; row < count; ++row) {
            const int64_t at = part * MAX_ROWS + row;
            kernels.merge(state, row, &partial.out[at * state.head_dim], partial.largest[at], partial.sum[at]);
        }
    }
}

bool lengths_fit(const int32_t* prefix_count, const int32_t* suffix_length, int64_t branches, const int32_t* visible,
                 int64_t prefix_keys, const int32_t* example, const int32_t* prefix_offsets, int64_t examples,
                 int64_t prefix_rows, int64_t suffix_rows) {
    const auto within = [](const int32_t* values, int64_t count, int64_t highest) {
        return std::all_of(values, values + count, [&](int32_t value) { return 0 <= value && value <= highest; });
    };
    if (!within(suffix_length, branches, suffix_rows)) return false;
    if (visible && !within(visible, prefix_keys, prefix_rows - 1)) return false;
    if (!example) return within(prefix_count, branches, prefix_keys);
    if (examples < 0 || !within(prefix_offsets, examples + 1, prefix_keys)) return false;
    if (!std::is_sorted(prefix_offsets, prefix_offsets + examples + 1)) return false;
    if (!within(example, branches, examples - 1)) return false;
    for (int64_t b = 0; b < branches; ++b) {
        const int32_t* offset = prefix_offsets + example[b];
        if (!within(prefix_count + b, 1, offset[1] - offset[0])) return false;
    }
    return true;
}

const char* instruction_set() { return live_kernels().name; }

double multiply_add_rounds(int64_t rounds) { return live_kernels().multiply_add(rounds); }

}  // namespace mmbdhs
