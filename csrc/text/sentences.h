// Where a sentence ends, here and in sentence_rule.py.
//
// Text is UTF-8; a byte that belongs to no valid sequence counts as a letter. From the start of a sentence, white space
// that leads it is passed over, and then the sentence ends at the first of these places:
//
// 1. Before a line break (LF, VT, FF, CR, U+0085, U+2028, U+2029).
// 2. After a run of stops . ! ? … and the closers (quotes, brackets, * and _) directly behind it, if white space follows.
//    Anything else behind them (a letter, a digit, a comma) makes the run part of the sentence.
// 3. After a run that holds a CJK stop 。！？｡．, and its closers, whatever follows.
// 4. At the end of the text.
//
// White space after the end belongs to the sentence it follows, so that the spans of a text tile it. Rule 2 has
// exceptions:
//
// - An ellipsis (two dots or more, or …), stops with closers behind them (It says "Stop!" in red) and abbreviations that
//   often close a sentence (etc. Inc. p.m.) end it only if the next character that is not white space is no lower-case
//   letter.
// - A single dot does not end it behind a title or reference (Mr. vs. Fig.), behind letters joined by dots (U.S. Ph.D.
//   e.g.), behind one capital other than I (J. Smith), or behind the number or letter of a list item that starts a line
//   (1. The, a. The).
//
// A stop at the very end of a text that may still grow is undecided: a decided end never moves when text is appended.
// U+FFFD at the end of such a text stands for a character whose bytes have not all arrived, and is not looked at.
#pragma once

#include <cstdint>

namespace mmbdhs {

constexpr int64_t NO_STOP = -1;
constexpr int64_t UNDECIDED = -2;

// Texts of `rows` rows -> table rows (content_end, span_end, word_begin, word_end) and sentence_offsets [rows + 1].
// Positions count from the first byte of the row; the word is a leading yes or no, or -1, -1. Returns the number of
// sentences; beyond `capacity` they are counted, not written.
int64_t split_sentences(const uint8_t* text, const int64_t* offsets, int64_t rows, int64_t capacity, int64_t* table,
                        int64_t* sentence_offsets);

// For each row the end of the sentence that begins at begins[row], NO_STOP or UNDECIDED. `final` (0 or 1): no more text
// will follow, so the end of the text ends the sentence.
void sentence_ends(const uint8_t* text, const int64_t* offsets, const int64_t* begins, const uint8_t* final,
                   int64_t rows, int64_t* ends);

}  // namespace mmbdhs
