// What both attention ops share on a CPU: the kernels of this machine, and keys that several threads read in parts.
#pragma once

#include <cstdint>
#include <vector>

#include "attention/attention.h"
#include "attention/cpu/attention_kernels.h"

namespace mmbdhs {

const Kernels& live_kernels();

// The number of threads to use: one after a fork. The thread pool of the parent does not exist in its child, which
// would wait for it forever.
int usable(int threads);

// The state of the rows that this thread works on, reused from task to task.
RowState& thread_state();

inline const char* element(const void* base, int64_t dtype, int64_t offset) {
    return static_cast<const char*>(base) + offset * (dtype == FLOAT32 ? 4 : 2);
}

inline void set_options(RowState& state, int64_t head_dim, double scale, double softcap) {
    state.head_dim = head_dim;
    state.scale = float(scale);
    state.softcap = float(softcap);
}

// Outputs of rows over a part of their keys, still to be merged with those of the other parts.
struct Partial {
    std::vector<float> out, largest, sum;

    Partial(int64_t rows, int64_t head_dim) : out(rows * head_dim), largest(rows), sum(rows) {}
    void take(const RowState& state, int count, int64_t at);
};

// Into how many parts the keys of each task are divided: more than one if there are fewer tasks than threads.
int64_t parts_of(int64_t keys, int64_t tasks, int threads);

// The key at which part `part` of `parts` begins. Mostly there is only one part, and nothing to divide.
inline int64_t part_begin(int64_t keys, int64_t part, int64_t parts) {
    return part == parts ? keys : part ? keys * part / parts : 0;
}

// Adds the results of parts first … first + parts - 1 to rows that have seen no keys yet.
void merge_parts(const Kernels& kernels, const Partial& partial, int64_t first, int64_t parts, RowState& state,
                 int count);

}  // namespace mmbdhs
