// The CPU attention against its definition in double precision, for machines that Python does not run on here.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "attention.h"
#include "simd.h"

using namespace mmbdhs;
using MMBDHS_ISA::Half;

namespace {

constexpr int64_t BRANCHES = 5, GROUP = 3, KV_HEADS = 2, Q_HEADS = GROUP * KV_HEADS, PREFIX = 129, SUFFIX = 31;

template <class T>
T narrow(float value);
template <>
float narrow(float value) {
    return value;
}
template <>
Half narrow(float value) {
    return Half(value);
}

// The largest error over all outputs.
template <class T>
double error(DType dtype, int64_t head_dim, double softcap) {
    std::mt19937 chance(1);
    std::normal_distribution<float> normal;
    const auto draw = [&](int64_t count) {
        std::vector<T> numbers(count);
        for (T& number : numbers) number = narrow<T>(normal(chance));
        return numbers;
    };
    const int64_t D = head_dim;
    const auto q = draw(BRANCHES * Q_HEADS * D), kp = draw(KV_HEADS * PREFIX * D), vp = draw(KV_HEADS * PREFIX * D);
    const auto ks = draw(BRANCHES * KV_HEADS * SUFFIX * D), vs = draw(BRANCHES * KV_HEADS * SUFFIX * D);
    const int32_t counts[BRANCHES] = {129, 0, 64, 65, 1}, lengths[BRANCHES] = {0, 31, 16, 1, 7};
    std::vector<T> out(q.size());
    std::vector<float> lse(BRANCHES * Q_HEADS);
    SharedPrefix a = {};
    a.q = q.data(), a.k_prefix = kp.data(), a.v_prefix = vp.data(), a.k_suffix = ks.data(), a.v_suffix = vs.data();
    a.out = out.data(), a.lse = lse.data(), a.prefix_count = counts, a.suffix_length = lengths, a.dtype = dtype;
    a.branches = BRANCHES, a.q_heads = Q_HEADS, a.kv_heads = KV_HEADS, a.head_dim = D, a.examples = 1;
    a.prefix_rows = a.prefix_keys = PREFIX, a.suffix_rows = SUFFIX;
    a.q_branch = Q_HEADS * D, a.q_head = D;
    a.kp_head = a.vp_head = PREFIX * D, a.kp_row = a.vp_row = a.ks_row = a.vs_row = D;
    a.ks_branch = a.vs_branch = KV_HEADS * SUFFIX * D, a.ks_head = a.vs_head = SUFFIX * D;
    const double scale = 1 / std::sqrt(double(D));
    shared_prefix_attention(a, scale, softcap, 2);
    double worst = 0;
    for (int64_t b = 0; b < BRANCHES; ++b) {
        for (int64_t h = 0; h < Q_HEADS; ++h) {
            const int64_t kv = h / GROUP;
            std::vector<double> truth(D);
            double sum = 0;
            for (int64_t key = 0; key < counts[b] + lengths[b]; ++key) {
                const int64_t own = key - counts[b];
                const int64_t at = own < 0 ? (kv * PREFIX + key) * D : ((b * KV_HEADS + kv) * SUFFIX + own) * D;
                const T *k = (own < 0 ? kp : ks).data() + at, *v = (own < 0 ? vp : vs).data() + at;
                double score = 0;
                for (int64_t d = 0; d < D; ++d) score += double(q[(b * Q_HEADS + h) * D + d]) * double(k[d]);
                score *= scale;
                if (softcap > 0) score = softcap * std::tanh(score / softcap);
                const double weight = std::exp(score);
                sum += weight;
                for (int64_t d = 0; d < D; ++d) truth[d] += weight * double(v[d]);
            }
            for (int64_t d = 0; d < D; ++d)
                worst = std::fmax(worst, std::fabs(double(out[(b * Q_HEADS + h) * D + d]) - truth[d] / sum));
            worst = std::fmax(worst, std::fabs(lse[b * Q_HEADS + h] - std::log(sum)));
        }
    }
    return worst;
}

}  // namespace

int main() {
    bool good = true;
    for (const int64_t head_dim : {32, 40, 128}) {
        for (const double softcap : {0.0, 3.0}) {
            const double single = error<float>(FLOAT32, head_dim, softcap);
            const double half = error<Half>(FLOAT16, head_dim, softcap);
            std::printf("%s: head size %d: float32 %.1e, float16 %.1e\n", instruction_set(), int(head_dim), single,
                        half);
            good = good && single < 2e-6 && half < 2e-3;
        }
    }
    return good ? 0 : 1;
}
