#include "text/sentences.h"

#include <algorithm>
#include <string>
#include <string_view>

#include "text/text.h"

namespace mmbdhs {
namespace {

using std::string_view;

enum class Verdict { GO_ON, END, UNDECIDED };

// A run of stops [begin, run_end), with its closers and the invisible characters among them up to `after`.
struct Stop {
    int64_t begin, run_end, after;
    bool hard, only_dots, closed;
};

template <size_t N>
bool contains(const string_view (&sorted)[N], string_view word) {
    return std::binary_search(std::begin(sorted), std::end(sorted), word);
}

// Is this a Roman number of up to four letters i, v, x, or numbers joined by dots as in 1.1?
bool is_numbering(string_view word) {
    const auto only = [word](string_view letters) { return word.find_first_not_of(letters) == string_view::npos; };
    if (!word.empty() && word.size() <= 4 && (only("ivx") || only("IVX"))) return true;
    int64_t digits = 0, dots = 0;
    for (const char byte : word) {
        const bool good = byte == '.' ? digits > 0 : is_ascii_digit(uint8_t(byte)) && digits < 3;
        if (!good) return false;
        dots += byte == '.';
        digits = byte == '.' ? 0 : digits + 1;
    }
    return dots > 0 && digits > 0;
}

// What the rule remembers of the sentence that it reads; see _SoFar in sentence_rule.py.
struct SoFar {
    int64_t token = -1;
    bool leading = true, opened = true, opened_by_gap = false, token_opened = false, begun = false, in_row = false;
    int next_number = -1;

    // Takes one visible character that is no stop and in no gap.
    void read(int64_t position, uint32_t code, uint32_t kinds) {
        if (!begun) begun = true, in_row = code == '|';
        if (!(kinds & NON_WORD)) {
            if (token < 0) token = position, token_opened = opened;
            leading = opened = opened_by_gap = false;
            return;
        }
        token = -1;
        leading &= (kinds & LINE_LEAD) != 0;
        opened = leading || (kinds & LIST_OPENER);
        opened_by_gap = kinds & SPACED_LIST_OPENER;
    }

    void pass_gap() {
        token = -1;
        opened |= opened_by_gap;
    }

    void pass_stop(bool joins) {
        leading = opened = opened_by_gap = false;
        if (!joins) token = -1;
    }

    bool take_list_mark(string_view word) {
        const bool is_number = !word.empty() && word.size() <= 3 && std::all_of(word.begin(), word.end(), is_digit);
        if (!is_number) {
            const bool is_letter = word.size() == 1 && is_ascii_letter(uint8_t(word[0]));
            return token_opened && (is_letter || is_numbering(word));
        }
        int number = 0;
        for (const char digit : word) number = 10 * number + (digit - '0');
        if (!token_opened && number != next_number) return false;
        next_number = number + 1;
        return true;
    }

