// The words that the sentence rule and the yes/no swap know. mmbdhs/native/sentence_rule.py holds the same tables for
// the Python definition; tests/native/test_tables.py compares the two entry by entry.
#pragma once

#include <string_view>

namespace mmbdhs {

// Abbreviations after which a single dot never ends a sentence.
constexpr std::string_view NEVER_FINAL[] = {
    "Mr",  "Mrs",  "Ms",  "Mx",   "Dr",  "Prof", "St",     "Mt",  "Ft",   "Gen", "Col", "Capt",   "Lt",
    "Sgt", "Rev",  "Hon", "Sen",  "Rep", "Gov",  "Messrs", "Mme", "Mlle", "vs",  "cf",  "approx", "ca",
    "viz", "resp", "fig", "figs", "Fig", "Figs", "eq",     "eqs", "Eq",   "Eqs", "vol", "Vol",    "pp"};

// Abbreviations that often stand at the end of a sentence: the next character decides.
constexpr std::string_view OFTEN_FINAL[] = {"etc", "Inc", "inc", "Ltd", "ltd", "Co",  "Corp", "corp",
                                            "Jr",  "Sr",  "al",  "a.m", "p.m", "A.M", "P.M"};

// What may stand between the start of a line and the number of its list item.
constexpr std::string_view LINE_LEAD = " \t*#>(-";

// The answers of Algorithm 1 and what each is swapped for.
struct Counterpart {
    std::string_view word, other;
};
constexpr Counterpart COUNTERPARTS[] = {{"Yes", "No"}, {"yes", "no"}, {"No", "Yes"}, {"no", "yes"}};

}  // namespace mmbdhs
