#include "image_mask/image_mask.h"

#include "random/philox.h"

namespace mmbdhs {
namespace {

// Appends the visible tokens of one example at `end`, where there is room for all of them. Returns the new end.
int32_t* list_visible(const Address& at, int32_t tokens, uint64_t visible_from, int32_t* end) {
    for (int64_t first = 0; first < tokens; first += BLOCK_WORDS) {
        const uint32_t bits = visible_bits(at, uint32_t(first / BLOCK_WORDS), tokens, visible_from);
        for (int word = 0; word < BLOCK_WORDS; ++word) {
            if (bits >> word & 1) *end++ = int32_t(first + word);
        }
    }
    return end;
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
        end = list_visible(at, tokens[example], visible_from, end);
        offsets[example + 1] = end - indices;
    }
    return end - indices;
}

}  // namespace mmbdhs
