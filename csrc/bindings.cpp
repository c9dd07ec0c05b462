// The Python module of the native functions. Pointers arrive as integers; the caller makes sure that they point to
// arrays of the right size.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <type_traits>
#include <vector>

#include "attention/attention.h"
#include "image_mask/image_mask.h"
#include "named_fields.h"
#include "random/philox.h"
#include "text/characters.h"
#include "text/sentences.h"
#include "text/splice.h"

namespace py = pybind11;
using namespace mmbdhs;
using namespace py::literals;

namespace {

template <class T>
using FromPython = std::conditional_t<std::is_pointer_v<T>, uintptr_t, T>;

template <class T>
T from_python(FromPython<T> value) {
    if constexpr (std::is_pointer_v<T>) {
        return reinterpret_cast<T>(value);
    } else {
        return value;
    }
}

// `names` are optional: they allow keyword arguments.
template <class Result, class... Args, class... Names>
void define(py::module_& module, const char* name, Result (*function)(Args...), const Names&... names) {
    module.def(
        name, [function](FromPython<Args>... args) { return function(from_python<Args>(args)...); },
        py::call_guard<py::gil_scoped_release>(), names...);
}

std::map<std::string, int64_t> address_layout() {
    return {{"block_words", BLOCK_WORDS},
            {"sentence_limit", SENTENCE_LIMIT},
            {"iteration_shift", ITERATION_SHIFT},
            {"iteration_limit", ITERATION_LIMIT},
            {"purpose_shift", PURPOSE_SHIFT},
            {"purpose_limit", PURPOSE_LIMIT},
            {"image_mask", IMAGE_MASK},
            {"swap", SWAP},
            {"cut", CUT},
            {"token", TOKEN},
            {"noise", NOISE}};
}

std::map<std::string, std::string> build_info() {
    return {{"compiler", MMBDHS_COMPILER}, {"cuda", MMBDHS_CUDA_VERSION}, {"cuda_archs", MMBDHS_CUDA_ARCHS}};
}

// A function whose first argument is a struct, which Python gives as a dict.
template <class Struct, class Result, class... Rest>
void define_struct(py::module_& module, const char* name, Result (*function)(const Struct&, Rest...)) {
    module.def(name, [function](const py::dict& fields, FromPython<Rest>... rest) {
        const auto arguments = from_dict<Struct>(fields);
        const py::gil_scoped_release release;
        return function(arguments, from_python<Rest>(rest)...);
    });
}

std::map<std::string, int64_t> dtypes() { return {{"float32", FLOAT32}, {"bfloat16", BFLOAT16}, {"float16", FLOAT16}}; }

std::map<std::string, std::vector<std::string>> struct_fields() {
    return {{"SharedPrefix", field_names<SharedPrefix>()},
            {"Masked", field_names<Masked>()},
            {"Splices", field_names<Splices>()}};
}

// Counter and words are four uint32 each.
void philox_words(const uint32_t* counter, uint64_t seed, uint32_t* words) {
    const Words out = philox({{counter[0], counter[1], counter[2], counter[3]}}, uint32_t(seed), uint32_t(seed >> 32));
    for (int i = 0; i < BLOCK_WORDS; ++i) words[i] = out.word[i];
}

}  // namespace

PYBIND11_MODULE(_extension, module) {
    module.def("build_info", &build_info);
    module.def("struct_fields", &struct_fields);

    // Random draws and image masks.
    module.def("address_layout", &address_layout);
    define(module, "philox", &philox_words);
    define(module, "random_uniform", &random_uniform);
    define(module, "total_tokens", &total_tokens);
    define(module, "sample_visible", &sample_visible);

    // Texts.
    module.def("kinds_of", &kinds_of);
    module.attr("NO_STOP") = NO_STOP;
    module.attr("UNDECIDED") = UNDECIDED;
    define(module, "split_sentences", &split_sentences);
    define(module, "sentence_ends", &sentence_ends);
    define(module, "draw_splices", &draw_splices);
    define_struct(module, "join_splices", &join_splices);

    // Attention.
    module.def("dtypes", &dtypes);
    define(module, "lengths_fit", &lengths_fit, "prefix_count"_a, "suffix_length"_a, "branches"_a, "visible"_a,
           "prefix_keys"_a, "example"_a, "prefix_offsets"_a, "examples"_a, "prefix_rows"_a, "suffix_rows"_a);
    define_struct(module, "shared_prefix_attention", &shared_prefix_attention);
    define_struct(module, "masked_attention", &masked_attention);
    define(module, "instruction_set", &instruction_set);
    define(module, "multiply_add_rounds", &multiply_add_rounds);

#ifdef MMBDHS_WITH_CUDA
    define(module, "count_visible_cuda", &count_visible_cuda);
    define(module, "write_visible_cuda", &write_visible_cuda);
    define_struct(module, "shared_prefix_attention_cuda", &shared_prefix_attention_cuda);
    define_struct(module, "shared_prefix_attention_workspace", &shared_prefix_attention_workspace);
    define_struct(module, "masked_attention_cuda", &masked_attention_cuda);
    define_struct(module, "masked_attention_workspace", &masked_attention_workspace);
#endif
}
