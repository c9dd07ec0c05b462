// Runs every CUDA kernel on small cases, and compares with plain computations on the CPU. It needs neither torch nor
// Python, so that the tools that watch a program see the kernels alone. Exits with 1 if a result is wrong.
//
// For a device (tests/native/test_attention_cuda.py has the command), or on the emulator, whose compiler and sanitizers
// watch the same sources.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "image_mask/image_mask.h"

namespace mmbdhs {
namespace {

template <class T>
T narrow(float value) {
    if constexpr (sizeof(T) == sizeof(float)) {
        return value;
    } else if constexpr (std::is_same_v<T, __half>) {
        return __float2half_rn(value);
    } else {
        return __float2bfloat16_rn(value);
    }
}

template <class T>
double wide(T value) {
    return double(float(value));
}

}  // namespace
}  // namespace mmbdhs

#include "attention_check.h"

namespace {

using namespace mmbdhs;

void require(cudaError_t error) {
    if (error == cudaSuccess) return;
    std::printf("CUDA: %s\n", cudaGetErrorString(error));
    std::exit(1);
}

// Every vector has memory of its own, so that a sanitizer knows where it ends.
class Cuda {
  public:
    Cuda() = default;
    Cuda(const Cuda&) = delete;
    ~Cuda() {
        for (void* memory : memory_) require(cudaFree(memory));
    }

    template <class X>
    const X* give(const std::vector<X>& values) {
        X* const here = static_cast<X*>(allocate(values.size() * sizeof(X)));
        require(cudaMemcpy(here, values.data(), values.size() * sizeof(X), cudaMemcpyHostToDevice));
        return here;
    }
    template <class X>
    X* room(std::vector<X>& values) {
        X* const here = static_cast<X*>(allocate(values.size() * sizeof(X)));
        fetch_.push_back([&values, here] {
            require(cudaMemcpy(values.data(), here, values.size() * sizeof(X), cudaMemcpyDeviceToHost));
        });
        return here;
    }
    void fetch() {
        for (const auto& fetch : fetch_) fetch();
    }

    void run(const SharedPrefix& a, const Case& c) {
        void* const workspace = allocate(size_t(shared_prefix_attention_workspace(a)));
        shared_prefix_attention_cuda(a, c.scale(), c.softcap, workspace, nullptr);
        fetch();
    }
    void run(const Masked& a, const Case& c) {
        void* const workspace = allocate(size_t(masked_attention_workspace(a)));
        masked_attention_cuda(a, c.scale(), c.softcap, workspace, nullptr);
        fetch();
    }

  private:
    void* allocate(size_t bytes) {
        void* memory = nullptr;
        require(cudaMalloc(&memory, bytes));
        memory_.push_back(memory);
        return memory;
    }

    std::vector<void*> memory_;
    std::vector<std::function<void()>> fetch_;
};

bool visible_is_right(uint64_t visible_from) {
    constexpr uint64_t SEED = 0x0123456789ABCDEF;
    constexpr uint32_t ITERATION = 6;
    const std::vector<int32_t> tokens = {0, 1, 5, 511, 512, 1134};
    const std::vector<int64_t> keys = {7, -1, int64_t{1} << 62, 0, 3, 8};
    const int64_t examples = int64_t(tokens.size()), total = total_tokens(tokens.data(), examples);
    std::vector<int32_t> indices(total), got(total);
    std::vector<int64_t> offsets(examples + 1), counts(examples);
    indices.resize(sample_visible(SEED, keys.data(), ITERATION, tokens.data(), examples, visible_from, indices.data(),
                                  offsets.data()));
    got.resize(indices.size());
    Cuda machine;
    const int64_t* const k = machine.give(keys);
    const int32_t* const t = machine.give(tokens);
    count_visible_cuda(SEED, k, ITERATION, t, examples, visible_from, machine.room(counts), nullptr);
    write_visible_cuda(SEED, k, ITERATION, t, examples, visible_from, machine.give(offsets), machine.room(got),
                       nullptr);
    machine.fetch();
    for (int64_t e = 0; e < examples; ++e) {
        if (counts[e] != offsets[e + 1] - offsets[e]) return false;
    }
    return got == indices;
}

}  // namespace

int main(int count, char** arguments) {
    bool good = true;
    for (const uint64_t visible_from : {uint64_t{0}, uint64_t{1} << 31, uint64_t{1} << 32}) {
        const bool right = visible_is_right(visible_from);
        std::printf("image mask from %llu: %s\n", static_cast<unsigned long long>(visible_from),
                    right ? "right" : "WRONG");
        good = right && good;
    }
    // Wide rows; narrow rows that no wide load may read. The quick run has few, of the kernels that differ.
    const bool quick = count > 1 && arguments[1] == std::string("quick");
    for (const Case& c : quick ? std::vector<Case>{{FLOAT32, 0, 64, 0, 0, 1}}
                               : std::vector<Case>{{FLOAT32, 0, 128, 0, 0, 1}, {FLOAT32, 0, 40, 3, 1, 1}}) {
        const auto with = [&](DType dtype, double tolerance) {
            return Case{dtype, tolerance, c.head_dim, c.softcap, c.spare, 1};
        };
        good = check<float, Cuda>("float32", with(FLOAT32, 2e-6)) && good;
        good = check<__half, Cuda>("float16", with(FLOAT16, 2e-3)) && good;
        if (!quick) good = check<__nv_bfloat16, Cuda>("bfloat16", with(BFLOAT16, 1.6e-2)) && good;
    }
    return good ? 0 : 1;
}
