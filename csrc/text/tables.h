// The tables of the text ops as plain values, which a test compares with those of mmbdhs/native/sentence_rule.py.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "text/characters.h"
#include "text/words.h"

namespace mmbdhs {

using Ranges = std::vector<std::pair<uint32_t, uint32_t>>;

// The code points of one kind of character, as ranges that include both ends.
inline Ranges ranges_of(bool (*is_kind)(uint32_t)) {
    Ranges ranges;
    for (uint32_t code = 0; code <= 0x10FFFF; ++code) {
        if (!is_kind(code)) continue;
        if (ranges.empty() || ranges.back().second + 1 != code) ranges.push_back({code, code});
        ranges.back().second = code;
    }
    return ranges;
}

inline std::map<std::string, Ranges> character_ranges() {
    return {{"space", ranges_of(is_space)},       {"break", ranges_of(is_break)}, {"stop", ranges_of(is_stop)},
            {"cjk_stop", ranges_of(is_cjk_stop)}, {"lower", ranges_of(is_lower)}, {"closer", ranges_of(is_closer)},
            {"word", ranges_of(is_word)}};
}

using Strings = std::vector<std::string>;

inline std::map<std::string, Strings> word_tables() {
    Strings answers, counterparts;
    for (const auto& [word, other] : COUNTERPARTS) {
        answers.emplace_back(word);
        counterparts.emplace_back(other);
    }
    return {{"never_final", Strings(std::begin(NEVER_FINAL), std::end(NEVER_FINAL))},
            {"often_final", Strings(std::begin(OFTEN_FINAL), std::end(OFTEN_FINAL))},
            {"line_lead", {std::string(LINE_LEAD)}},
            {"answers", answers},
            {"counterparts", counterparts}};
}

}  // namespace mmbdhs
