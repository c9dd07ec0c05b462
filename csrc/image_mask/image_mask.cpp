#include "image_mask/image_mask.h"

#include "random/philox.h"
#include "random/philox_avx2.h"

namespace mmbdhs {
namespace {

// Appends the visible tokens from `first` on, a multiple of BLOCK_WORDS, at `end`. Returns the new end.
int32_t* list_visible(const Address& at, int64_t first, int32_t tokens, uint64_t visible_from, int32_t* end) {
    for (; first < tokens; first += BLOCK_WORDS) {
        const uint32_t bits = visible_bits(at, uint32_t(first / BLOCK_WORDS), tokens, visible_from);
        for (int word = 0; word < BLOCK_WORDS; ++word) {
            if (bits >> word & 1) *end++ = int32_t(first + word);
        }
    }
    return end;
}

#if defined(__x86_64__)
// The same from the first token on, 16 tokens at a time: without it, masks of half the tokens take twice as long as
// NumPy's, which the draws of a sampler should not.
MMBDHS_AVX2 int32_t* list_visible_avx2(const Address& at, int32_t tokens, uint64_t visible_from, int32_t* end) {
    constexpr int64_t STEP = 4 * BLOCK_WORDS;
    // Word w of block b belongs to token 4 * b + w. SPREAD moves bit b of a mask over the four blocks to bit 4 * b.
    constexpr uint32_t SPREAD[16] = {0x0000, 0x0001, 0x0010, 0x0011, 0x0100, 0x0101, 0x0110, 0x0111,
                                     0x1000, 0x1001, 0x1010, 0x1011, 0x1100, 0x1101, 0x1110, 0x1111};
    const __m256i hidden = _mm256_set1_epi64x(int64_t(visible_from) - 1), low = _mm256_set1_epi64x(0xFFFFFFFF);
    int64_t first = 0;
    for (; first + STEP <= tokens; first += STEP) {
        const __m256i block = _mm256_add_epi64(_mm256_set1_epi64x(first / BLOCK_WORDS), _mm256_setr_epi64x(0, 1, 2, 3));
        const FourBlocks counter = {{block, _mm256_set1_epi64x(at.counter1), _mm256_set1_epi64x(int64_t(at.key)),
                                     _mm256_set1_epi64x(int64_t(at.key >> 32))}};
        const FourBlocks words = philox(counter, uint32_t(at.seed), uint32_t(at.seed >> 32));
        uint32_t bits = 0;
        for (int word = 0; word < BLOCK_WORDS; ++word) {
            const __m256i visible = _mm256_cmpgt_epi64(_mm256_and_si256(words.word[word], low), hidden);
            bits |= SPREAD[_mm256_movemask_pd(_mm256_castsi256_pd(visible))] << word;
        }
        for (; bits; bits &= bits - 1) *end++ = int32_t(first + __builtin_ctz(bits));
    }
    return list_visible(at, first, tokens, visible_from, end);
}
#endif

// All visible tokens of one example, appended at `end`. Returns the new end.
int32_t* list_all_visible(const Address& at, int32_t tokens, uint64_t visible_from, int32_t* end) {
#if defined(__x86_64__)
    if (has_avx2()) return list_visible_avx2(at, tokens, visible_from, end);
#endif
    return list_visible(at, 0, tokens, visible_from, end);
}

}  // namespace

int64_t total_tokens(const int32_t* tokens, int64_t examples) {
    int64_t total = 0;
    for (int64_t example = 0; example < examples; ++example) {
        if (tokens[example] < 0) return -1;
        total += tokens[example];
    }
    return total;
}

int64_t sample_visible(uint64_t seed, const int64_t* keys, uint32_t iteration, const int32_t* tokens, int64_t examples,
                       uint64_t visible_from, int32_t* indices, int64_t* offsets) {
    int32_t* end = indices;
    offsets[0] = 0;
    for (int64_t example = 0; example < examples; ++example) {
        const Address at = address(seed, keys[example], IMAGE_MASK, iteration, 0);
        end = list_all_visible(at, tokens[example], visible_from, end);
        offsets[example + 1] = end - indices;
    }
    return end - indices;
}

}  // namespace mmbdhs
