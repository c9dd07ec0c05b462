// Scores of query rows against keys that are read where they lie. Compiled once for each instruction set.
#pragma once

#include <type_traits>

#include "attention/cpu/attention_kernels.h"
#include "attention/cpu/simd.h"

namespace mmbdhs {
namespace MMBDHS_ISA {
namespace {

#if defined(__AVX512BF16__)
constexpr bool PAIRS = true;  // there is an instruction for sums of two bfloat16 products
#else
constexpr bool PAIRS = false;
#endif

template <class T>
constexpr bool in_pairs = PAIRS && std::is_same_v<T, BFloat16>;

// Rows are words of 32 bits: floats, or pairs of bfloat16.
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
// Half as many numbers as there are lanes, then zeros.
template <class T>
inline Vec load_half(const T* at) {
    return __builtin_shufflevector(load<8>(at), Floats<8>{}, 0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 8, 8, 8, 8, 8);
}
#endif

// Up to LANES words of a row from word `at` on, zeros after its end.
template <class T>
inline Vec load_words(const T* row, int64_t at, int64_t end) {
#if defined(__AVX512F__)
    if (at + LANES > end) {
        const auto mask = __mmask16((1u << (end - at)) - 1);
        if constexpr (in_pairs<T>) return (Vec)_mm512_castsi512_ps(_mm512_maskz_loadu_epi32(mask, row + 2 * at));
        if constexpr (std::is_same_v<T, float>) return (Vec)_mm512_maskz_loadu_ps(mask, row + at);
        // Head sizes are multiples of 8, so here it is one half.
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

// Brings rows near in the order in which they lie, a little at a time, so that the machine's own look-ahead joins in.
template <class T>
class Ahead {
  public:
    Ahead(const void* const* rows, int64_t head_dim) : next_(rows), head_dim_(head_dim) {}

    void bring(int64_t numbers) {
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
constexpr int FEW = 2;           // rows up to here are faster with all lanes along the head
constexpr int SIDE = LANES / 4;  // of more rows, this many lie side by side in a vector, four words of each

// Few rows wait for memory. Keys and values are read as they lie, by turns and some 4 KiB of each, which is what the
// machine's own look-ahead is fastest at.
template <class T>
constexpr int FEW_KEYS = 32 / sizeof(T);

// Keys whose scores against P vectors of rows stay in registers.
template <int P>
constexpr int KEYS = SUMS / P / 4 * 4;

// Four words, as often as a vector has room for them.
inline Vec repeat_words(const float* words) {
#if defined(__AVX512F__)
    return (Vec)_mm512_broadcast_f32x4(_mm_loadu_ps(words));
#elif defined(__AVX2__)
    return (Vec)_mm256_broadcast_ps(reinterpret_cast<const __m128*>(words));
#else
    return read<Vec>(words);
#endif
}

// P rows times COUNT keys, one key after another as they lie in memory: sums that are yet in LANES parts.
template <class T, int P, int COUNT>
INLINE void multiply_along(const float* q, const void* const* k, int64_t head_dim, Ahead<T>& ahead, Vec* total) {
#pragma GCC unroll 16
    for (int j = 0; j < COUNT; ++j) {
        ahead.bring(head_dim);
        for (int64_t at = 0; at < words<T>(head_dim); at += LANES) {
            const Vec key = load_words(static_cast<const T*>(k[j]), at, words<T>(head_dim));
#pragma GCC unroll 2
            for (int p = 0; p < P; ++p)
                total[p * KEYS<P> + j] =
                    multiply_add<in_pairs<T>>(read<Vec>(q + p * MAX_HEAD_DIM + at), key, total[p * KEYS<P> + j]);
        }
    }
}

// P vectors, each with four words of SIDE rows, times KEYS<P> keys: sums that are yet in four parts.
template <class Read, int P, class T>
INLINE void multiply_beside(const float* q, const void* const* k, int64_t end, Ahead<T>* ahead, Vec* total) {
    constexpr int NUMBERS = (in_pairs<Read> ? 8 : 4) * KEYS<P>;
    for (int64_t at = 0; at < end; at += 4) {
        Vec part[P];
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) part[p] = read<Vec>(q + (p * MAX_HEAD_DIM + at) * SIDE);
#pragma GCC unroll 16
        for (int j = 0; j < KEYS<P>; ++j) {
            const Vec key = repeat_words(static_cast<const float*>(k[j]) + at);
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p)
                total[p * KEYS<P> + j] = multiply_add<in_pairs<Read>>(part[p], key, total[p * KEYS<P> + j]);
        }
        if (ahead) ahead->bring(NUMBERS);
    }
}

// Adds up what is yet in W parts: scores of P · LANES / W rows from `row` on and KEYS<P> keys from `key` on. Those of
// rows that nobody asked for overwrite scores that nobody needs.
template <int W, int P>
INLINE void write_scores(Rows& rows, int row, int64_t key, Vec* total) {
    constexpr int PIECE = W < KEYS<P> ? W : KEYS<P>;  // scores of one row that come out together
#pragma GCC unroll 4
    for (int from = 0; from < P * KEYS<P>; from += W) {
        const Vec scores = sums<W / 2>(total + from);
#pragma GCC unroll 8
        for (int lane = 0; lane < LANES; lane += PIECE) {
            const int i = from + lane % W, to = row + i / KEYS<P> * (LANES / W) + lane / W;
            std::memcpy(rows.scores[to] + key + i % KEYS<P>, reinterpret_cast<const float*>(&scores) + lane, 4 * PIECE);
        }
    }
}

// Rows first … up to `last` against tiles of keys.
template <class T>
class Scorer {
  public:
    Scorer(Rows& rows, int first, int last) : rows_(rows), first_(first), last_(last) {
        if (last - first > FEW) lay_side_by_side();
        for (int j = 0; j < KEY_BLOCK; ++j) packed_[j] = rows.keys[j];
    }

    // Scores of keys 0 … count, rounded up to a block.
    void run(const void* const* k, int64_t count, Ahead<T> ahead) {
        if (last_ - first_ == 1) return few<1>(k, ahead);
        if (last_ - first_ == 2) return few<2>(k, ahead);
        for (int64_t key = 0; key < count; key += KEY_BLOCK)
            many<MOST>(first_, PACKED ? pack(k + key) : k + key, &ahead, key);
    }

  private:
    // Keys of other types become words once for all rows.
    static constexpr bool PACKED = !std::is_same_v<T, float> && !in_pairs<T>;
    static constexpr int MOST = SUMS / 4;
    using Read = std::conditional_t<PACKED, float, T>;

    void lay_side_by_side() {
        for (int row = 0; row < last_ - first_; ++row) {
            float* to = rows_.q_beside + row / SIDE * SIDE * MAX_HEAD_DIM + row % SIDE * 4;
            for (int64_t at = 0; at < words<T>(rows_.head_dim); at += 4)
                std::memcpy(to + at * SIDE, rows_.q[first_ + row] + at, 16);
        }
    }

    const void* const* pack(const void* const* k) {
        const int64_t end = words<T>(rows_.head_dim);
        for (int j = 0; j < KEY_BLOCK; ++j) {
            for (int64_t at = 0; at < end; at += LANES)
                write(rows_.keys[j] + at, load_words(static_cast<const T*>(k[j]), at, end));
        }
        return packed_;
    }

    // P vectors of rows at a time, then what is left; the first bring near what all will read.
    template <int P>
    void many(int row, const void* const* k, Ahead<T>* ahead, int64_t key) {
        for (; last_ - row > (P - 1) * SIDE; row += P * SIDE, ahead = nullptr) {
            const float* q = rows_.q_beside + (row - first_) * MAX_HEAD_DIM;
            for (int j = 0; j < KEY_BLOCK; j += KEYS<P>) {
                Vec total[P * KEYS<P>] = {};
                multiply_beside<Read, P>(q, k + j, words<Read>(rows_.head_dim), ahead, total);
                write_scores<4, P>(rows_, row, key + j, total);
            }
        }
        if constexpr (P > 1) many<P - 1>(row, k, ahead, key);
    }

    template <int COUNT>
    void few(const void* const* k, Ahead<T>& ahead) {
        constexpr int AT_ONCE = KEYS<COUNT> < FEW_KEYS<T> ? KEYS<COUNT> : FEW_KEYS<T>;
        for (int j = 0; j < FEW_KEYS<T>; j += AT_ONCE) {
            Vec total[COUNT * KEYS<COUNT>] = {};
            multiply_along<T, COUNT, AT_ONCE>(rows_.q[first_], k + j, rows_.head_dim, ahead, total);
            write_scores<LANES, COUNT>(rows_, first_, j, total);
        }
    }

    Rows& rows_;
    const int first_, last_;
    const void* packed_[KEY_BLOCK];
};

}  // namespace
}  // namespace MMBDHS_ISA
}  // namespace mmbdhs
