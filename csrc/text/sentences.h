// Where a sentence ends. mmbdhs/native/sentence_rule.py describes the rule; this is the same rule in C++.
#pragma once

#include <cstdint>

namespace mmbdhs {

constexpr int64_t NO_STOP = -1;
constexpr int64_t UNDECIDED = -2;
constexpr int64_t SENTENCE_COLUMNS = 5;  // content_end, span_end, word_begin, word_end, content_begin

// Splits `rows` texts into rows of `table`, SENTENCE_COLUMNS each, and sentence_offsets [rows + 1]. Positions count from
// the first byte of their text; the word is a leading yes or no, or -1, -1. Returns the number of sentences; no more
// than `capacity` of them are written.
int64_t split_sentences(const uint8_t* text, const int64_t* offsets, int64_t rows, int64_t capacity, int64_t* table,
                        int64_t* sentence_offsets);

// Gives for each text the end of the sentence that begins with it, or NO_STOP or UNDECIDED. `final` (0 or 1) says that
// no more text will follow, so that the end of the text ends the sentence.
void sentence_ends(const uint8_t* text, const int64_t* offsets, const uint8_t* final, int64_t rows, int64_t* ends);

}  // namespace mmbdhs
