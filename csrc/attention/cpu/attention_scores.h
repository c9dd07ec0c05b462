// Scores of query rows for keys that are read in place. Compiled once for each instruction set.
//
// A row of numbers is read as words of 32 bits: floats, or pairs of bfloat16 where the machine multiplies pairs. There
// are two ways to spread the products of query words and key words over the LANES of a vector:
//
// Few rows (multiply_along): all lanes go along the head. A vector belongs to one row and one key.
//
//     lanes         0   1   2   3   4   5   6   7   …
//     query row     q0  q1  q2  q3  q4  q5  q6  q7  …
//     key           k0  k1  k2  k3  k4  k5  k6  k7  …
//
// More rows (multiply_side_by_side): four words of ROWS_IN_VECTOR rows lie side by side, against the same four words of
// a key, repeated. A vector belongs to several rows and one key, which is loaded once for all of them.
//
//     lanes         0   1   2   3   4   5   6   7   …
//     query rows    a0  a1  a2  a3  b0  b1  b2  b3  …    rows a, b, …
//     key           k0  k1  k2  k3  k0  k1  k2  k3  …
//
// Either way P vectors of rows meet KEYS_AT_ONCE<P> keys at a time, whose P x KEYS_AT_ONCE<P> sums stay in registers:
//
//                       key 0      key 1      key 2      key 3     …
//     row vector 0    total[0]   total[1]   total[2]   total[3]    …
//     row vector 1    total[n]   total[n+1] …                           n = KEYS_AT_ONCE<P>
//
// A score is still spread over W lanes of its sum then, LANES of them along the head or 4 side by side. write_scores
// adds these up.
#pragma once

#include <type_traits>

#include "attention/cpu/attention_kernels.h"
#include "attention/cpu/simd.h"

namespace mmbdhs {
namespace MMBDHS_ISA {
namespace {

#if defined(__AVX512BF16__)
constexpr bool PAIRS = true;  // one instruction adds the products of two pairs of bfloat16
#else
constexpr bool PAIRS = false;
#endif

template <class T>
constexpr bool in_pairs = PAIRS && std::is_same_v<T, BFloat16>;

// How many words of 32 bits a row has.
template <class T>
constexpr int64_t words(int64_t head_dim) {
    return in_pairs<T> ? head_dim / 2 : head_dim;
}

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <bool BF16_PAIRS>
inline Vec multiply_add(Vec a, Vec b, Vec sum) {
#if defined(__AVX512BF16__)
    if constexpr (BF16_PAIRS) return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#endif
    return a * b + sum;
}

#if defined(__AVX512F__)
// Loads half as many numbers as there are lanes, then zeros.
template <class T>
inline Vec load_half(const T* at) {
    return __builtin_shufflevector(load<8>(at), Floats<8>{}, 0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 8, 8, 8, 8, 8);
}
#endif

// Loads up to LANES words of a row from word `at` on, then zeros.
template <class T>
inline Vec load_words(const T* row, int64_t at, int64_t end) {
#if defined(__AVX512F__)
    if (at + LANES > end) {
        const auto mask = __mmask16((1u << (end - at)) - 1);
        if constexpr (in_pairs<T>) return (Vec)_mm512_castsi512_ps(_mm512_maskz_loadu_epi32(mask, row + 2 * at));
        if constexpr (std::is_same_v<T, float>) return (Vec)_mm512_maskz_loadu_ps(mask, row + at);
        // Head sizes are multiples of 8, so that exactly one half is left here.
        return load_half(row + at);
    }
#endif
    (void)end;
    if constexpr (in_pairs<T>) {
        return read<Vec>(row + 2 * at);
    } else {
        return load<LANES>(row + at);
    }
}

// Prefetches rows in the order in which they are read, a little at a time: the machine's own prefetcher then continues.
template <class T>
class Prefetcher {
  public:
    Prefetcher(const void* const* rows, int64_t head_dim) : next_(rows), head_dim_(head_dim) {}

    void fetch(int64_t numbers) {
        if (left_ <= 0) {
            at_ = static_cast<const T*>(*next_++);
            left_ = head_dim_;
        }
        prefetch(at_, numbers * int64_t(sizeof(T)));
        at_ += numbers;
        left_ -= numbers;
    }

