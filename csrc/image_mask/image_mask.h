// Which image tokens an iteration may see (Eq. 6): token i of an example stays visible iff its random word is at least
// `visible_from` = ceil(threshold * 2^32), which may be 2^32 (nothing is visible).
#pragma once

#include <cstdint>

#include "random/philox.h"

namespace mmbdhs {

// Bit l is set iff token 4 * block + l exists and is visible.
MMBDHS_HOST_DEVICE inline uint32_t visible_bits(const Address& at, uint32_t block, int32_t tokens,
                                                uint64_t visible_from) {
    const Words words = draw_block(at, block);
    const int64_t left = int64_t{tokens} - int64_t{BLOCK_WORDS} * block;
    uint32_t bits = 0;
    for (int word = 0; word < BLOCK_WORDS; ++word)
        bits |= uint32_t(word < left && words.word[word] >= visible_from) << word;
    return bits;
}

// The sum of tokens [examples], or -1 if one is negative.
int64_t total_tokens(const int32_t* tokens, int64_t examples);

// Draws from keys, tokens [examples] the visible indices (with room for all tokens) and offsets [examples + 1]. Returns
// the number of indices.
int64_t sample_visible(uint64_t seed, const int64_t* keys, uint32_t iteration, const int32_t* tokens, int64_t examples,
                       uint64_t visible_from, int32_t* indices, int64_t* offsets);

// The same on the current CUDA device and the given stream (a cudaStream_t), in two steps: counts int64 [examples],
// then, with the offsets that follow from them, the indices. Both throw std::runtime_error if a launch fails.
void count_visible_cuda(uint64_t seed, const int64_t* keys, uint32_t iteration, const int32_t* tokens, int64_t examples,
                        uint64_t visible_from, int64_t* counts, void* stream);
void write_visible_cuda(uint64_t seed, const int64_t* keys, uint32_t iteration, const int32_t* tokens, int64_t examples,
                        uint64_t visible_from, const int64_t* offsets, int32_t* indices, void* stream);

}  // namespace mmbdhs
