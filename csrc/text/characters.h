// UTF-8 decoding, and the kinds of each character. text/sentence_tables.h is written at build time from the tables of
// mmbdhs/native/sentence_tables.py.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>

#include "text/sentence_tables.h"

namespace mmbdhs {

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

// The kinds of a character, as bits of Kind.
inline uint32_t kinds_of(uint32_t code) {
    if (code < 0x80) return ASCII_KINDS[code];
    const uint32_t* next = std::upper_bound(std::begin(RANGE_BEGINS), std::end(RANGE_BEGINS), code);
    return RANGE_KINDS[next - RANGE_BEGINS - 1];
}

inline bool is_ascii_letter(uint32_t c) { return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z'); }
inline bool is_ascii_digit(uint32_t c) { return c >= '0' && c <= '9'; }

}  // namespace mmbdhs
