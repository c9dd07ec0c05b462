#include "text/splice.h"

#include <algorithm>
#include <cstring>

#include "random/philox.h"
#include "random/philox_avx2.h"

namespace mmbdhs {
namespace {

// The first `size` bytes, in steps of STEP while the source goes on for so long: what is too much is overwritten.
template <int64_t STEP>
[[gnu::always_inline]] inline uint8_t* append(const char* from, int64_t size, const char* source_end, uint8_t* end) {
    if (__builtin_expect(source_end - from < size + STEP, 0)) return std::copy(from, from + size, end);
    std::memcpy(end, from, STEP);
    for (int64_t at = STEP; at < size; at += STEP) std::memcpy(end + at, from + at, STEP);
    return end + size;
}

constexpr uint32_t letters(char a, char b, char c) { return uint32_t(a) | uint32_t(b) << 8 | uint32_t(c) << 16; }

// Writes what a yes or no of two or three letters is swapped for, in its case, and returns its length: 0 for any other
// word. There is room for three bytes. Without branches: answers are random.
[[gnu::always_inline]] inline int64_t write_counterpart(const char* word, int64_t size, uint8_t* to) {
    constexpr uint32_t CASE = 'a' ^ 'A';
    const uint32_t found = letters(word[0], word[1], word[size - 1]);
    const bool no = (size == 2) & ((found | CASE) == letters('n', 'o', 'o'));
    const bool yes = (size == 3) & ((found | CASE) == letters('y', 'e', 's'));
    const uint32_t other = (no ? letters('y', 'e', 's') : letters('n', 'o', 0)) ^ (~found & CASE);
    for (int i = 0; i < 3; ++i) to[i] = uint8_t(other >> 8 * i);
    return 3 * no + 2 * yes;
}

// A row of the table of split_sentences, and where the sentence begins.
struct Sentence {
    int64_t begin, content_end, span_end, word_begin, word_end;
};

// The first `kept` bytes of a sentence of the text at `bytes`; nullptr if it does not hold so many.
[[gnu::always_inline]] inline uint8_t* append_written(const char* bytes, const Sentence& s, int64_t kept,
                                                      const char* text_end, uint8_t* end) {
    if (kept > s.content_end - s.begin) return nullptr;
    return append<COPY_SLACK>(bytes + s.begin, kept, text_end, end);
}

// The same of a sentence with its yes or no swapped; nullptr too if it has none.
[[gnu::always_inline]] inline uint8_t* append_swapped(const char* bytes, const Sentence& s, int64_t kept,
                                                      const char* text_end, uint8_t* end) {
    const int64_t word = s.word_end - s.word_begin;
    if (s.word_begin < s.begin || word < 2 || word > 3 || s.content_end < s.word_end) return nullptr;
    const int64_t before = std::min(kept, s.word_begin - s.begin);
    if (before > 0) end = append<COPY_SLACK>(bytes + s.begin, before, text_end, end);
    const int64_t size = write_counterpart(bytes + s.word_begin, word, end);
    const int64_t of_word = std::min(kept - before, size), after = kept - before - of_word;
    if (size == 0 || after > s.content_end - s.word_end) return nullptr;
    return append<COPY_SLACK>(bytes + s.word_end, after, text_end, end + of_word);
}

#if defined(__x86_64__)
// As draw_words, for a multiple of four rows.
MMBDHS_AVX2 void draw_fours(uint64_t seed, const int64_t* keys, Purpose purpose, uint32_t iteration,
                            const int32_t* sentences, int64_t rows, uint32_t* words) {
    const __m256i head = _mm256_set1_epi64x(address(seed, 0, purpose, iteration, 0).place);
    const __m256i low_halves = _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6);
    for (int64_t row = 0; row < rows; row += 4) {
        const __m256i key = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(keys + row));
        const __m128i sentence = _mm_loadu_si128(reinterpret_cast<const __m128i*>(sentences + row));
        const __m256i place = _mm256_or_si256(head, _mm256_cvtepu32_epi64(sentence));
        const FourBlocks counter = {{_mm256_setzero_si256(), place, key, _mm256_srli_epi64(key, 32)}};
        const __m256i drawn = philox(counter, uint32_t(seed), uint32_t(seed >> 32)).lane[0];
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
        words[row] = draw_block(address(seed, keys[row], purpose, iteration, uint32_t(sentences[row])), 0).lane[0];
}

[[gnu::always_inline]] inline int64_t join(const Splices& a) {
    const auto *texts = reinterpret_cast<const char*>(a.text), *text_end = texts + a.text_size;
    const auto *endings = reinterpret_cast<const char*>(a.completions), *endings_end = endings + a.completions_size;
    if (a.offsets[0] || a.sentence_offsets[0] || a.completion_offsets[0]) return -1;
    uint8_t* end = a.joined;
    a.joined_offsets[0] = 0;
    int64_t s = 0, ending = 0, row = 0;
    for (; row < a.rows; ++row) {
        const char* bytes = texts + a.offsets[row];
        const int64_t length = a.offsets[row + 1] - a.offsets[row], last = a.sentence_offsets[row + 1];
        if (length < 0 || a.offsets[row + 1] > a.text_size || last < s || last > a.sentences) return -1;
        int64_t begin = 0;
        for (; s < last; ++s) {
            const int64_t *span = a.table + 4 * s, kept = a.kept_bytes[s], ending_end = a.completion_offsets[s + 1];
            const Sentence here = {begin, span[0], span[1], span[2], span[3]};
            if (begin > here.content_end || here.content_end > here.span_end || here.span_end > length || kept < 0 ||
                ending > ending_end || ending_end > a.completions_size)
                return -1;
            end = a.swapped[s] ? append_swapped(bytes, here, kept, text_end, end)
                               : append_written(bytes, here, kept, text_end, end);
            if (!end) return -1;
            end = append<COPY_SLACK>(endings + ending, ending_end - ending, endings_end, end);
            end = append<16>(bytes + here.content_end, here.span_end - here.content_end, text_end, end);
            begin = here.span_end;
            ending = ending_end;
        }
        if (begin != length) return -1;
        a.joined_offsets[row + 1] = end - a.joined;
    }
    const bool whole = a.offsets[row] == a.text_size && s == a.sentences && ending == a.completions_size;
    return whole ? end - a.joined : -1;
}

#if defined(__x86_64__)
// The same with wider copies.
MMBDHS_AVX2 int64_t join_avx2(const Splices& a) { return join(a); }
#endif

}  // namespace

