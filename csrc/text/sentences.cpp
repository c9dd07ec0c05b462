#include "text/sentences.h"

#include <algorithm>
#include <string_view>

#include "text/characters.h"
#include "text/words.h"

namespace mmbdhs {
namespace {

using std::string_view;

enum class Verdict { GO_ON, END, UNDECIDED };

// A run of stops [begin, run_end) and its closers [run_end, after).
struct Stop {
    int64_t begin, run_end, after;
    bool has_cjk, only_dots;
};

template <size_t N>
bool contains(const string_view (&list)[N], string_view word) {
    return std::find(std::begin(list), std::end(list), word) != std::end(list);
}

// The first `end` bytes of one text.
struct Text {
    const uint8_t* bytes;
    int64_t end;

    Char at(int64_t position) const { return decode(bytes, position, end); }
    string_view view(int64_t begin, int64_t stop) const {
        return {reinterpret_cast<const char*>(bytes) + begin, size_t(stop - begin)};
    }
    template <class Kind>
    int64_t skip(int64_t position, Kind kind) const {
        while (position < end) {
            const Char next = at(position);
            if (!kind(next.code)) break;
            position += next.width;
        }
        return position;
    }
};

bool is_list_mark(string_view word) {
    if (word.size() == 1 && is_ascii_letter(uint8_t(word[0]))) return true;
    return !word.empty() && word.size() <= 3 && std::all_of(word.begin(), word.end(), is_ascii_digit);
}

bool starts_line(const Text& text, int64_t position) {
    while (position > 0 && LINE_LEAD.find(char(text.bytes[position - 1])) != string_view::npos) --position;
    return position == 0 || ends_in_break(text.bytes, position);
}

// Letters joined by dots, one or two between two dots. A word neither begins nor ends with a dot, nor has two in a row.
bool is_dotted(string_view word) {
    size_t length = 0;
    for (const char byte : word) {
        length = byte == '.' ? 0 : length + 1;
        const bool good = byte == '.' || (is_ascii_letter(uint8_t(byte)) && length <= 2);
        if (!good) return false;
    }
    return true;
}

bool never_ends(const Text& text, int64_t token, string_view word) {
    if (contains(NEVER_FINAL, word)) return true;
    if (word.size() == 1 && word[0] >= 'A' && word[0] <= 'Z' && word[0] != 'I') return true;
    if (word.find('.') != string_view::npos) return is_dotted(word);
    return is_list_mark(word) && starts_line(text, token);
}

Verdict judge_by_case(const Text& text, int64_t after, bool final) {
    const int64_t following = text.skip(after, [](uint32_t code) { return is_space(code) && !is_break(code); });
    if (following == text.end) return final ? Verdict::END : Verdict::UNDECIDED;
    return is_lower(text.at(following).code) ? Verdict::GO_ON : Verdict::END;
}

// Does the stop end the sentence? `token` is where the word directly before it begins, or -1.
Verdict judge(const Text& text, int64_t token, const Stop& stop, bool final) {
    if (stop.after == text.end) return final ? Verdict::END : Verdict::UNDECIDED;
    if (stop.has_cjk) return Verdict::END;
    if (!is_space(text.at(stop.after).code)) return Verdict::GO_ON;
    bool by_case = stop.after > stop.run_end;
    if (text.view(stop.begin, stop.run_end) == ".") {
        const string_view word = token < 0 ? string_view{} : text.view(token, stop.begin);
        const bool often_final = contains(OFTEN_FINAL, word);
        if (!often_final && never_ends(text, token, word)) return Verdict::GO_ON;
        by_case |= often_final;
    } else {
        by_case |= stop.only_dots;
    }
    return by_case ? judge_by_case(text, stop.after, final) : Verdict::END;
}

Stop read_stop(const Text& text, int64_t begin) {
    Stop stop{begin, begin, begin, false, true};
    stop.run_end = text.skip(begin, [&](uint32_t code) {
        if (!is_stop(code)) return false;
        stop.has_cjk |= is_cjk_stop(code);
        stop.only_dots &= code == '.' || code == ELLIPSIS;
        return true;
    });
    stop.after = text.skip(stop.run_end, is_closer);
    return stop;
}

// Is the stop a dot inside a word, as in "U.S"?
bool joins_word(const Text& text, const Stop& stop) {
    return stop.after == stop.begin + 1 && text.bytes[stop.begin] == '.' && is_word(text.at(stop.after).code);
}

int64_t find_end(const Text& text, int64_t begin, bool final) {
    int64_t content = begin, token = -1;
    int64_t position = text.skip(begin, is_space);
    while (position < text.end) {
        const Char next = text.at(position);
        if (is_break(next.code)) return content;
        if (is_stop(next.code)) {
            const Stop stop = read_stop(text, position);
            const Verdict verdict = judge(text, token, stop, final);
            if (verdict == Verdict::UNDECIDED) return UNDECIDED;
            position = content = stop.after;
            if (verdict == Verdict::END) return content;
            if (!joins_word(text, stop)) token = -1;
            continue;
        }
        if (!is_word(next.code)) {
            token = -1;
        } else if (token < 0) {
            token = position;
        }
        position += next.width;
        if (!is_space(next.code)) content = position;
    }
    return final ? content : NO_STOP;
}

// Finds the leading yes or no of the regular expression in Algorithm 1, as (begin, end), or (-1, -1).
void find_swap_word(const Text& text, int64_t begin, int64_t* word) {
    const int64_t first = text.skip(begin, is_space);
    word[0] = word[1] = -1;
    for (const Counterpart& answer : COUNTERPARTS) {
        const int64_t last = first + int64_t(answer.word.size());
        if (last > text.end || text.view(first, last) != answer.word) continue;
        if (last < text.end && is_word(text.at(last).code)) continue;
        word[0] = first;
        word[1] = last;
    }
}

}  // namespace

int64_t split_sentences(const uint8_t* text, const int64_t* offsets, int64_t rows, int64_t capacity, int64_t* table,
                        int64_t* sentence_offsets) {
    int64_t count = 0;
    sentence_offsets[0] = 0;
    for (int64_t row = 0; row < rows; ++row) {
        const Text one{text + offsets[row], offsets[row + 1] - offsets[row]};
        for (int64_t begin = 0; begin < one.end; ++count) {
            const int64_t content_end = find_end(one, begin, true);
            const int64_t span_end = one.skip(content_end, is_space);
            if (count < capacity) {
                int64_t* entry = table + 4 * count;
                entry[0] = content_end;
                entry[1] = span_end;
                find_swap_word(one, begin, entry + 2);
            }
            begin = span_end;
        }
        sentence_offsets[row + 1] = count;
    }
    return count;
}

void sentence_ends(const uint8_t* text, const int64_t* offsets, const int64_t* begins, const uint8_t* final,
                   int64_t rows, int64_t* ends) {
    for (int64_t row = 0; row < rows; ++row) {
        const uint8_t* bytes = text + offsets[row];
        int64_t end = offsets[row + 1] - offsets[row];
        if (!final[row]) end = std::max(begins[row], whole_length(bytes, end));
        ends[row] = find_end({bytes, end}, begins[row], final[row] != 0);
    }
}

}  // namespace mmbdhs
