// Vectors of floats for one instruction set. Every file that includes this one is compiled once for each set, inside
// the namespace MMBDHS_ISA, so that the linker cannot use a function of one set in place of another's (one-definition
// rule). For the same reason nothing here calls a template of the standard library.
#pragma once

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>
#include <utility>

// For functions whose arguments stay in registers: a call would pass them through memory.
#define INLINE __attribute__((always_inline)) inline

namespace mmbdhs {
namespace MMBDHS_ISA {

#if defined(__AVX512F__)
constexpr int LANES = 16;         // floats of a vector
constexpr int ACCUMULATORS = 16;  // vectors of sums that stay in registers together with their factors
#elif defined(__AVX2__)
constexpr int LANES = 8;
constexpr int ACCUMULATORS = 8;
#elif defined(__aarch64__)
constexpr int LANES = 4;
constexpr int ACCUMULATORS = 16;
#else
constexpr int LANES = 4;
constexpr int ACCUMULATORS = 8;
#endif

template <int N>
struct Types {
    typedef float Floats __attribute__((vector_size(4 * N)));
    typedef int32_t Ints __attribute__((vector_size(4 * N)));
    typedef uint32_t Words __attribute__((vector_size(4 * N)));
    typedef uint16_t Halves __attribute__((vector_size(2 * N)));
};
template <int N>
using Floats = typename Types<N>::Floats;
template <int N>
using Ints = typename Types<N>::Ints;
using Vec = Floats<LANES>;

struct BFloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};
#if defined(__aarch64__)
using Half = __fp16;
#else
using Half = _Float16;
#endif

// Copies the bits, which need not be a float.
inline Vec splat(float value) {
    int32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return (Vec)(Ints<LANES>{} + bits);
}

template <class V>
inline V read(const void* at) {
    V value;
    std::memcpy(&value, at, sizeof value);
    return value;
}

template <class V>
inline void write(void* at, V value) {
    std::memcpy(at, &value, sizeof value);
}

// Loads N numbers as floats.
template <int N>
inline Floats<N> load(const float* at) {
    return read<Floats<N>>(at);
}

template <int N>
inline Floats<N> load(const BFloat16* at) {
    const auto words = __builtin_convertvector(read<typename Types<N>::Halves>(at), typename Types<N>::Words);
    return (Floats<N>)(words << 16);
}

template <int N>
inline Floats<N> load(const Float16* at) {
#if defined(__F16C__)
    if constexpr (N == 4) return (Floats<N>)_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)));
    if constexpr (N == 8) return (Floats<N>)_mm256_cvtph_ps(read<__m128i>(at));
#if defined(__AVX512F__)
    if constexpr (N == 16) return (Floats<N>)_mm512_maskz_cvtph_ps(0xFFFF, read<__m256i>(at));
#endif
#else
    using Words = typename Types<N>::Words;
    const Words half = __builtin_convertvector(read<typename Types<N>::Halves>(at), Words);
    // Moved into the places of a float, exponent and mantissa are too small by 2^112, also in subnormals. The exponents
    // of infinity and NaN are set as a whole.
    const Words shifted = (half & 0x7FFFu) << 13;
    const Words finite = (Words)((Floats<N>)shifted * 0x1p112f);
    const Words special = (Words)((half & 0x7C00u) == 0x7C00u) & 0x7F800000u;
    return (Floats<N>)(finite | special | (half & 0x8000u) << 16);
#endif
}

// Stores LANES floats as numbers of the type, rounded to nearest, ties to even.
inline void store(float* at, Vec values) { write(at, values); }

