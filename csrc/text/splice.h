// Algorithm 1's yes/no swap and cut of each sentence, and joining the kept text with its completions.
#pragma once

#include <cstdint>

namespace mmbdhs {

// All arrays are [rows]. A sentence is swapped if it is swappable and its coin is at least 1/2. Its choice is uniform
// on 0 … choices - 1, or on 0 … swapped_choices - 1 if it is swapped; an empty range gives 0. Returns false if a
// sentence number or a bound is out of range; the results are then meaningless.
bool draw_splices(uint64_t seed, const int64_t* keys, uint32_t iteration, const int32_t* sentences,
                  const uint8_t* swappable, const int32_t* choices, const int32_t* swapped_choices, int64_t rows,
                  uint8_t* swapped, int32_t* choice);

// The arguments of join_splices: texts with the table that split_sentences made of them, and for each sentence what was
// drawn and how it was completed. Every field has 64 bits, because the fields arrive from Python as integers.
struct Splices {
    const uint8_t* text;  // [text_size]
    int64_t text_size;
    const int64_t* offsets;  // [rows + 1]
    int64_t rows;
    const int64_t* table;  // [sentences, SENTENCE_COLUMNS]
    int64_t sentences;
    const int64_t* sentence_offsets;  // [rows + 1]
    const uint8_t* swapped;           // [sentences]
    const int64_t* kept_bytes;        // [sentences], counted after the swap
    const uint8_t* completions;       // [completions_size]
    int64_t completions_size;
    const int64_t* completion_offsets;  // [sentences + 1]
    uint8_t* joined;                    // [text_size + sentences + completions_size]: a swap adds one byte at most
    int64_t* joined_offsets;            // [rows + 1]
};

// Writes for each sentence its kept bytes, its completion and the gap after it. Returns the number of bytes written,
// or -1 if some offsets do not rise from 0 to their total, the spans do not tile their texts, a swapped sentence has no
// yes or no, or more is kept of a sentence than it holds.
int64_t join_splices(const Splices& splices);

}  // namespace mmbdhs
