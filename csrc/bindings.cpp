// The Python face of the native functions: pointers arrive as integers, and the caller answers for what they point to.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "attention/attention.h"
#include "image_mask/image_mask.h"
#include "random/philox.h"
#include "text/sentences.h"
#include "text/splice.h"

namespace py = pybind11;
using namespace mmbdhs;

namespace {

template <class T>
using FromPython = std::conditional_t<std::is_pointer_v<T>, uintptr_t, T>;

template <class T>
T pass(FromPython<T> value) {
    if constexpr (std::is_pointer_v<T>) {
        return reinterpret_cast<T>(value);
    } else {
        return value;
    }
}

template <class Result, class... Args>
void define(py::module_& module, const char* name, Result (*function)(Args...)) {
    module.def(
        name, [function](FromPython<Args>... args) { return function(pass<Args>(args)...); },
        py::call_guard<py::gil_scoped_release>());
}

std::map<std::string, int64_t> address_layout() {
    return {{"lanes", LANES},
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

// The fields of a struct, in their order, as a row of integers.
template <class Arguments>
Arguments unpack(const std::vector<int64_t>& fields) {
    static_assert(std::is_trivially_copyable_v<Arguments> && sizeof(Arguments) % sizeof(int64_t) == 0);
    Arguments arguments;
    if (fields.size() * sizeof(int64_t) != sizeof arguments)
        throw std::invalid_argument("needs " + std::to_string(sizeof arguments / sizeof(int64_t)) + " fields, got " +
                                    std::to_string(fields.size()));
    std::memcpy(&arguments, fields.data(), sizeof arguments);
    return arguments;
}

template <class Arguments, class Result, class... Rest>
void define_packed(py::module_& module, const char* name, Result (*function)(const Arguments&, Rest...)) {
    module.def(name, [function](const std::vector<int64_t>& fields, FromPython<Rest>... rest) {
        const auto arguments = unpack<Arguments>(fields);
        const py::gil_scoped_release release;
        return function(arguments, pass<Rest>(rest)...);
    });
}

// Counter and words are four uint32 each.
void philox_words(const uint32_t* counter, uint64_t seed, uint32_t* words) {
    const Words out = philox({{counter[0], counter[1], counter[2], counter[3]}}, uint32_t(seed), uint32_t(seed >> 32));
    for (int lane = 0; lane < LANES; ++lane) words[lane] = out.lane[lane];
}

}  // namespace

PYBIND11_MODULE(_extension, module) {
    module.def("address_layout", &address_layout);
    module.def("build_info", &build_info);
    module.attr("COPY_SLACK") = COPY_SLACK;
    define(module, "philox", &philox_words);
    define(module, "random_uniform", &random_uniform);
    define(module, "total_tokens", &total_tokens);
    define(module, "sample_visible", &sample_visible);
    define(module, "split_sentences", &split_sentences);
    define(module, "sentence_ends", &sentence_ends);
    define(module, "draw_splices", &draw_splices);
    define_packed(module, "join_splices", &join_splices);
    define(module, "lengths_fit", &lengths_fit);
    define_packed(module, "shared_prefix_attention", &shared_prefix_attention);
    define_packed(module, "masked_attention", &masked_attention);
    define(module, "instruction_set", &instruction_set);
    define(module, "multiply_add_rounds", &multiply_add_rounds);
#ifdef MMBDHS_WITH_CUDA
    define(module, "count_visible_cuda", &count_visible_cuda);
    define(module, "write_visible_cuda", &write_visible_cuda);
    define_packed(module, "shared_prefix_attention_cuda", &shared_prefix_attention_cuda);
    define_packed(module, "shared_prefix_attention_workspace", &shared_prefix_attention_workspace);
    define_packed(module, "masked_attention_cuda", &masked_attention_cuda);
    define_packed(module, "masked_attention_workspace", &masked_attention_workspace);
#endif
}
