// Softmax attention of a few rows over keys that are read in place. Compiled once for each instruction set.
//
// extend reads the keys in tiles of up to TILE. For each tile, Scorer computes state.scores [rows x keys of the tile],
// scores_to_weights turns them into weights of an online softmax, and accumulate adds weights times values to
// state.out:
//
//     state.scores                        values of the tile                  state.out
//               keys of the tile                    head                              head
//             +------------------+               +------------+                  +------------+
//        rows |     weights      |   x      keys |            |    added to rows |            |
//             +------------------+               |            |                  +------------+
//                                                +------------+
#include "attention/cpu/attention_kernels.h"

#include <cmath>

#include "attention/cpu/attention_scores.h"

namespace mmbdhs {
namespace MMBDHS_ISA {
namespace {

// Makes a row one that has seen no keys yet.
void clear(RowState& state, int row) {
    for (int64_t d = 0; d < state.head_dim; d += LANES) write(state.out[row] + d, Vec{});
    write(state.sums[row], Vec{});
    state.largest[row] = -INFINITY;
}

template <class T>
void load_queries(RowState& state, int count, const void* const* q) {
    const int64_t end = words<T>(state.head_dim);
    for (int row = 0; row < count; ++row) {
        for (int64_t at = 0; at < end; at += LANES)
            write(state.q[row] + at, load_words(static_cast<const T*>(q[row]), at, end));
        clear(state, row);
    }
}

// ---- softmax ---------------------------------------------------------------------------------------------------

// LANES scores from key `key` on, in units of log 2; -inf from key `seen` on.
inline Vec scaled_scores(const RowState& state, const float* scores, int64_t key, int64_t seen) {
    constexpr float LOG2_E = 1.4426950408889634f;
    Vec x = read<Vec>(scores + key);
    if (state.softcap > 0) {
        x = state.softcap * LOG2_E * tanh(x * (state.scale / state.softcap));
    } else {
        x = x * (state.scale * LOG2_E);
    }
    if (key + LANES <= seen) return x;
    return lane_numbers() < int32_t(seen - key) ? x : splat(-INFINITY);
}

inline void write_weights(float* scores, int64_t key, Vec weights, bool bf16_pairs) {
#if defined(__AVX512BF16__)
    if (bf16_pairs) return write(reinterpret_cast<char*>(scores) + 2 * key, _mm512_cvtneps_pbh((__m512)weights));
#endif
    (void)bf16_pairs;
    write(scores + key, weights);
}

// Sets a new maximum for a row: its sums so far shrink.
inline void raise_maximum(RowState& state, int row, float top) {
    state.shrink[row] = exp2(splat(state.largest[row] - top))[0];
    state.largest[row] = top;
    write(state.sums[row], read<Vec>(state.sums[row]) * state.shrink[row]);
}

// Turns the scores of a row into weights: of its first `seen` keys out of STEP, the others get 0.
template <bool BF16_PAIRS, int STEP>
void scores_to_weights(RowState& state, int row, int64_t seen) {
    constexpr float SLACK = 8;  // weights may grow to 2^8 before the maximum is raised, which costs work
    constexpr int PARTS = STEP < LANES ? 1 : STEP / LANES;
    Vec x[PARTS], best = splat(-INFINITY);
#pragma GCC unroll 16
    for (int i = 0; i < PARTS; ++i) {
        x[i] = scaled_scores(state, state.scores[row], i * LANES, seen);
        best = larger(x[i], best);
    }
    state.shrink[row] = 1;
    if (any_larger(best, splat(state.largest[row] + SLACK))) raise_maximum(state, row, largest(best));
    const float base = state.largest[row] == -INFINITY ? 0.0f : state.largest[row];
    Vec total = read<Vec>(state.sums[row]);
#pragma GCC unroll 16
    for (int i = 0; i < PARTS; ++i) {
        const Vec weights = exp2(x[i] - base);
        total += weights;
        write_weights(state.scores[row], i * LANES, weights, BF16_PAIRS);
    }
    write(state.sums[row], total);
}

// ---- weights times values --------------------------------------------------------------------------------------

#if defined(__AVX512BF16__)
inline __m512i widen(Types<16>::Halves half) { return _mm512_zextsi256_si512((__m256i)half); }
inline __m512i widen(Types<8>::Halves quarter) { return _mm512_zextsi128_si512((__m128i)quarter); }
#endif

// LANES numbers of a value row, or half of them and then zeros. Where pairs are multiplied, of two rows: the pair in a
// word then is the same number of both, as the weights of two keys are a pair too.
template <class T, bool HALF_LEFT>
inline Vec load_values(const T* first, const T* second) {
#if defined(__AVX512BF16__)
    if constexpr (in_pairs<T>) {
        alignas(64) static constexpr uint16_t ALTERNATE[32] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,
                                                               37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
                                                               11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
        using Read = std::conditional_t<HALF_LEFT, Types<8>::Halves, Types<16>::Halves>;
        return (Vec)_mm512_permutex2var_epi16(widen(read<Read>(first)), read<__m512i>(ALTERNATE),
                                              widen(read<Read>(second)));
    }
#endif
    (void)second;
#if defined(__AVX512F__)
    if constexpr (HALF_LEFT) {
        return load_half(first);
    }
#endif
    return load<LANES>(first);
}

// Adds weights times values to COUNT rows, for WIDE vectors of the head from number `at` on. The sums stay in registers
// while all keys of the tile pass by, and each value is loaded once for all rows:
//
//                 at       at + LANES  …
//     row       +--------+--------+---
//     row + 1   |        |        |        total[COUNT][WIDE]
//     …         +--------+--------+---
template <class T, int COUNT, int WIDE, bool HALF_LEFT>
void accumulate(RowState& state, int row, const void* const* v, Prefetcher<T>* prefetcher, int64_t count, int64_t at) {
    constexpr int STEP = in_pairs<T> ? 2 : 1;
    float* out = state.out[row] + at;
    const float* weights = state.scores[row];
    Vec total[COUNT][WIDE];
#pragma GCC unroll 8
    for (int r = 0; r < COUNT; ++r)
#pragma GCC unroll 8
        for (int w = 0; w < WIDE; ++w)
            total[r][w] = read<Vec>(out + r * MAX_HEAD_DIM + w * LANES) * state.shrink[row + r];
    for (int64_t word = 0; word * STEP < count; ++word) {
        Vec value[WIDE];
        const T* first = static_cast<const T*>(v[word * STEP]) + at;
        const T* second = static_cast<const T*>(v[word * STEP + STEP - 1]) + at;
        for (int step = 0; step < STEP && prefetcher; ++step) prefetcher->fetch(WIDE * LANES);
#pragma GCC unroll 8
        for (int w = 0; w < WIDE; ++w) value[w] = load_values<T, HALF_LEFT>(first + w * LANES, second + w * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < COUNT; ++r) {
            const Vec weight = splat(weights[r * TILE + word]);
#pragma GCC unroll 8
            for (int w = 0; w < WIDE; ++w) total[r][w] = multiply_add<in_pairs<T>>(weight, value[w], total[r][w]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < COUNT; ++r)
#pragma GCC unroll 8
        for (int w = 0; w < WIDE; ++w) write(out + r * MAX_HEAD_DIM + w * LANES, total[r][w]);
}

// How many rows keep their sums in registers at once, and how many vectors of the head each of COUNT rows has there.
// The fewer rows, the more vectors: COUNT * VECTORS<COUNT> is about the number of registers that are free.
constexpr int ROW_BLOCK = LANES == 8 ? 4 : 8;
template <int COUNT>
constexpr int VECTORS = LANES == 8 ? (COUNT == 1   ? 8
                                      : COUNT == 2 ? 4
                                                   : 2)
                                   : (COUNT <= 2   ? 8
                                      : COUNT <= 4 ? 4
                                                   : 2);

template <class T, int COUNT>
void accumulate_head(RowState& state, int row, const void* const* v, Prefetcher<T>* prefetcher, int64_t count) {
    constexpr int WIDE = VECTORS<COUNT>;
    int64_t at = 0;
    const int64_t end = state.head_dim;
    for (; at + WIDE * LANES <= end; at += WIDE * LANES)
        accumulate<T, COUNT, WIDE, false>(state, row, v, prefetcher, count, at);
    for (; at + LANES <= end; at += LANES) accumulate<T, COUNT, 1, false>(state, row, v, prefetcher, count, at);
    if (at < end) accumulate<T, COUNT, 1, LANES == 16>(state, row, v, prefetcher, count, at);
}

// Adds to COUNT rows, or to `count` of them if there are fewer.
template <class T, int COUNT = ROW_BLOCK>
void accumulate_rows(RowState& state, int row, int count, const void* const* v, Prefetcher<T>* prefetcher,
                     int64_t keys) {
    if (count >= COUNT) return accumulate_head<T, COUNT>(state, row, v, prefetcher, keys);
    if constexpr (COUNT > 1) accumulate_rows<T, COUNT - 1>(state, row, count, v, prefetcher, keys);
}

// ---- passes over the keys --------------------------------------------------------------------------------------

alignas(64) constexpr float ZEROS[MAX_HEAD_DIM] = {};  // a value

// The addresses of up to TILE keys and values, so that blocks can be read whole: after the last key it is repeated, and
// values are 0.
struct Tile {
    const void* k[TILE];
    const void* v[TILE];
    int64_t count = 0;

    template <class T>
    void find(const Keys& keys, int64_t begin, int64_t end, int64_t width) {
        count = smaller(end - begin, width);
        for (int64_t i = 0; i < count; ++i) {
            const int64_t row = keys.index ? keys.index[begin + i] : begin + i;
            k[i] = static_cast<const T*>(keys.k) + row * keys.k_row;
            v[i] = static_cast<const T*>(keys.v) + row * keys.v_row;
        }
        for (int64_t i = count; i < width; ++i) k[i] = k[count - 1], v[i] = ZEROS;
    }
};

// Takes STEP keys at a time, and prefetches those of the next step meanwhile.
template <class T, int STEP>
void extend_by(RowState& state, int first, int last, int64_t end, const Keys& keys, const int64_t* limits,
               const Keys* next) {
    Scorer<T> scorer(state, first, last);
    Tile tiles[2];
    tiles[0].find<T>(keys, 0, end, STEP);
    for (int64_t begin = 0, turn = 0; begin < end; begin += STEP, turn ^= 1) {
        const Tile& here = tiles[turn];
        Tile* ahead = &tiles[turn ^ 1];
        if (begin + STEP < end) {
            ahead->find<T>(keys, begin + STEP, end, STEP);
        } else if (next && next->count > 0) {
            ahead->find<T>(*next, 0, next->count, STEP);
        } else {
            ahead = &tiles[turn];
        }
        scorer.run(here.k, here.count, {ahead->k, state.head_dim});
        for (int row = first; row < last; ++row)
            scores_to_weights<in_pairs<T>, STEP>(state, row, smaller(limits[row] - begin, STEP));
        Prefetcher<T> values(ahead->v, state.head_dim);
        for (int row = first; row < last; row += ROW_BLOCK)
            accumulate_rows<T>(state, row, last - row, here.v, row == first ? &values : nullptr, here.count);
    }
}

inline bool is_finite(const RowState& state, int row) {
    Vec total = {};
    for (int64_t d = 0; d < state.head_dim; d += LANES) total += read<Vec>(state.out[row] + d) * 0.0f;
    return sum(total) == 0;  // infinity and NaN times 0 are NaN
}

template <class T>
void extend(RowState& state, int first, int last, const Keys& keys, const int64_t* limits, const Keys* next) {
    int64_t end = 0;
    for (int row = first; row < last; ++row) end = limits[row] > end ? limits[row] : end;
    if (end == 0) return;
    const auto extend_rows = last - first <= FEW_ROWS ? extend_by<T, FEW_ROWS_KEYS<T>> : extend_by<T, TILE>;
    extend_rows(state, first, last, end, keys, limits, next);
    // The weight 0 of a key that a row does not see gives NaN with a value that is not finite. Such a row begins again,
    // with its own keys alone.
    for (int row = first; row < last; ++row) {
        if (limits[row] == end || is_finite(state, row)) continue;
        clear(state, row);
        if (limits[row] > 0) extend_by<T, FEW_ROWS_KEYS<T>>(state, row, row + 1, limits[row], keys, limits, nullptr);
    }
}

template <class T>
void finish(const RowState& state, int count, void* const* out, float* const* lse) {
    T rounded[MAX_HEAD_DIM];
    for (int row = 0; row < count; ++row) {
        const float total = sum(read<Vec>(state.sums[row])), factor = total == 0 ? 0.0f : 1 / total;
        for (int64_t d = 0; d < state.head_dim; d += LANES) store(rounded + d, read<Vec>(state.out[row] + d) * factor);
        std::memcpy(out[row], rounded, state.head_dim * sizeof(T));
        *lse[row] = total == 0 ? -INFINITY : (state.largest[row] + std::log2(total)) * 0.6931471805599453f;
    }
}

void merge(RowState& state, int row, const float* out, float largest, float sum) {
    const float top = state.largest[row] > largest ? state.largest[row] : largest;
    if (sum == 0) return;
    const float own = std::exp2(state.largest[row] - top), other = std::exp2(largest - top);
    for (int64_t d = 0; d < state.head_dim; ++d) state.out[row][d] = state.out[row][d] * own + out[d] * other;
    write(state.sums[row], read<Vec>(state.sums[row]) * own);
    state.sums[row][0] += sum * other;
    state.largest[row] = top;
}

double multiply_add_rounds(int64_t rounds) {
    constexpr int CHAINS = 12;
    Vec total[CHAINS] = {};
    Vec factor = splat(0.5f);
    for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; ++i) {
            total[i] = total[i] * factor + factor;
            __asm__ volatile("" : "+x"(total[i]));
        }
    }
    return 2.0 * LANES * CHAINS * double(rounds);
}

bool supported() {
#if defined(__AVX512BF16__)
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw");
#elif defined(__AVX512F__)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#elif defined(__AVX2__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#else
    return true;
#endif
}

}  // namespace

#define NAME_OF(set) #set
#define NAME(set) NAME_OF(set)
const Kernels kernels = {NAME(MMBDHS_ISA),
                         supported,
                         {load_queries<float>, load_queries<BFloat16>, load_queries<Float16>},
                         {extend<float>, extend<BFloat16>, extend<Float16>},
                         {finish<float>, finish<BFloat16>, finish<Float16>},
                         merge,
                         multiply_add_rounds};

}  // namespace MMBDHS_ISA
}  // namespace mmbdhs
