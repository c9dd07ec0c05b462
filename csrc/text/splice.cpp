#include "text/splice.h"

#include <algorithm>
#include <cstring>
#include <string_view>

#include "random/philox.h"
#include "random/philox_avx2.h"
#include "text/sentence_tables.h"
#include "text/sentences.h"

namespace mmbdhs {
namespace {

using std::string_view;

// The first columns of a row of the table of split_sentences, and where the span begins.
struct Sentence {
    int64_t begin, content_end, span_end, word_begin, word_end;
};

// Writes the joined text from its beginning on.
class Writer {
  public:
    explicit Writer(uint8_t* joined) : begin_(joined), end_(joined) {}

    void append(string_view bytes) {
        if (bytes.empty()) return;  // an empty text may have no address, which memcpy does not take
        std::memcpy(end_, bytes.data(), bytes.size());
        end_ += bytes.size();
    }
    int64_t size() const { return end_ - begin_; }

    // The first `kept` bytes of a sentence as written. False if it does not hold so many.
    bool append_written(string_view text, const Sentence& s, int64_t kept) {
        if (kept > s.content_end - s.begin) return false;
        append(text.substr(s.begin, kept));
        return true;
    }

    // The first `kept` bytes of a sentence with its yes or no swapped. False if it has none, or not so many bytes.
    bool append_swapped(string_view text, const Sentence& s, int64_t kept) {
        if (s.word_begin < s.begin || s.word_end < s.word_begin || s.content_end < s.word_end) return false;
        const string_view word = text.substr(s.word_begin, s.word_end - s.word_begin);
        for (const Counterpart& answer : COUNTERPARTS) {
            if (answer.word != word) continue;
            const int64_t before = std::min(kept, s.word_begin - s.begin);
            const int64_t of_word = std::min<int64_t>(kept - before, answer.other.size());
            const int64_t after = kept - before - of_word;
            if (after > s.content_end - s.word_end) return false;
            append(text.substr(s.begin, before));
            append(answer.other.substr(0, of_word));
            append(text.substr(s.word_end, after));
            return true;
        }
        return false;
    }

  private:
    uint8_t* begin_;
    uint8_t* end_;
};

string_view view(const uint8_t* bytes, int64_t size) { return {reinterpret_cast<const char*>(bytes), size_t(size)}; }

// Does range `at` of `bounds` not fall, and stay within `total`? The first bound is checked to be 0.
bool rises(const int64_t* bounds, int64_t at, int64_t total) {
    return bounds[at] <= bounds[at + 1] && bounds[at + 1] <= total;
}

// Joins the sentences of one text, numbers `first` to `last`. False if a splice does not fit.
bool join_text(const Splices& a, string_view text, int64_t first, int64_t last, Writer& writer) {
    int64_t begin = 0;
    for (int64_t s = first; s < last; ++s) {
        const int64_t *span = a.table + SENTENCE_COLUMNS * s, kept = a.kept_bytes[s],
                      completion = a.completion_offsets[s];
        const Sentence here = {begin, span[0], span[1], span[2], span[3]};
        if (begin > here.content_end || here.content_end > here.span_end || here.span_end > int64_t(text.size()) ||
            kept < 0 || !rises(a.completion_offsets, s, a.completions_size))
            return false;
        if (!(a.swapped[s] ? writer.append_swapped(text, here, kept) : writer.append_written(text, here, kept)))
            return false;
        writer.append(view(a.completions + completion, a.completion_offsets[s + 1] - completion));
        writer.append(text.substr(here.content_end, here.span_end - here.content_end));
        begin = here.span_end;
    }
    return begin == int64_t(text.size());
}

#if defined(__x86_64__)
// As draw_words, for a multiple of four rows.
MMBDHS_AVX2 void draw_fours(uint64_t seed, const int64_t* keys, Purpose purpose, uint32_t iteration,
                            const int32_t* sentences, int64_t rows, uint32_t* words) {
    const __m256i first = _mm256_set1_epi64x(address(seed, 0, purpose, iteration, 0).counter1);
    const __m256i low_halves = _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6);
    for (int64_t row = 0; row < rows; row += 4) {
        const __m256i key = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(keys + row));
        const __m128i sentence = _mm_loadu_si128(reinterpret_cast<const __m128i*>(sentences + row));
        const __m256i counter1 = _mm256_or_si256(first, _mm256_cvtepu32_epi64(sentence));
        const FourBlocks counter = {{_mm256_setzero_si256(), counter1, key, _mm256_srli_epi64(key, 32)}};
        const __m256i drawn = philox(counter, uint32_t(seed), uint32_t(seed >> 32)).word[0];
        const __m128i packed = _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(drawn, low_halves));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(words + row), packed);
    }
}
#endif

// The first word at each of `rows` addresses.
void draw_words(uint64_t seed, const int64_t* keys, Purpose purpose, uint32_t iteration, const int32_t* sentences,
                int64_t rows, uint32_t* words) {
    int64_t row = 0;
#if defined(__x86_64__)
    if (has_avx2()) draw_fours(seed, keys, purpose, iteration, sentences, row = rows / 4 * 4, words);
#endif
    for (; row < rows; ++row)
        words[row] = draw_block(address(seed, keys[row], purpose, iteration, uint32_t(sentences[row])), 0).word[0];
}

}  // namespace

bool draw_splices(uint64_t seed, const int64_t* keys, uint32_t iteration, const int32_t* sentences,
                  const uint8_t* swappable, const int32_t* choices, const int32_t* swapped_choices, int64_t rows,
                  uint8_t* swapped, int32_t* choice) {
    constexpr int64_t BLOCK = 256;
    uint32_t coins[BLOCK], cuts[BLOCK];
    int32_t signs = 0;  // negative once any value is out of range
    for (int64_t begin = 0; begin < rows; begin += BLOCK) {
        const int64_t count = std::min(BLOCK, rows - begin);
        draw_words(seed, keys + begin, SWAP, iteration, sentences + begin, count, coins);
        draw_words(seed, keys + begin, CUT, iteration, sentences + begin, count, cuts);
        for (int64_t i = 0, row = begin; i < count; ++i, ++row) {  // without branches: coins fall either way
            signs |= choices[row] | swapped_choices[row] | -int32_t(uint32_t(sentences[row]) >= SENTENCE_LIMIT);
            const bool swap = swappable[row] & (coins[i] >> 31);
            swapped[row] = swap;
            choice[row] = int32_t(below(cuts[i], uint32_t(swap ? swapped_choices[row] : choices[row])));
        }
    }
    return signs >= 0;
}

int64_t join_splices(const Splices& a) {
    if (a.offsets[0] || a.sentence_offsets[0] || a.completion_offsets[0]) return -1;
    Writer writer(a.joined);
    a.joined_offsets[0] = 0;
    for (int64_t row = 0; row < a.rows; ++row) {
        const int64_t begin = a.offsets[row], first = a.sentence_offsets[row], last = a.sentence_offsets[row + 1];
        if (!rises(a.offsets, row, a.text_size) || !rises(a.sentence_offsets, row, a.sentences)) return -1;
        if (!join_text(a, view(a.text + begin, a.offsets[row + 1] - begin), first, last, writer)) return -1;
        a.joined_offsets[row + 1] = writer.size();
    }
    const bool all_read = a.offsets[a.rows] == a.text_size && a.sentence_offsets[a.rows] == a.sentences &&
                          a.completion_offsets[a.sentences] == a.completions_size;
    return all_read ? writer.size() : -1;
}

}  // namespace mmbdhs
