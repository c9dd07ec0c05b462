// Algorithm 1's yes/no swap and cut of each sentence, and the joining of what was kept with what completes it.
#pragma once

#include <cstdint>

namespace mmbdhs {

constexpr int64_t COPY_SLACK = 128;  // bytes that are copied at once: few pieces are longer, and none need a branch

// [rows] each. swapped = swappable and the coin falls; choice is uniform on 0 … choices - 1, for a swapped sentence on
// swapped_low … swapped_choices - 1; an empty range gives its lower end. Returns false if the number of a sentence or a
// bound is out of range: then the results mean nothing.
bool draw_splices(uint64_t seed, const int64_t* keys, uint32_t iteration, const int32_t* sentences,
                  const uint8_t* swappable, const int32_t* choices, const int32_t* swapped_low,
                  const int32_t* swapped_choices, int64_t rows, uint8_t* swapped, int32_t* choice);

// What join_splices takes: texts with their table of split_sentences, and what is drawn and completed of each sentence.
struct Splices {
    const uint8_t* text;  // [text_size]
    int64_t text_size;
    const int64_t* offsets;  // [rows + 1]
    int64_t rows;
    const int64_t* table;  // [sentences, 4]
    int64_t sentences;
    const int64_t* sentence_offsets;  // [rows + 1]
    const uint8_t* swapped;           // [sentences]
    const int64_t* kept_bytes;        // [sentences], counted after the swap
    const uint8_t* completions;       // [completions_size]
    int64_t completions_size;
    const int64_t* completion_offsets;  // [sentences + 1]
    uint8_t* joined;                    // [text_size + sentences + completions_size + COPY_SLACK]
    int64_t* joined_offsets;            // [rows + 1]
};

// Per sentence: what is kept of it, then its completion, then its own white space. Returns the number of bytes joined, or
// -1 if offsets do not rise from 0 to their total, the spans of the table do not tile their texts, a swapped sentence has
// no yes or no, or more is kept of a sentence than it holds.
int64_t join_splices(const Splices& splices);

}  // namespace mmbdhs
