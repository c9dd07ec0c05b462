// What the attention ops of a CPU share: the kernels of this machine, and keys that are read in several parts.
#pragma once

#include <cstdint>
#include <vector>

#include "attention/attention.h"
#include "attention/cpu/attention_kernels.h"

namespace mmbdhs {

const Kernels& live_kernels();

// As many threads, or one after a fork: a parent's pool does not live on in its child, and waiting for it would never
// end.
int usable(int threads);

// The rows that this thread works on.
Rows& thread_rows();

inline const char* element(const void* base, int64_t dtype, int64_t offset) {
    return static_cast<const char*>(base) + offset * (dtype == FLOAT32 ? 4 : 2);
}

inline void start(Rows& rows, int64_t head_dim, double scale, double softcap) {
    rows.head_dim = head_dim;
    rows.scale = float(scale);
    rows.softcap = float(softcap);
}

// Outputs that other parts of the same keys are yet to be merged with.
struct Partial {
    std::vector<float> out, largest, sum;

    Partial(int64_t rows, int64_t head_dim) : out(rows * head_dim), largest(rows), sum(rows) {}
    void take(const Rows& rows, int count, int64_t at);
};

// In how many parts each of `passes` passes over so many keys is done: more than one if there are fewer than threads.
int64_t parts_of(int64_t keys, int64_t passes, int threads);

// Where part `part` of `parts` begins. Most often there is but one, and nothing to divide.
inline int64_t part_begin(int64_t keys, int64_t part, int64_t parts) {
    return part == parts ? keys : part ? keys * part / parts : 0;
}

// Adds to cleared rows what the parts gave of which `first` is the first.
void merge_parts(const Kernels& kernels, const Partial& partial, int64_t first, int64_t parts, Rows& rows, int count);

}  // namespace mmbdhs
