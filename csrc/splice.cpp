#include "splice.h"

#include <algorithm>
#include <cstring>
#include <string_view>

#include "philox.h"
#include "philox_avx2.h"

namespace mmbdhs {
namespace {

using std::string_view;

string_view counterpart(string_view word) {
    if (word.size() == 3) return word[0] == 'Y' ? "No" : "no";
    return word[0] == 'N' ? "Yes" : "yes";
}

// The bytes of `piece`, in steps of COPY_SLACK while the source goes on for so long: what is too much is overwritten.
uint8_t* append(string_view piece, const char* source_end, uint8_t* end) {
    if (source_end - piece.data() < int64_t(piece.size()) + COPY_SLACK)
        return std::copy(piece.begin(), piece.end(), end);
    for (size_t at = 0; at < piece.size(); at += COPY_SLACK) std::memcpy(end + at, piece.data() + at, COPY_SLACK);
    return end + piece.size();
}

bool is_answer(string_view word) { return word == "Yes" || word == "No" || word == "yes" || word == "no"; }

// Of a sentence that begins at `begin` of the text at `bytes`.
bool splice_fits(const char* bytes, int64_t begin, const int64_t* span, bool swapped, int64_t kept) {
    const int64_t content_end = span[0], span_end = span[1], word_begin = span[2], word_end = span[3];
    if (begin > content_end || content_end > span_end) return false;
    int64_t room = content_end - begin;
    if (swapped) {
        if (word_begin < begin || word_end < word_begin || content_end < word_end) return false;
        const string_view word(bytes + word_begin, size_t(word_end - word_begin));
        if (!is_answer(word)) return false;
        room += int64_t(counterpart(word).size()) - int64_t(word.size());
    }
    return 0 <= kept && kept <= room;
}

#if defined(__x86_64__)
// The first word at each of four addresses, in the low half of `words`.
MMBDHS_AVX2 void draw_four(uint64_t seed, const int64_t* keys, Purpose purpose, uint32_t iteration,
                           const int32_t* sentences, uint64_t* words) {
    const __m256i key = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(keys));
    const __m256i sentence = _mm256_cvtepu32_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(sentences)));
    const __m256i head = _mm256_set1_epi64x(address(seed, 0, purpose, iteration, 0).place);
    const FourBlocks counter = {
        {_mm256_setzero_si256(), _mm256_or_si256(head, sentence), key, _mm256_srli_epi64(key, 32)}};
    const FourBlocks drawn = philox(counter, uint32_t(seed), uint32_t(seed >> 32));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(words), drawn.lane[0]);
}
#endif

}  // namespace

void draw_splices(uint64_t seed, const int64_t* keys, uint32_t iteration, const int32_t* sentences,
                  const uint8_t* swappable, const int32_t* choices, const int32_t* swapped_low,
                  const int32_t* swapped_choices, int64_t rows, uint8_t* swapped, int32_t* choice) {
    const auto settle = [&](int64_t row, uint32_t coin, uint32_t cut) {
        swapped[row] = swappable[row] && coin >= 1u << 31;
        const int32_t low = swapped[row] ? swapped_low[row] : 0;
        const int32_t high = swapped[row] ? swapped_choices[row] : choices[row];
        choice[row] = low + int32_t(below(cut, uint32_t(std::max(high - low, 0))));
    };
    int64_t row = 0;
#if defined(__x86_64__)
    for (; has_avx2() && row + 4 <= rows; row += 4) {
        uint64_t coins[4], cuts[4];
        draw_four(seed, keys + row, SWAP, iteration, sentences + row, coins);
        draw_four(seed, keys + row, CUT, iteration, sentences + row, cuts);
        for (int i = 0; i < 4; ++i) settle(row + i, uint32_t(coins[i]), uint32_t(cuts[i]));
    }
#endif
    for (; row < rows; ++row) {
        const auto word = [&](Purpose purpose) {
            return draw_block(address(seed, keys[row], purpose, iteration, uint32_t(sentences[row])), 0).lane[0];
        };
        settle(row, word(SWAP), word(CUT));
    }
}

bool splices_fit(const uint8_t* text, const int64_t* offsets, int64_t rows, const int64_t* table,
                 const int64_t* sentence_offsets, const uint8_t* swapped, const int64_t* kept_bytes) {
    for (int64_t row = 0; row < rows; ++row) {
        const char* bytes = reinterpret_cast<const char*>(text) + offsets[row];
        const int64_t length = offsets[row + 1] - offsets[row];
        int64_t begin = 0;
        for (int64_t s = sentence_offsets[row]; s < sentence_offsets[row + 1]; ++s) {
            const int64_t* span = table + 4 * s;
            if (span[1] > length || !splice_fits(bytes, begin, span, swapped[s], kept_bytes[s])) return false;
            begin = span[1];
        }
        if (begin != length) return false;
    }
    return true;
}

void join_splices(const uint8_t* text, const int64_t* offsets, int64_t rows, const int64_t* table,
                  const int64_t* sentence_offsets, const uint8_t* swapped, const int64_t* kept_bytes,
                  const uint8_t* completions, const int64_t* completion_offsets, uint8_t* joined,
                  int64_t* joined_offsets) {
    const auto* endings = reinterpret_cast<const char*>(completions);
    const char *endings_end = endings + completion_offsets[sentence_offsets[rows]],
               *text_end = reinterpret_cast<const char*>(text) + offsets[rows];
    uint8_t* end = joined;
    joined_offsets[0] = 0;
    for (int64_t row = 0; row < rows; ++row) {
        const char* bytes = reinterpret_cast<const char*>(text) + offsets[row];
        const auto take = [&](int64_t from, int64_t to) {
            end = append(string_view(bytes + from, size_t(to - from)), text_end, end);
        };
        int64_t begin = 0;
        for (int64_t s = sentence_offsets[row]; s < sentence_offsets[row + 1]; ++s) {
            const int64_t *span = table + 4 * s, kept = kept_bytes[s];
            const int64_t before = swapped[s] ? std::min(kept, span[2] - begin) : kept;
            take(begin, begin + before);
            if (before < kept) {
                const string_view word = counterpart(string_view(bytes + span[2], size_t(span[3] - span[2])));
                const string_view part = word.substr(0, size_t(kept - before));
                end = std::copy(part.begin(), part.end(), end);
                take(span[3], span[3] + kept - before - int64_t(part.size()));
            }
            const char* ending = endings + completion_offsets[s];
            const int64_t size = completion_offsets[s + 1] - completion_offsets[s];
            end = append(string_view(ending, size_t(size)), endings_end, end);
            take(span[0], span[1]);
            begin = span[1];
        }
        joined_offsets[row + 1] = end - joined;
    }
}

}  // namespace mmbdhs
