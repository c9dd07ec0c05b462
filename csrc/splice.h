// Algorithm 1's yes/no swap and cut of each sentence, and the joining of what was kept with what completes it.
#pragma once

#include <cstdint>

namespace mmbdhs {

constexpr int64_t COPY_SLACK = 32;

// [rows] each. swapped = swappable and the coin falls; choice is uniform on 0 … choices - 1, for a swapped sentence on
// swapped_low … swapped_choices - 1; an empty range gives its lower end.
void draw_splices(uint64_t seed, const int64_t* keys, uint32_t iteration, const int32_t* sentences,
                  const uint8_t* swappable, const int32_t* choices, const int32_t* swapped_low,
                  const int32_t* swapped_choices, int64_t rows, uint8_t* swapped, int32_t* choice);

// Whether the spans of the table tile their texts, swapped sentences have a yes or no to swap, and no more is kept of a
// sentence than it holds.
bool splices_fit(const uint8_t* text, const int64_t* offsets, int64_t rows, const int64_t* table,
                 const int64_t* sentence_offsets, const uint8_t* swapped, const int64_t* kept_bytes);

// Per sentence of the table of split_sentences: the first kept_bytes of the sentence, after its swap, then its
// completion, then its own white space. `joined` has room for that and COPY_SLACK bytes; joined_offsets [rows + 1].
void join_splices(const uint8_t* text, const int64_t* offsets, int64_t rows, const int64_t* table,
                  const int64_t* sentence_offsets, const uint8_t* swapped, const int64_t* kept_bytes,
                  const uint8_t* completions, const int64_t* completion_offsets, uint8_t* joined,
                  int64_t* joined_offsets);

}  // namespace mmbdhs