inline void store(BFloat16* at, Vec values) {
    using Words = typename Types<LANES>::Words;
    const Words bits = (Words)values;
    const Words rounded = values == values ? (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16 : Words{} + 0x7FC0u;
    write(at, __builtin_convertvector(rounded, typename Types<LANES>::Halves));
}

inline void store(Float16* at, Vec values) {
#if defined(__AVX512F__)
    write(at, _mm512_maskz_cvtps_ph(0xFFFF, (__m512)values, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
    write(at, _mm256_cvtps_ph((__m256)values, _MM_FROUND_TO_NEAREST_INT));
#else
    for (int lane = 0; lane < LANES; ++lane) {
        const Half half = Half(values[lane]);
        std::memcpy(&at[lane].bits, &half, sizeof half);
    }
#endif
}

// Divides two vectors into blocks of S lanes and takes every other block of each, the even or the odd (SECOND) ones.
// With S = 2 and LANES = 8:
//
//     a              a0 a1 | a2 a3 | a4 a5 | a6 a7
//     b              b0 b1 | b2 b3 | b4 b5 | b6 b7
//     even blocks    a0 a1 | b0 b1 | a4 a5 | b4 b5
//     odd blocks     a2 a3 | b2 b3 | a6 a7 | b6 b7
template <int S, bool SECOND, int... P>
inline Vec pick_blocks(Vec a, Vec b, std::integer_sequence<int, P...>) {
    return __builtin_shufflevector(a, b, (P / (2 * S) * 2 * S + P % S + (SECOND ? S : 0) + (P / S % 2 ? LANES : 0))...);
}

template <int S, bool SECOND>
inline Vec pick_blocks(Vec a, Vec b) {
    return pick_blocks<S, SECOND>(a, b, std::make_integer_sequence<int, LANES>{});
}

// Sums each block of 2 S lanes in 2 S vectors. Lane i of a block in the result is the sum of that block in v[i]. Adding
// the even to the odd blocks of two vectors halves both the blocks and the number of vectors. With S = 2, LANES = 8 and
// [v] for a sum:
//
//     v0    v00 v01 v02 v03 | v04 v05 v06 v07
//     v1    v10 v11 v12 v13 | v14 v15 v16 v17      result    [v00…03] [v10…13] [v20…23] [v30…33] | [v04…07] [v14…17] …
//     v2    …
//     v3    …
template <int S = LANES / 2>
INLINE Vec sum_blocks(Vec* v) {
#pragma GCC unroll 8
    for (int i = 0; i < S; ++i) v[i] = pick_blocks<S, false>(v[i], v[i + S]) + pick_blocks<S, true>(v[i], v[i + S]);
    if constexpr (S > 1) return sum_blocks<S / 2>(v);
    return v[0];
}

// The vector 0, 1, 2, …
template <int... P>
inline Ints<LANES> lane_numbers(std::integer_sequence<int, P...>) {
    return Ints<LANES>{P...};
}
inline Ints<LANES> lane_numbers() { return lane_numbers(std::make_integer_sequence<int, LANES>{}); }

inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }

// Is any lane of `a` larger than the same lane of `b`?
inline bool any_larger(Vec a, Vec b) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ);
#elif defined(__AVX2__)
    return _mm256_movemask_ps((__m256)(a > b));
#else
    bool any = false;
    for (int lane = 0; lane < LANES; ++lane) any |= a[lane] > b[lane];
    return any;
#endif
}

// Rotates the lanes by S.
template <int S, int... P>
inline Vec rotated(Vec v, std::integer_sequence<int, P...>) {
    return __builtin_shufflevector(v, v, ((P + S) % LANES)...);
}

template <int S = LANES / 2>
inline float largest(Vec v) {
    v = larger(v, rotated<S>(v, std::make_integer_sequence<int, LANES>{}));
    if constexpr (S > 1) return largest<S / 2>(v);
    return v[0];
}

template <int S = LANES / 2>
inline float sum(Vec v) {
    v += rotated<S>(v, std::make_integer_sequence<int, LANES>{});
    if constexpr (S > 1) return sum<S / 2>(v);
    return v[0];
}

// 2^x, within 2 units in the last place; 0 below -126, NaN for NaN. The coefficients are those of exp2f in Cephes.
inline Vec exp2(Vec x) {
#if defined(__AVX512F__)
    const Vec rounded = (Vec)_mm512_maskz_roundscale_ps(0xFFFF, (__m512)x, 0);
    const Vec f = x - rounded;
#else
    constexpr float SHIFT = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const Vec bounded = larger(x, splat(-126.0f));
    const Vec rounded = bounded + SHIFT;
    const Vec f = bounded - (rounded - SHIFT);
#endif
    Vec p = splat(1.535336188319500e-4f);
    p = p * f + 1.339887440266574e-3f;
    p = p * f + 9.618437357674640e-3f;
    p = p * f + 5.550332471162809e-2f;
    p = p * f + 2.402264791363012e-1f;
    p = p * f + 6.931472028550421e-1f;
    p = p * f + 1.0f;
#if defined(__AVX512F__)
    const __mmask16 large = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
    return (Vec)_mm512_maskz_scalef_ps(large, (__m512)p, (__m512)rounded);
#else
    using I = Ints<LANES>;
    const Vec scaled = (Vec)((I)p + ((I)rounded << 23));  // the integer is in the low bits of `rounded`
    return x >= -126.0f ? scaled : (x == x ? Vec{} : x);
#endif
}

// NaN for NaN. The coefficients for small arguments are those of tanhf in Cephes.
inline Vec tanh(Vec x) {
    const Vec square = x * x;
    Vec p = splat(-5.70498872745e-3f);
    p = p * square + 2.06390887954e-2f;
    p = p * square - 5.37397155531e-2f;
    p = p * square + 1.33314422036e-1f;
    p = p * square - 3.33332819422e-1f;
    const Vec size = x < 0.0f ? -x : x;
    const Vec large = 1.0f - 2.0f / (exp2(2.8853900817779268f * (size > 10.0f ? splat(10.0f) : size)) + 1.0f);
    return size < 0.625f ? x + x * square * p : (x < 0.0f ? -large : large);
}

// Fetches into the second-level cache: the first is full of the keys in use.
inline void prefetch(const void* from, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(from) + at, 0, 2);
}

}  // namespace MMBDHS_ISA
}  // namespace mmbdhs
