#include "splice.h"

#include <algorithm>
#include <string_view>

#include "philox.h"

namespace mmbdhs {
namespace {

using std::string_view;

string_view counterpart(string_view word) {
    if (word.size() == 3) return word[0] == 'Y' ? "No" : "no";
    return word[0] == 'N' ? "Yes" : "yes";
}

uint8_t* append(string_view piece, uint8_t* end) { return std::copy(piece.begin(), piece.end(), end); }

// The first `kept` bytes of the pieces.
template <size_t N>
uint8_t* append_kept(const string_view (&pieces)[N], int64_t kept, uint8_t* end) {
    for (const string_view piece : pieces) {
        const string_view part = piece.substr(0, size_t(kept));
        end = append(part, end);
        kept -= int64_t(part.size());
    }
    return end;
}

}  // namespace

void draw_splices(uint64_t seed, const int64_t* keys, uint32_t iteration, const int32_t* sentences,
                  const uint8_t* swappable, const int32_t* choices, const int32_t* swapped_low,
                  const int32_t* swapped_choices, int64_t rows, uint8_t* swapped, int32_t* choice) {
    for (int64_t row = 0; row < rows; ++row) {
        const auto word = [&](Purpose purpose) {
            return draw_block(address(seed, keys[row], purpose, iteration, uint32_t(sentences[row])), 0).lane[0];
        };
        swapped[row] = swappable[row] && word(SWAP) >= 1u << 31;
        const int32_t low = swapped[row] ? swapped_low[row] : 0;
        const int32_t high = swapped[row] ? swapped_choices[row] : choices[row];
        choice[row] = low + int32_t(below(word(CUT), uint32_t(std::max(high - low, 0))));
    }
}

void join_splices(const uint8_t* text, const int64_t* offsets, int64_t rows, const int64_t* table,
                  const int64_t* sentence_offsets, const uint8_t* swapped, const int64_t* kept_bytes,
                  const uint8_t* completions, const int64_t* completion_offsets, uint8_t* joined,
                  int64_t* joined_offsets) {
    const string_view endings(reinterpret_cast<const char*>(completions),
                              size_t(completion_offsets[sentence_offsets[rows]]));
    uint8_t* end = joined;
    joined_offsets[0] = 0;
    for (int64_t row = 0; row < rows; ++row) {
        const char* bytes = reinterpret_cast<const char*>(text) + offsets[row];
        const auto part = [&](int64_t from, int64_t to) { return string_view(bytes + from, size_t(to - from)); };
        int64_t begin = 0;
        for (int64_t s = sentence_offsets[row]; s < sentence_offsets[row + 1]; ++s) {
            const int64_t *span = table + 4 * s, content_end = span[0], span_end = span[1];
            if (swapped[s]) {
                const string_view pieces[] = {part(begin, span[2]), counterpart(part(span[2], span[3])),
                                              part(span[3], content_end)};
                end = append_kept(pieces, kept_bytes[s], end);
            } else {
                end = append(part(begin, begin + kept_bytes[s]), end);
            }
            end = append(endings.substr(size_t(completion_offsets[s]),
                                        size_t(completion_offsets[s + 1] - completion_offsets[s])),
                         end);
            end = append(part(content_end, span_end), end);
            begin = span_end;
        }
        joined_offsets[row + 1] = end - joined;
    }
}

}  // namespace mmbdhs