  private:
    const void* const* next_;
    const T* at_ = nullptr;
    int64_t head_dim_, left_ = 0;
};

constexpr int KEY_BLOCK = 16;
constexpr int FEW_ROWS = 2;                // up to so many rows, vectors along the head are faster
constexpr int ROWS_IN_VECTOR = LANES / 4;  // of more rows, a vector has four words each

// With few rows, memory is the limit. Keys and values are read in order and in turns of about 4 KiB, at which the
// machine's own prefetcher is fastest.
template <class T>
constexpr int FEW_ROWS_KEYS = 32 / sizeof(T);

// How many keys meet P vectors of rows at once, so that their sums stay in registers: a multiple of 4.
template <int P>
constexpr int KEYS_AT_ONCE = ACCUMULATORS / P / 4 * 4;

// Four words, repeated until the vector is full.
inline Vec repeat_words(const float* words) {
#if defined(__AVX512F__)
    return (Vec)_mm512_broadcast_f32x4(_mm_loadu_ps(words));
#elif defined(__AVX2__)
    return (Vec)_mm256_broadcast_ps(reinterpret_cast<const __m128*>(words));
#else
    return read<Vec>(words);
#endif
}

// Multiplies P rows with COUNT keys, one key after another as they lie in memory.
template <class T, int P, int COUNT>
INLINE void multiply_along(const float* q, const void* const* k, int64_t head_dim, Prefetcher<T>& prefetcher,
                           Vec* total) {
#pragma GCC unroll 16
    for (int j = 0; j < COUNT; ++j) {
        prefetcher.fetch(head_dim);
        for (int64_t at = 0; at < words<T>(head_dim); at += LANES) {
            const Vec key = load_words(static_cast<const T*>(k[j]), at, words<T>(head_dim));
#pragma GCC unroll 2
            for (int p = 0; p < P; ++p)
                total[p * KEYS_AT_ONCE<P> + j] = multiply_add<in_pairs<T>>(read<Vec>(q + p * MAX_HEAD_DIM + at), key,
                                                                           total[p * KEYS_AT_ONCE<P> + j]);
        }
    }
}

// Multiplies P vectors, each with four words of ROWS_IN_VECTOR rows, with KEYS_AT_ONCE<P> keys.
template <class Read, int P, class T>
INLINE void multiply_side_by_side(const float* q, const void* const* k, int64_t end, Prefetcher<T>* prefetcher,
                                  Vec* total) {
    constexpr int NUMBERS = (in_pairs<Read> ? 8 : 4) * KEYS_AT_ONCE<P>;
    for (int64_t at = 0; at < end; at += 4) {
        Vec part[P];
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) part[p] = read<Vec>(q + (p * MAX_HEAD_DIM + at) * ROWS_IN_VECTOR);
#pragma GCC unroll 16
        for (int j = 0; j < KEYS_AT_ONCE<P>; ++j) {
            const Vec key = repeat_words(static_cast<const float*>(k[j]) + at);
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p)
                total[p * KEYS_AT_ONCE<P> + j] =
                    multiply_add<in_pairs<Read>>(part[p], key, total[p * KEYS_AT_ONCE<P> + j]);
        }
        if (prefetcher) prefetcher->fetch(NUMBERS);
    }
}

// Adds up the W lanes of each score, and writes the scores of P * LANES / W rows from `row` on and of KEYS_AT_ONCE<P>
// keys from `key` on. sum_blocks makes one vector of scores from W vectors of sums. With LANES = 8 and W = 4:
//
//     total[from]        a a a a | b b b b    key j
//     total[from + 1]    a a a a | b b b b    key j + 1         scores    aj aj+1 aj+2 aj+3 | bj bj+1 bj+2 bj+3
//     total[from + 2]    a a a a | b b b b    key j + 2
//     total[from + 3]    a a a a | b b b b    key j + 3
//
// Lane l of the scores thus comes from total[i] with i = from + l % W. That vector has row vector i / KEYS_AT_ONCE<P>
// and key i % KEYS_AT_ONCE<P>, and block l / W of its lanes is the row within the row vector. PIECE neighbouring lanes
// are neighbouring keys of one row, and are copied together.
//
// If the last vector has fewer rows than it has room for, the rows after `row` that nobody asked for are written too.
// Their scores are not needed: they are past the last row, and RowState::scores has room for three of them.
template <int W, int P>
INLINE void write_scores(RowState& state, int row, int64_t key, Vec* total) {
    constexpr int PIECE = W < KEYS_AT_ONCE<P> ? W : KEYS_AT_ONCE<P>;
#pragma GCC unroll 4
    for (int from = 0; from < P * KEYS_AT_ONCE<P>; from += W) {
        const Vec scores = sum_blocks<W / 2>(total + from);
#pragma GCC unroll 8
        for (int lane = 0; lane < LANES; lane += PIECE) {
            const int i = from + lane % W, to = row + i / KEYS_AT_ONCE<P> * (LANES / W) + lane / W;
            std::memcpy(state.scores[to] + key + i % KEYS_AT_ONCE<P>, reinterpret_cast<const float*>(&scores) + lane,
                        4 * PIECE);
        }
    }
}

// Computes the scores of rows first … last - 1 for tiles of keys.
template <class T>
class Scorer {
  public:
    Scorer(RowState& state, int first, int last) : state_(state), first_(first), last_(last) {
        if (last - first > FEW_ROWS) lay_side_by_side();
        for (int j = 0; j < KEY_BLOCK; ++j) packed_[j] = state.keys[j];
    }

