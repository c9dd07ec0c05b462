// Structs of arguments that arrive from Python as dicts. Every field is found by its name, so that no two strides or
// pointers can silently change places.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cstddef>
#include <cstring>
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

// clang-format off
#define F(name) Field{#name, offsetof(Struct, name)}

template <>
constexpr auto fields_of<SharedPrefix> = [] {
    using Struct = SharedPrefix;
    return std::array{
        F(q), F(k_prefix), F(v_prefix), F(k_suffix), F(v_suffix), F(out), F(lse), F(prefix_count),
        F(suffix_length), F(visible), F(example), F(prefix_offsets), F(dtype), F(branches), F(q_heads),
        F(kv_heads), F(head_dim), F(prefix_rows), F(prefix_keys), F(suffix_rows), F(examples), F(q_branch),
        F(q_head), F(kp_head), F(kp_row), F(vp_head), F(vp_row), F(ks_branch), F(ks_head), F(ks_row),
        F(vs_branch), F(vs_head), F(vs_row)};
}();

template <>
constexpr auto fields_of<Masked> = [] {
    using Struct = Masked;
    return std::array{
        F(q), F(k), F(v), F(out), F(lse), F(visible), F(dtype), F(batch), F(q_heads), F(kv_heads), F(queries),
        F(keys), F(head_dim), F(causal), F(q_batch), F(q_head), F(q_row), F(k_batch), F(k_head), F(k_row),
        F(v_batch), F(v_head), F(v_row)};
}();

template <>
constexpr auto fields_of<Splices> = [] {
    using Struct = Splices;
    return std::array{
        F(text), F(text_size), F(offsets), F(rows), F(table), F(sentences), F(sentence_offsets), F(swapped),
        F(kept_bytes), F(completions), F(completions_size), F(completion_offsets), F(joined),
        F(joined_offsets)};
}();

#undef F
// clang-format on

// Whether the list names every field, in memory order.
template <class Struct>
constexpr bool is_complete() {
    for (size_t i = 0; i < fields_of<Struct>.size(); ++i) {
        if (fields_of<Struct>[i].offset != sizeof(int64_t) * i) return false;
    }
    return sizeof(Struct) == sizeof(int64_t) * fields_of<Struct>.size();
}

// Fills a struct from a dict with an integer for each of its fields and nothing else. The names are interned once,
// which makes the look-ups of a decoding step cheap, and never freed: the interpreter is gone before statics are
// destroyed.
template <class Struct>
Struct from_dict(const pybind11::dict& values) {
    constexpr auto& fields = fields_of<Struct>;
    static_assert(std::is_trivially_copyable_v<Struct> && is_complete<Struct>());
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

// The names of a struct's fields, in memory order.
template <class Struct>
std::vector<std::string> field_names() {
    std::vector<std::string> names;
    for (const Field& field : fields_of<Struct>) names.push_back(field.name);
    return names;
}

}  // namespace mmbdhs
