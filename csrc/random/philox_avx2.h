// Four Philox blocks at once, for machines with AVX2. philox.h is the definition; the words are the same.
#pragma once

#if defined(__x86_64__)

#include <immintrin.h>

#include "random/philox.h"

#define MMBDHS_AVX2 __attribute__((target("avx2")))

namespace mmbdhs {
namespace {

inline bool has_avx2() { return __builtin_cpu_supports("avx2"); }

// Word w of four blocks, each in the low half of 64 bits; the high halves are meaningless.
struct FourBlocks {
    __m256i word[BLOCK_WORDS];
};

MMBDHS_AVX2 inline FourBlocks philox(FourBlocks counter, uint32_t key0, uint32_t key1) {
    const __m256i multiplier0 = _mm256_set1_epi64x(0xD2511F53), multiplier1 = _mm256_set1_epi64x(0xCD9E8D57);
    __m256i* c = counter.word;
    for (int round = 0; round < 10; ++round) {
        const __m256i product0 = _mm256_mul_epu32(multiplier0, c[0]), product1 = _mm256_mul_epu32(multiplier1, c[2]);
        const __m256i mixed0 = _mm256_xor_si256(c[1], _mm256_set1_epi64x(key0));
        const __m256i mixed1 = _mm256_xor_si256(c[3], _mm256_set1_epi64x(key1));
        c[0] = _mm256_xor_si256(_mm256_srli_epi64(product1, 32), mixed0);
        c[1] = product1;
        c[2] = _mm256_xor_si256(_mm256_srli_epi64(product0, 32), mixed1);
        c[3] = product0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return counter;
}

}  // namespace
}  // namespace mmbdhs

#endif