    static bool is_digit(char byte) { return is_ascii_digit(uint8_t(byte)); }
};

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

bool never_ends(string_view word) {
    if (contains(OFTEN_FINAL, word)) return false;
    if (contains(NEVER_FINAL, word)) return true;
    if (word.size() == 1 && word[0] >= 'A' && word[0] <= 'Z' && word[0] != 'I') return true;
    return word.find('.') != string_view::npos && is_dotted(word);
}

bool begins_number(int64_t code) { return code == '#' || (code >= '0' && code <= '9'); }

// Does the stop end the sentence, which goes on if its next character is lower case or begins a number, as asked?
Verdict judge_by_next(const Text& text, int64_t after, bool by_case, bool by_number) {
    const int64_t next = text.next_on_line(after);
    if (next == UNDECIDED) return Verdict::UNDECIDED;
    const bool go_on =
        next >= 0 && ((by_case && (kinds_of(uint32_t(next)) & LOWER)) || (by_number && begins_number(next)));
    return go_on ? Verdict::GO_ON : Verdict::END;
}

Verdict judge_dot(const Text& text, SoFar& so_far, const Stop& stop) {
    const std::string word = so_far.token < 0 ? std::string() : text.word(so_far.token, stop.begin);
    if (never_ends(word) || so_far.take_list_mark(word)) return Verdict::GO_ON;
    const bool by_case = stop.closed || contains(OFTEN_FINAL, word), by_number = contains(NUMBERED, word);
    return by_case || by_number ? judge_by_next(text, stop.after, by_case, by_number) : Verdict::END;
}

// Does the stop end the sentence?
Verdict judge(const Text& text, SoFar& so_far, const Stop& stop) {
    if (stop.after == text.end) return text.final ? Verdict::END : Verdict::UNDECIDED;
    const uint32_t kinds = kinds_of(text.at(stop.after).code);
    if (so_far.in_row) {
        const int64_t next = text.next_on_line(stop.after);
        if (next == '|' || next == UNDECIDED) return next == '|' ? Verdict::GO_ON : Verdict::UNDECIDED;
    }
    if (stop.hard && !(kinds & COMMA)) return Verdict::END;
    if (!(kinds & SPACE)) {
        const int64_t tag_end = text.tag_end(stop.after);
        if (tag_end < 0) return tag_end == UNDECIDED ? Verdict::UNDECIDED : Verdict::GO_ON;
    }
    if (text.is_dot(stop.begin, stop.run_end)) return judge_dot(text, so_far, stop);
    return stop.only_dots || stop.closed ? judge_by_next(text, stop.after, true, false) : Verdict::END;
}

Stop read_stop(const Text& text, int64_t begin) {
    Stop stop{begin, begin, begin, false, true, false};
    stop.run_end = text.skip(begin, [&](Char next, uint32_t kinds) {
        if (!(kinds & STOP)) return false;
        stop.hard |= (kinds & HARD_STOP) != 0;
        stop.only_dots &= next.code == '.' || next.code == ELLIPSIS;
        return true;
    });
    stop.after = text.skip(stop.run_end, [&](Char, uint32_t kinds) {
        stop.closed |= (kinds & CLOSER) != 0;
        return (kinds & (CLOSER | INVISIBLE)) != 0;
    });
    return stop;
}

// Is the stop a dot inside a word, as in "U.S"?
bool joins_word(const Text& text, const Stop& stop) {
    return text.is_dot(stop.begin, stop.run_end) && !stop.closed && !(kinds_of(text.at(stop.after).code) & NON_WORD);
}

int64_t find_end(const Text& text, int64_t begin) {
    SoFar so_far;
    int64_t content = begin, position = text.skip_gap(begin);
    while (position < text.end) {
        const Char next = text.at(position);
        const uint32_t kinds = kinds_of(next.code);
        if (is_plain(kinds)) {
            so_far.read(position, next.code, kinds);
            position = content = text.skip_plain(position + next.width);
            continue;
        }
        if (kinds & BREAK) return content;
        if (kinds & STOP) {
            const Stop stop = read_stop(text, position);
            const Verdict verdict = judge(text, so_far, stop);
            if (verdict != Verdict::GO_ON) return verdict == Verdict::END ? stop.after : UNDECIDED;
            position = content = stop.after;
            so_far.pass_stop(joins_word(text, stop));
            continue;
        }
        const int64_t tag_end = kinds & TAG_OPENER ? text.tag_end(position) : NO_TAG;
        if (tag_end == UNDECIDED) return UNDECIDED;
        if ((kinds & SPACE) || tag_end >= 0) {
            position = std::max(position + next.width, tag_end);
            so_far.pass_gap();
            continue;
        }
        if (!(kinds & INVISIBLE)) so_far.read(position, next.code, kinds);
        const bool extends = !(kinds & INVISIBLE) || content == position;
        position += next.width;
        if (extends) content = position;
    }
    return text.final ? content : NO_STOP;
}

// Does a number come next on the line, perhaps after a dot?
bool number_follows(const Text& text, int64_t position) {
    if (position < text.end && text.bytes[position] == '.') ++position;
    return begins_number(text.next_on_line(position));
}

// Finds the leading yes or no of the regular expression in Algorithm 1, as (begin, end), or (-1, -1). The "No" of a
// number, as in "No. 7", is no answer.
void find_swap_word(const Text& text, int64_t begin, int64_t* word) {
    word[0] = word[1] = -1;
    for (const Counterpart& answer : COUNTERPARTS) {
        const int64_t end = begin + int64_t(answer.word.size());
        if (end > text.end || text.view(begin, end) != answer.word) continue;
        const int64_t after = text.skip(end, [](Char, uint32_t kinds) { return (kinds & INVISIBLE) != 0; });
        if (after < text.end && !(kinds_of(text.at(after).code) & NON_WORD)) continue;
        if (contains(NUMBERED, answer.word) && number_follows(text, after)) continue;
        word[0] = begin;
        word[1] = end;
    }
}

}  // namespace

int64_t split_sentences(const uint8_t* text, const int64_t* offsets, int64_t rows, int64_t capacity, int64_t* table,
                        int64_t* sentence_offsets) {
    int64_t count = 0;
    sentence_offsets[0] = 0;
    for (int64_t row = 0; row < rows; ++row) {
        const Text one{text + offsets[row], offsets[row + 1] - offsets[row], true};
        for (int64_t begin = 0; begin < one.end; ++count) {
            const int64_t content_end = find_end(one, begin), span_end = one.skip_gap(content_end);
            if (count < capacity) {
                int64_t* entry = table + SENTENCE_COLUMNS * count;
                entry[0] = content_end;
                entry[1] = span_end;
                entry[4] = std::min(one.skip_gap(begin), content_end);
                find_swap_word(one, entry[4], entry + 2);
            }
            begin = span_end;
        }
        sentence_offsets[row + 1] = count;
    }
    return count;
}

void sentence_ends(const uint8_t* text, const int64_t* offsets, const uint8_t* final, int64_t rows, int64_t* ends) {
    for (int64_t row = 0; row < rows; ++row) {
        const uint8_t* bytes = text + offsets[row];
        const int64_t length = offsets[row + 1] - offsets[row];
        ends[row] = find_end({bytes, final[row] ? length : whole_length(bytes, length), final[row] != 0}, 0);
    }
}

}  // namespace mmbdhs
