// UTF-8 decoding and the kinds of characters that the sentence rule needs, as explicit tables. sentence_rule.py has the
// same tables; tests/native/test_tables.py compares the two over all of Unicode.
#pragma once

#include <cstdint>

namespace mmbdhs {

constexpr uint32_t ELLIPSIS = 0x2026;

struct Char {
    uint32_t code;
    int width;  // bytes
};

inline bool is_continuation(uint8_t byte) { return (byte & 0xC0) == 0x80; }

// Decodes the character at `position` < end. A byte b that starts no valid sequence gives U+DC00 + b, one byte wide.
inline Char decode(const uint8_t* bytes, int64_t position, int64_t end) {
    const uint8_t* b = bytes + position;
    if (b[0] < 0x80) return {b[0], 1};
    const Char stray = {0xDC00u + b[0], 1};
    const int width = b[0] >= 0xF0 ? 4 : b[0] >= 0xE0 ? 3 : 2;
    if (b[0] < 0xC2 || b[0] > 0xF4 || end - position < width) return stray;
    uint32_t code = b[0] & (0x7Fu >> width);
    for (int i = 1; i < width; ++i) {
        if (!is_continuation(b[i])) return stray;
        code = code << 6 | (b[i] & 0x3Fu);
    }
    const bool overlong = (width == 3 && code < 0x800) || (width == 4 && code < 0x10000);
    if (overlong || (code >= 0xD800 && code <= 0xDFFF) || code > 0x10FFFF) return stray;
    return {code, width};
}

// The length of a growing text without a last character whose bytes have not all arrived. Decoders write U+FFFD for
// such bytes until the rest is there.
inline int64_t whole_length(const uint8_t* bytes, int64_t length) {
    for (int64_t back = 1; back <= 3 && back <= length; ++back) {
        const uint8_t byte = bytes[length - back];
        if (is_continuation(byte)) continue;
        const int64_t needed = byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
        if (needed > back) length -= back;
        break;
    }
    while (length >= 3 && decode(bytes, length - 3, length).code == 0xFFFD) length -= 3;
    return length;
}

inline bool is_break(uint32_t c) { return (c >= 0xA && c <= 0xD) || c == 0x85 || c == 0x2028 || c == 0x2029; }

// Unicode White_Space.
inline bool is_space(uint32_t c) {
    if (c < 0x80) return c == 0x20 || (c >= 0x9 && c <= 0xD);
    return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
           c == 0x202F || c == 0x205F || c == 0x3000;
}

inline bool is_cjk_stop(uint32_t c) { return c == 0x3002 || c == 0xFF01 || c == 0xFF1F || c == 0xFF61 || c == 0xFF0E; }

inline bool is_stop(uint32_t c) { return c == '.' || c == '!' || c == '?' || c == ELLIPSIS || is_cjk_stop(c); }

// " ' ) ] } * _ and ” ’ » 」 』 ） 】
inline bool is_closer(uint32_t c) {
    switch (c) {
        case '"':
        case '\'':
        case ')':
        case ']':
        case '}':
        case '*':
        case '_':
        case 0x201D:
        case 0x2019:
        case 0xBB:
        case 0x300D:
        case 0x300F:
        case 0xFF09:
        case 0x3011:
            return true;
        default:
            return false;
    }
}

// Lower case: ASCII, Latin-1, and the basic Greek and Cyrillic letters.
inline bool is_lower(uint32_t c) {
    return (c >= 'a' && c <= 'z') || (c >= 0xDF && c <= 0xFF && c != 0xF7) || (c >= 0x3AC && c <= 0x3CE) ||
           (c >= 0x430 && c <= 0x45F);
}

inline bool is_ascii_letter(uint32_t c) { return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z'); }
inline bool is_ascii_digit(uint32_t c) { return c >= '0' && c <= '9'; }

// Part of a word: ASCII letters, digits and _, and everything from U+0080 on except these ranges of punctuation, spaces
// and symbols.
inline bool is_word(uint32_t c) {
    if (c < 0x80) return is_ascii_letter(c) || is_ascii_digit(c) || c == '_';
    constexpr uint32_t NON_WORD[][2] = {
        {0x80, 0xA9},     {0xAB, 0xB4},     {0xB6, 0xB9},     {0xBB, 0xBF},     {0xD7, 0xD7},     {0xF7, 0xF7},
        {0x1680, 0x1680}, {0x2000, 0x206F}, {0x2190, 0x2BFF}, {0x2E00, 0x2E7F}, {0x3000, 0x303F}, {0xFE10, 0xFE1F},
        {0xFE30, 0xFE6F}, {0xFF00, 0xFF0F}, {0xFF1A, 0xFF20}, {0xFF3B, 0xFF40}, {0xFF5B, 0xFF65}, {0x1F000, 0x1FAFF}};
    for (const auto& range : NON_WORD) {
        if (c <= range[1]) return c < range[0];
    }
    return true;
}

// Do the bytes before `position` > 0 end with a line break?
inline bool ends_in_break(const uint8_t* bytes, int64_t position) {
    const uint8_t* last = bytes + position - 1;
    if (*last < 0x80) return is_break(*last);
    if (position >= 2 && last[-1] == 0xC2) return *last == 0x85;
    return position >= 3 && last[-2] == 0xE2 && last[-1] == 0x80 && (*last == 0xA8 || *last == 0xA9);
}

}  // namespace mmbdhs
