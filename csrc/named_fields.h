// Structs of arguments that arrive from Python as dicts. Every field is found by its name, so that no two strides or
// pointers can silently change places.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cstddef>
#include <cstring>
#include <map>
#include <string>
#include <type_traits>
#include <vector>

#include "attention/attention.h"
#include "text/splice.h"

namespace mmbdhs {

struct Field {
    const char* name;
    size_t offset;
};

// All fields of a struct, each an integer or a pointer of 64 bits.
template <class Struct>
constexpr auto fields_of = std::array<Field, 0>{};

#define MMBDHS_FIELD(name) \
    Field { #name, offsetof(Struct, name) }

template <>
constexpr auto fields_of<SharedPrefix> = [] {
    using Struct = SharedPrefix;
    return std::array{MMBDHS_FIELD(q),
                      MMBDHS_FIELD(k_prefix),
                      MMBDHS_FIELD(v_prefix),
                      MMBDHS_FIELD(k_suffix),
                      MMBDHS_FIELD(v_suffix),
                      MMBDHS_FIELD(out),
                      MMBDHS_FIELD(lse),
                      MMBDHS_FIELD(prefix_count),
                      MMBDHS_FIELD(visible),
                      MMBDHS_FIELD(suffix_length),
                      MMBDHS_FIELD(prefix_offsets),
                      MMBDHS_FIELD(example),
                      MMBDHS_FIELD(dtype),
                      MMBDHS_FIELD(branches),
                      MMBDHS_FIELD(q_heads),
                      MMBDHS_FIELD(kv_heads),
                      MMBDHS_FIELD(head_dim),
                      MMBDHS_FIELD(prefix_rows),
                      MMBDHS_FIELD(prefix_keys),
                      MMBDHS_FIELD(suffix_rows),
                      MMBDHS_FIELD(examples),
                      MMBDHS_FIELD(q_branch),
                      MMBDHS_FIELD(q_head),
                      MMBDHS_FIELD(kp_head),
                      MMBDHS_FIELD(kp_row),
                      MMBDHS_FIELD(vp_head),
                      MMBDHS_FIELD(vp_row),
                      MMBDHS_FIELD(ks_branch),
                      MMBDHS_FIELD(ks_head),
                      MMBDHS_FIELD(ks_row),
                      MMBDHS_FIELD(vs_branch),
                      MMBDHS_FIELD(vs_head),
                      MMBDHS_FIELD(vs_row)};
}();

template <>
constexpr auto fields_of<Masked> = [] {
    using Struct = Masked;
    return std::array{MMBDHS_FIELD(q),        MMBDHS_FIELD(k),        MMBDHS_FIELD(v),       MMBDHS_FIELD(out),
                      MMBDHS_FIELD(lse),      MMBDHS_FIELD(visible),  MMBDHS_FIELD(dtype),   MMBDHS_FIELD(batch),
                      MMBDHS_FIELD(q_heads),  MMBDHS_FIELD(kv_heads), MMBDHS_FIELD(queries), MMBDHS_FIELD(keys),
                      MMBDHS_FIELD(head_dim), MMBDHS_FIELD(causal),   MMBDHS_FIELD(q_batch), MMBDHS_FIELD(q_head),
                      MMBDHS_FIELD(q_row),    MMBDHS_FIELD(k_batch),  MMBDHS_FIELD(k_head),  MMBDHS_FIELD(k_row),
                      MMBDHS_FIELD(v_batch),  MMBDHS_FIELD(v_head),   MMBDHS_FIELD(v_row)};
}();

template <>
constexpr auto fields_of<Splices> = [] {
    using Struct = Splices;
    return std::array{MMBDHS_FIELD(text),
                      MMBDHS_FIELD(text_size),
                      MMBDHS_FIELD(offsets),
                      MMBDHS_FIELD(rows),
                      MMBDHS_FIELD(table),
                      MMBDHS_FIELD(sentences),
                      MMBDHS_FIELD(swapped),
                      MMBDHS_FIELD(sentence_offsets),
                      MMBDHS_FIELD(kept_bytes),
                      MMBDHS_FIELD(completions),
                      MMBDHS_FIELD(completions_size),
                      MMBDHS_FIELD(joined),
                      MMBDHS_FIELD(completion_offsets),
                      MMBDHS_FIELD(joined_offsets)};
}();

#undef MMBDHS_FIELD

// Fills a struct from a dict with an integer for each of its fields and nothing else. The names are interned once,
// which makes the look-ups of a decoding step cheap, and never freed: the interpreter is gone before statics are
// destroyed.
template <class Struct>
Struct from_dict(const pybind11::dict& values) {
    constexpr auto& fields = fields_of<Struct>;
    static_assert(std::is_trivially_copyable_v<Struct> && sizeof(Struct) == sizeof(int64_t) * fields.size(),
                  "the list names every field of the struct, and each has 64 bits");
    static PyObject* names[fields.size()] = {};
    if (values.size() != fields.size())
        throw pybind11::type_error("fields: needs " + std::to_string(fields.size()) + " names, got " +
                                   std::to_string(values.size()));
    Struct result;
    for (size_t i = 0; i < fields.size(); ++i) {
        if (!names[i]) names[i] = PyUnicode_InternFromString(fields[i].name);
        PyObject* const value = PyDict_GetItemWithError(values.ptr(), names[i]);
        if (!value) throw pybind11::type_error(std::string("fields: needs '") + fields[i].name + "', which is missing");
        const int64_t number = PyLong_AsLongLong(value);
        if (number == -1 && PyErr_Occurred()) throw pybind11::error_already_set();
        std::memcpy(reinterpret_cast<char*>(&result) + fields[i].offset, &number, sizeof number);
    }
    return result;
}

// The names of a struct's fields in the order in which they stand in memory.
template <class Struct>
std::vector<std::string> field_names() {
    std::map<size_t, std::string> by_offset;
    for (const Field& field : fields_of<Struct>) by_offset[field.offset] = field.name;
    std::vector<std::string> names;
    for (const auto& entry : by_offset) names.push_back(entry.second);
    return names;
}

}  // namespace mmbdhs
