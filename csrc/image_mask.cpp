#include "image_mask.h"

namespace mmbdhs {

int64_t sample_visible(uint64_t seed, const int64_t* keys, uint32_t iteration, const int32_t* tokens, int64_t examples,
                       uint64_t visible_from, int32_t* indices, int64_t* offsets) {
    int64_t total = 0;
    offsets[0] = 0;
    for (int64_t example = 0; example < examples; ++example) {
        const Address at = address(seed, keys[example], IMAGE_MASK, iteration, 0);
        for (int64_t first = 0; first < tokens[example]; first += LANES) {
            const uint32_t bits = visible_bits(at, uint32_t(first / LANES), tokens[example], visible_from);
            for (int lane = 0; lane < LANES; ++lane) {
                if (bits >> lane & 1) indices[total++] = int32_t(first + lane);
            }
        }
        offsets[example + 1] = total;
    }
    return total;
}

}  // namespace mmbdhs
