// A text as the sentence rule reads it: its characters, the gaps and the tags in it. See _Scan in sentence_rule.py.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>

#include "text/characters.h"
#include "text/sentences.h"

namespace mmbdhs {

constexpr uint32_t ELLIPSIS = 0x2026;
constexpr int64_t NO_TAG = -1;
constexpr int64_t END_OF_TEXT = -1;  // in place of a next character

// Is a character of these kinds nothing but a part of a word?
inline bool is_plain(uint32_t kinds) { return !(kinds & ~uint32_t(LOWER)); }

// The first `end` bytes of one text; `final` says that no more will follow.
struct Text {
    const uint8_t* bytes;
    int64_t end;
    bool final;

    Char at(int64_t position) const { return decode(bytes, position, end); }
    std::string_view view(int64_t begin, int64_t stop) const {
        return {reinterpret_cast<const char*>(bytes) + begin, size_t(stop - begin)};
    }
    bool is_dot(int64_t begin, int64_t stop) const { return stop == begin + 1 && bytes[begin] == '.'; }

    // Skips characters while `wanted`(character, kinds).
    template <class Wanted>
    int64_t skip(int64_t position, Wanted wanted) const {
        while (position < end) {
            const Char next = at(position);
            if (!wanted(next, kinds_of(next.code))) break;
            position += next.width;
        }
        return position;
    }

    // Skips ASCII characters that are nothing but parts of a word.
    int64_t skip_plain(int64_t position) const {
        while (position < end && bytes[position] < 0x80 && is_plain(ASCII_KINDS[bytes[position]])) ++position;
        return position;
    }

    // Skips spaces, invisible characters, whole tags and lines of marks.
    int64_t skip_gap(int64_t position) const {
        while (true) {
            position = skip(position, [](Char, uint32_t kinds) { return (kinds & (SPACE | INVISIBLE)) != 0; });
            if (position == end || !(kinds_of(at(position).code) & (TAG_OPENER | MARK))) return position;
            const int64_t end_of_part = std::max(tag_end(position), marks_end(position));
            if (end_of_part < 0) return position;
            position = end_of_part;
        }
    }

    // The first character from `position` on that is in no gap, the line break before it, END_OF_TEXT, or UNDECIDED if
    // only more text can tell.
    int64_t next_on_line(int64_t position) const {
        const auto on_line = [](Char, uint32_t kinds) { return (kinds & (SPACE | INVISIBLE)) && !(kinds & BREAK); };
        position = skip(position, on_line);
        for (int64_t past; (past = tag_end(position)) >= 0;) position = skip(past, on_line);
        if (position == end) return final ? END_OF_TEXT : UNDECIDED;
        return tag_end(position) == UNDECIDED ? UNDECIDED : int64_t(at(position).code);
    }

    // The end of the line of marks at `position`, or NO_TAG. A line that may still grow is none.
    int64_t marks_end(int64_t position) const {
        int64_t marks = 0;
        const auto is_space = [](uint32_t kinds) { return (kinds & SPACE) && !(kinds & BREAK); };
        int64_t stop = skip(position, [&](Char, uint32_t kinds) {
            marks += (kinds & MARK) != 0;
            return (kinds & MARK) || is_space(kinds);
        });
        if (marks < 3) return NO_TAG;
        const bool alike = bytes[position] == bytes[position + 1] && bytes[position] == bytes[position + 2];
        if (alike && (kinds_of(bytes[position]) & FENCE)) {
            stop = skip(stop, [](Char, uint32_t kinds) { return !(kinds & NON_WORD); });
            stop = skip(stop, [&](Char, uint32_t kinds) { return is_space(kinds); });
        }
        const bool whole = stop == end ? final : (kinds_of(at(stop).code) & BREAK) != 0;
        return whole ? stop : NO_TAG;
    }

    // The end of the tag at `position`, NO_TAG, or UNDECIDED if more text may complete one.
    int64_t tag_end(int64_t position) const {
        if (position == end) return NO_TAG;
        const Char opening = at(position);
        if (!(kinds_of(opening.code) & TAG_OPENER)) return NO_TAG;
        int64_t found = NO_TAG;
        for (const Brackets& brackets : TAG_BRACKETS) {
            if (brackets.open == opening.code) found = bracket_end(position + opening.width, brackets);
        }
        for (const std::string_view tag : WHOLE_TAGS) {
            const std::string_view read = view(position, std::min(end, position + int64_t(tag.size())));
            if (read != tag.substr(0, read.size())) continue;
            found = read.size() == tag.size() ? position + int64_t(tag.size()) : UNDECIDED;
            break;
        }
        return final && found == UNDECIDED ? NO_TAG : found;
    }

    // The end of the tag whose opening bracket ends at `position`.
    int64_t bracket_end(int64_t position, const Brackets& brackets) const {
        if (position < end && bytes[position] == '/') ++position;
        if (position == end) return UNDECIDED;
        if (bytes[position] != '|' && !is_ascii_letter(bytes[position])) return NO_TAG;
        const int64_t begin = ++position;
        while (position < end) {
            const Char next = at(position);
            position += next.width;
            if (next.code == brackets.close) return position;
            const bool ends = next.code == brackets.open || (kinds_of(next.code) & BREAK);
            if (ends || position - begin > TAG_BYTES) return NO_TAG;
        }
        return UNDECIDED;
    }

    // The visible characters of [begin, stop).
    std::string word(int64_t begin, int64_t stop) const {
        std::string visible;
        while (begin < stop) {
            const Char next = at(begin);
            if (!(kinds_of(next.code) & INVISIBLE)) visible += view(begin, begin + next.width);
            begin += next.width;
        }
        return visible;
    }
};

}  // namespace mmbdhs
