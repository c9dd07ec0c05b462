#include "random/philox.h"

#include <algorithm>

namespace mmbdhs {

void random_uniform(uint64_t seed, const int64_t* keys, uint32_t purpose, uint32_t iteration, const int32_t* sentences,
                    int64_t rows, int64_t count, double* numbers) {
    for (int64_t row = 0; row < rows; ++row) {
        const Address at = address(seed, keys[row], purpose, iteration, uint32_t(sentences[row]));
        for (int64_t item = 0; item < count; item += BLOCK_WORDS) {
            const Words words = draw_block(at, uint32_t(item / BLOCK_WORDS));
            const int64_t left = std::min<int64_t>(BLOCK_WORDS, count - item);
            for (int64_t word = 0; word < left; ++word) *numbers++ = words.word[word] * 0x1p-32;
        }
    }
}

}  // namespace mmbdhs