    // Scores of keys 0 … count - 1. Blocks of KEY_BLOCK keys are computed whole.
    void run(const void* const* k, int64_t count, Prefetcher<T> prefetcher) {
        if (last_ - first_ == 1) return few<1>(k, prefetcher);
        if (last_ - first_ == 2) return few<2>(k, prefetcher);
        for (int64_t key = 0; key < count; key += KEY_BLOCK)
            many<MOST>(first_, PACKED ? pack(k + key) : k + key, &prefetcher, key);
    }

  private:
    // Keys of other types are converted to floats once for all rows.
    static constexpr bool PACKED = !std::is_same_v<T, float> && !in_pairs<T>;
    static constexpr int MOST = ACCUMULATORS / 4;
    using Read = std::conditional_t<PACKED, float, T>;

    // Row vector n of q_side_by_side begins at n * ROWS_IN_VECTOR * MAX_HEAD_DIM and has four words of each of its rows
    // at a time: a0 … a3 b0 … b3, then a4 … a7 b4 … b7, and so on.
    void lay_side_by_side() {
        for (int row = 0; row < last_ - first_; ++row) {
            float* to =
                state_.q_side_by_side + row / ROWS_IN_VECTOR * ROWS_IN_VECTOR * MAX_HEAD_DIM + row % ROWS_IN_VECTOR * 4;
            for (int64_t at = 0; at < words<T>(state_.head_dim); at += 4)
                std::memcpy(to + at * ROWS_IN_VECTOR, state_.q[first_ + row] + at, 16);
        }
    }

    const void* const* pack(const void* const* k) {
        const int64_t end = words<T>(state_.head_dim);
        for (int j = 0; j < KEY_BLOCK; ++j) {
            for (int64_t at = 0; at < end; at += LANES)
                write(state_.keys[j] + at, load_words(static_cast<const T*>(k[j]), at, end));
        }
        return packed_;
    }

    // P row vectors at a time, then what is left. The first ones prefetch, because all read the same keys.
    template <int P>
    void many(int row, const void* const* k, Prefetcher<T>* prefetcher, int64_t key) {
        for (; last_ - row > (P - 1) * ROWS_IN_VECTOR; row += P * ROWS_IN_VECTOR, prefetcher = nullptr) {
            const float* q = state_.q_side_by_side + (row - first_) * MAX_HEAD_DIM;
            for (int j = 0; j < KEY_BLOCK; j += KEYS_AT_ONCE<P>) {
                Vec total[P * KEYS_AT_ONCE<P>] = {};
                multiply_side_by_side<Read, P>(q, k + j, words<Read>(state_.head_dim), prefetcher, total);
                write_scores<4, P>(state_, row, key + j, total);
            }
        }
        if constexpr (P > 1) many<P - 1>(row, k, prefetcher, key);
    }

    template <int COUNT>
    void few(const void* const* k, Prefetcher<T>& prefetcher) {
        constexpr int AT_ONCE = KEYS_AT_ONCE<COUNT> < FEW_ROWS_KEYS<T> ? KEYS_AT_ONCE<COUNT> : FEW_ROWS_KEYS<T>;
        for (int j = 0; j < FEW_ROWS_KEYS<T>; j += AT_ONCE) {
            Vec total[COUNT * KEYS_AT_ONCE<COUNT>] = {};
            multiply_along<T, COUNT, AT_ONCE>(state_.q[first_], k + j, state_.head_dim, prefetcher, total);
            write_scores<LANES, COUNT>(state_, first_, j, total);
        }
    }

    RowState& state_;
    const int first_, last_;
    const void* packed_[KEY_BLOCK];
};

}  // namespace
}  // namespace MMBDHS_ISA
}  // namespace mmbdhs
