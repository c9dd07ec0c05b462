// What attention.cpp, which chooses the kernels, knows about those of an instruction set.
#pragma once

#include <cstdint>

namespace mmbdhs {

constexpr int MAX_ROWS = 64;  // query rows that share a pass over their keys
constexpr int TILE = 64;      // keys between two updates of the running softmax
constexpr int MAX_HEAD_DIM = 256;

// Keys and values of one head: key i is row `index ? index[i] : i`.
struct Keys {
    const void* k;
    const void* v;
    int64_t k_row, v_row;  // strides in elements
    const int32_t* index;
    int64_t count;
};

// The online softmax, in base 2, of up to MAX_ROWS query rows: what they have gathered from the keys so far (out, sums
// and largest), and scratch memory for the next tile of keys.
struct alignas(64) RowState {
    float q[MAX_ROWS][MAX_HEAD_DIM];  // as floats, or as pairs of bfloat16 where the kernels multiply pairs
    float q_side_by_side[MAX_ROWS * MAX_HEAD_DIM];  // the same, see Scorer::lay_side_by_side
    float out[MAX_ROWS][MAX_HEAD_DIM];
    float scores[MAX_ROWS + 3][TILE];  // a vector holds up to four rows: three more rows take what it writes too much
    float keys[16][MAX_HEAD_DIM + 8];  // a block of keys as floats; 8 more spread its rows over the sets of the cache
    float sums[MAX_ROWS][16];          // each in one part for each lane of the kernels' vectors, then zeros
    float largest[MAX_ROWS], shrink[MAX_ROWS];
    int64_t head_dim;
    float scale, softcap;
};

struct Kernels {
    const char* name;
    bool (*supported)();
    // The functions that read or write elements exist for float32, bfloat16 and float16, in the order of DType.
    // Load the queries of `count` rows that have seen no keys yet.
    void (*load_queries[3])(RowState&, int count, const void* const* q);
    // Attend from rows first … last - 1 to the keys 0 … limits[row] - 1. Rows with different limits must have seen no keys
    // yet. The keys `next` are read afterwards: they are prefetched.
    void (*extend[3])(RowState&, int first, int last, const Keys&, const int64_t* limits, const Keys* next);
    // Write the results of `count` rows.
    void (*finish[3])(const RowState&, int count, void* const* out, float* const* lse);
    // Add to a row the output, maximum and sum that it got from other keys.
    void (*merge)(RowState&, int row, const float* out, float largest, float sum);
    double (*multiply_add)(int64_t rounds);  // for benchmarks: returns the floating-point operations done
};

namespace base {
extern const Kernels kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
namespace avx512_bf16 {
extern const Kernels kernels;
}
#endif

}  // namespace mmbdhs
