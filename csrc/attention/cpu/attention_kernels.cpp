// Softmax attention of a few rows over keys that are read where they lie. Compiled once for each instruction set.
#include "attention/cpu/attention_kernels.h"

#include <cmath>

#include "attention/cpu/attention_scores.h"

namespace mmbdhs {
namespace MMBDHS_ISA {
namespace {

template <class T>
void begin(Rows& rows, int count, const void* const* q) {
    const int64_t end = words<T>(rows.head_dim);
    for (int row = 0; row < count; ++row) {
        for (int64_t at = 0; at < end; at += LANES)
            write(rows.q[row] + at, load_words(static_cast<const T*>(q[row]), at, end));
        for (int64_t d = 0; d < rows.head_dim; d += LANES) write(rows.out[row] + d, Vec{});
        write(rows.sums[row], Vec{});
        rows.largest[row] = -INFINITY;
    }
}

// ---- softmax ---------------------------------------------------------------------------------------------------

// Scores of keys `key` … in units of log 2, -inf from key `seen` on.
inline Vec scaled_scores(const Rows& rows, const float* scores, int64_t key, int64_t seen) {
    constexpr float LOG2_E = 1.4426950408889634f;
    Vec x = read<Vec>(scores + key);
    if (rows.softcap > 0) {
        x = rows.softcap * LOG2_E * tanh(x * (rows.scale / rows.softcap));
    } else {
        x = x * (rows.scale * LOG2_E);
    }
    if (key + LANES <= seen) return x;
    return numbered() < int32_t(seen - key) ? x : splat(-INFINITY);
}

inline void write_weights(float* scores, int64_t key, Vec weights, bool bf16_pairs) {
#if defined(__AVX512BF16__)
    if (bf16_pairs) return write(reinterpret_cast<char*>(scores) + 2 * key, _mm512_cvtneps_pbh((__m512)weights));
#endif
    (void)bf16_pairs;
    write(scores + key, weights);
}

// A new maximum for a row: what it has gathered so far shrinks.
inline void raise(Rows& rows, int row, float top) {
    rows.shrink[row] = exp2(splat(rows.largest[row] - top))[0];
    rows.largest[row] = top;
    write(rows.sums[row], read<Vec>(rows.sums[row]) * rows.shrink[row]);
}

// Turns the scores of a row's first `seen` keys out of STEP into weights, the rest into 0.
template <bool BF16_PAIRS, int STEP>
void soften(Rows& rows, int row, int64_t seen) {
    constexpr float SLACK = 8;  // weights up to 2^8 do no harm, and a maximum that stays saves the work of raising it
    constexpr int PARTS = STEP < LANES ? 1 : STEP / LANES;
    Vec x[PARTS], best = splat(-INFINITY);
#pragma GCC unroll 16
    for (int i = 0; i < PARTS; ++i) {
        x[i] = scaled_scores(rows, rows.scores[row], i * LANES, seen);
        best = larger(x[i], best);
    }
    rows.shrink[row] = 1;
    if (any_larger(best, splat(rows.largest[row] + SLACK))) raise(rows, row, largest(best));
    const float base = rows.largest[row] == -INFINITY ? 0.0f : rows.largest[row];
    Vec total = read<Vec>(rows.sums[row]);
#pragma GCC unroll 16
    for (int i = 0; i < PARTS; ++i) {
        const Vec weights = exp2(x[i] - base);
        total += weights;
        write_weights(rows.scores[row], i * LANES, weights, BF16_PAIRS);
    }
    write(rows.sums[row], total);
}

// ---- weights times values --------------------------------------------------------------------------------------

#if defined(__AVX512BF16__)
inline __m512i widen(Types<16>::Halves half) { return _mm512_zextsi256_si512((__m256i)half); }
inline __m512i widen(Types<8>::Halves quarter) { return _mm512_zextsi128_si512((__m128i)quarter); }
#endif

// LANES numbers of a value row, or half of them and zeros; of two rows side by side where pairs are multiplied.
template <class T, bool HALF_LEFT>
inline Vec load_values(const T* first, const T* second) {
#if defined(__AVX512BF16__)
    if constexpr (in_pairs<T>) {
        alignas(64) static constexpr uint16_t BY_TURNS[32] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,
                                                              37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
                                                              11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
        using Read = std::conditional_t<HALF_LEFT, Types<8>::Halves, Types<16>::Halves>;
        return (Vec)_mm512_permutex2var_epi16(widen(read<Read>(first)), read<__m512i>(BY_TURNS),
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

// COUNT rows, WIDE vectors of the head from number `at` on.
template <class T, int COUNT, int WIDE, bool HALF_LEFT>
void accumulate(Rows& rows, int row, const void* const* v, Ahead<T>* ahead, int64_t count, int64_t at) {
    constexpr int STEP = in_pairs<T> ? 2 : 1;
    float* out = rows.out[row] + at;
    const float* weights = rows.scores[row];
    Vec total[COUNT][WIDE];
#pragma GCC unroll 8
    for (int r = 0; r < COUNT; ++r)
#pragma GCC unroll 8
        for (int w = 0; w < WIDE; ++w)
            total[r][w] = read<Vec>(out + r * MAX_HEAD_DIM + w * LANES) * rows.shrink[row + r];
    for (int64_t word = 0; word * STEP < count; ++word) {
        Vec value[WIDE];
        const T* first = static_cast<const T*>(v[word * STEP]) + at;
        const T* second = static_cast<const T*>(v[word * STEP + STEP - 1]) + at;
        for (int step = 0; step < STEP && ahead; ++step) ahead->bring(WIDE * LANES);
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

// Rows whose outputs stay in registers at once. With fewer of them, more of each: a value is loaded for all.
constexpr int BLOCK = LANES == 8 ? 4 : 8;
template <int COUNT>
constexpr int WIDE = LANES == 8 ? (COUNT == 1   ? 8
                                   : COUNT == 2 ? 4
                                                : 2)
                                : (COUNT <= 2   ? 8
                                   : COUNT <= 4 ? 4
                                                : 2);

template <class T, int COUNT>
void accumulate_head(Rows& rows, int row, const void* const* v, Ahead<T>* ahead, int64_t count) {
    constexpr int MOST = WIDE<COUNT>;
    int64_t at = 0;
    const int64_t end = rows.head_dim;
    for (; at + MOST * LANES <= end; at += MOST * LANES)
        accumulate<T, COUNT, MOST, false>(rows, row, v, ahead, count, at);
    for (; at + LANES <= end; at += LANES) accumulate<T, COUNT, 1, false>(rows, row, v, ahead, count, at);
    if (at < end) accumulate<T, COUNT, 1, LANES == 16>(rows, row, v, ahead, count, at);
}

// COUNT rows, or as many fewer as there are.
template <class T, int COUNT = BLOCK>
void accumulate_rows(Rows& rows, int row, int count, const void* const* v, Ahead<T>* ahead, int64_t keys) {
    if (count >= COUNT) return accumulate_head<T, COUNT>(rows, row, v, ahead, keys);
    if constexpr (COUNT > 1) accumulate_rows<T, COUNT - 1>(rows, row, count, v, ahead, keys);
}

// ---- passes over the keys --------------------------------------------------------------------------------------

// Where the rows of up to TILE keys lie; past the last key it stands still, so that blocks may be read whole.
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
        for (int64_t i = count; i < width; ++i) k[i] = k[count - 1], v[i] = v[count - 1];
    }
};

// STEP keys at a time, bringing near those of the next step meanwhile.
template <class T, int STEP>
void pass(Rows& rows, int first, int last, int64_t end, const Keys& keys, const int64_t* limits, const Keys* next) {
    Scorer<T> scorer(rows, first, last);
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
        scorer.run(here.k, here.count, {ahead->k, rows.head_dim});
        for (int row = first; row < last; ++row)
            soften<in_pairs<T>, STEP>(rows, row, smaller(limits[row] - begin, STEP));
        Ahead<T> values(ahead->v, rows.head_dim);
        for (int row = first; row < last; row += BLOCK)
            accumulate_rows<T>(rows, row, last - row, here.v, row == first ? &values : nullptr, here.count);
    }
}

template <class T>
void extend(Rows& rows, int first, int last, const Keys& keys, const int64_t* limits, const Keys* next) {
    int64_t end = 0;
    for (int row = first; row < last; ++row) end = limits[row] > end ? limits[row] : end;
    if (end == 0) return;
    const auto pass_by = last - first <= FEW ? pass<T, FEW_KEYS<T>> : pass<T, TILE>;
    pass_by(rows, first, last, end, keys, limits, next);
}

template <class T>
void finish(const Rows& rows, int count, void* const* out, float* const* lse) {
    T rounded[MAX_HEAD_DIM];
    for (int row = 0; row < count; ++row) {
        const float total = sum(read<Vec>(rows.sums[row])), factor = total == 0 ? 0.0f : 1 / total;
        for (int64_t d = 0; d < rows.head_dim; d += LANES) store(rounded + d, read<Vec>(rows.out[row] + d) * factor);
        std::memcpy(out[row], rounded, rows.head_dim * sizeof(T));
        *lse[row] = total == 0 ? -INFINITY : (rows.largest[row] + std::log2(total)) * 0.6931471805599453f;
    }
}

void merge(Rows& rows, int row, const float* out, float largest, float sum) {
    const float top = rows.largest[row] > largest ? rows.largest[row] : largest;
    if (sum == 0) return;
    const float own = std::exp2(rows.largest[row] - top), other = std::exp2(largest - top);
    for (int64_t d = 0; d < rows.head_dim; ++d) rows.out[row][d] = rows.out[row][d] * own + out[d] * other;
    write(rows.sums[row], read<Vec>(rows.sums[row]) * own);
    rows.sums[row][0] += sum * other;
    rows.largest[row] = top;
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
                         {begin<float>, begin<BFloat16>, begin<Float16>},
                         {extend<float>, extend<BFloat16>, extend<Float16>},
                         {finish<float>, finish<BFloat16>, finish<Float16>},
                         merge,
                         multiply_add_rounds};

}  // namespace MMBDHS_ISA
}  // namespace mmbdhs
