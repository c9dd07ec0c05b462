// What the dispatcher of attention.cpp knows about the kernels of an instruction set.
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

// Query rows on their way through the keys: output, about the maximum, and the sum of an online softmax in base 2.
struct alignas(64) Rows {
    float q[MAX_ROWS][MAX_HEAD_DIM];          // as floats, or as pairs of bfloat16 where the kernels multiply those
    float q_beside[MAX_ROWS * MAX_HEAD_DIM];  // the same, four words of a few rows side by side
    float out[MAX_ROWS][MAX_HEAD_DIM];
    float scores[MAX_ROWS + 3][TILE];  // the last three are overwritten by vectors of rows that are not full
    float keys[16][MAX_HEAD_DIM + 8];  // a block of keys; the offset spreads its rows over the cache's sets
    float sums[MAX_ROWS][16];          // in as many parts as the kernels' vectors have lanes, then zeros
    float largest[MAX_ROWS], shrink[MAX_ROWS];
    int64_t head_dim;
    float scale, softcap;
};

struct Kernels {
    const char* name;
    bool (*supported)();
    // The three that touch elements, for float32, bfloat16 and float16.
    void (*begin[3])(Rows&, int count, const void* const* q);
    // Rows first … last see keys 0 … limits[row]; `next` will be read afterwards.
    void (*extend[3])(Rows&, int first, int last, const Keys&, const int64_t* limits, const Keys* next);
    void (*finish[3])(const Rows&, int count, void* const* out, float* const* lse);
    // Take in what other keys gave for a row: its output, maximum and sum.
    void (*merge)(Rows&, int row, const float* out, float largest, float sum);
    double (*multiply_add)(int64_t rounds);  // does nothing else; returns the floating-point operations done
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
