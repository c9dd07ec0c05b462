// Compares the CPU attention with its definition, for machines on which Python does not run here.
#include <cstdio>
#include <cstring>

#include "attention/cpu/simd.h"

namespace mmbdhs {
namespace {

using MMBDHS_ISA::BFloat16;
using MMBDHS_ISA::Half;

template <class T>
T narrow(float value) {
    return T(value);
}
template <>
BFloat16 narrow(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return {uint16_t(bits >> 16)};
}

template <class T>
double wide(T value) {
    return double(value);
}
template <>
double wide(BFloat16 value) {
    const uint32_t bits = uint32_t(value.bits) << 16;
    float number;
    std::memcpy(&number, &bits, sizeof number);
    return number;
}

}  // namespace
}  // namespace mmbdhs

#include "attention_check.h"

namespace {

using namespace mmbdhs;

struct Cpu {
    template <class X>
    const X* give(const std::vector<X>& values) {
        return values.data();
    }
    template <class X>
    X* room(std::vector<X>& values) {
        return values.data();
    }
    void run(const SharedPrefix& a, const Case& c) { shared_prefix_attention(a, c.scale(), c.softcap, c.threads); }
    void run(const Masked& a, const Case& c) { masked_attention(a, c.scale(), c.softcap, c.threads); }
};

}  // namespace

int main() {
    std::printf("%s\n", instruction_set());
    bool good = true;
    for (const int64_t head_dim : {32, 40, 128}) {
        for (const double softcap : {0.0, 3.0}) {
            for (const int threads : {1, 16}) {  // with more threads than heads, the threads share the keys
                const int64_t spare = softcap > 0 ? 1 : 0;
                good = check<float, Cpu>("float32", {FLOAT32, 2e-6, head_dim, softcap, spare, threads}) && good;
                good = check<BFloat16, Cpu>("bfloat16", {BFLOAT16, 1.6e-2, head_dim, softcap, spare, threads}) && good;
                good = check<Half, Cpu>("float16", {FLOAT16, 2e-3, head_dim, softcap, spare, threads}) && good;
            }
        }
    }
    return good ? 0 : 1;
}