bool draw_splices(uint64_t seed, const int64_t* keys, uint32_t iteration, const int32_t* sentences,
                  const uint8_t* swappable, const int32_t* choices, const int32_t* swapped_low,
                  const int32_t* swapped_choices, int64_t rows, uint8_t* swapped, int32_t* choice) {
    constexpr int64_t BLOCK = 256;
    uint32_t coins[BLOCK], cuts[BLOCK];
    int32_t signs = 0;
    for (int64_t begin = 0; begin < rows; begin += BLOCK) {
        const int64_t count = std::min(BLOCK, rows - begin);
        draw_words(seed, keys + begin, SWAP, iteration, sentences + begin, count, coins);
        draw_words(seed, keys + begin, CUT, iteration, sentences + begin, count, cuts);
        for (int64_t i = 0, row = begin; i < count; ++i, ++row) {  // no branches: they would go either way
            const int32_t low = swapped_low[row], end = choices[row], swapped_end = swapped_choices[row];
            signs |= low | end | swapped_end | sentences[row] | (int32_t(SENTENCE_LIMIT) - 1 - sentences[row]);
            const bool swap = swappable[row] & (coins[i] >> 31);
            const int32_t from = swap ? low : 0, to = swap ? swapped_end : end;
            swapped[row] = swap;
            choice[row] = from + int32_t(below(cuts[i], uint32_t(std::max(to - from, 0))));
        }
    }
    return signs >= 0;
}

int64_t join_splices(const Splices& a) {
#if defined(__x86_64__)
    if (has_avx2()) return join_avx2(a);
#endif
    return join(a);
}

}  // namespace mmbdhs
