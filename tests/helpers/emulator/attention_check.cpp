// Compares the CPU attention with its definition in double precision, for machines on which Python does not run here.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "attention/attention.h"
#include "attention/cpu/simd.h"

using namespace mmbdhs;
using MMBDHS_ISA::BFloat16;
using MMBDHS_ISA::Half;

namespace {

constexpr int64_t GROUP = 3, KV_HEADS = 2, Q_HEADS = GROUP * KV_HEADS;

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

template <class T>
class Normal {
  public:
    std::vector<T> operator()(int64_t count) {
        std::vector<T> numbers(count);
        for (T& number : numbers) number = narrow<T>(normal_(chance_));
        return numbers;
    }

  private:
    std::mt19937 chance_{1};
    std::normal_distribution<float> normal_;
};

struct Case {
    DType dtype;
    double tolerance;
    int64_t head_dim;
    double softcap;
    int threads;

    double scale() const { return 1 / std::sqrt(double(head_dim)); }
};

// A query row, and the addresses of its keys and values.
template <class T>
struct Row {
    const T* q;
    std::vector<const T*> k, v;
};

// Whether the results of a row are right; NaN never is.
template <class T>
bool right(const Row<T>& row, const Case& c, const T* out, float lse) {
    std::vector<double> truth(c.head_dim);
    double sum = 0;
    for (size_t key = 0; key < row.k.size(); ++key) {
        double score = 0;
        for (int64_t d = 0; d < c.head_dim; ++d) score += wide(row.q[d]) * wide(row.k[key][d]);
        score *= c.scale();
        if (c.softcap > 0) score = c.softcap * std::tanh(score / c.softcap);
        const double weight = std::exp(score);
        sum += weight;
        for (int64_t d = 0; d < c.head_dim; ++d) truth[d] += weight * wide(row.v[key][d]);
    }
    bool good = sum > 0 ? std::fabs(lse - std::log(sum)) < 4e-6 : lse == -INFINITY;
    for (int64_t d = 0; d < c.head_dim; ++d)
        good = good && std::fabs(wide(out[d]) - (sum > 0 ? truth[d] / sum : 0)) < c.tolerance;
    return good;
}

template <class T>
bool shared_prefix(const Case& c) {
    constexpr int64_t BRANCHES = 6, PREFIX = 300, SUFFIX = 31;
    const int64_t D = c.head_dim;
    const int32_t counts[BRANCHES] = {300, 0, 64, 65, 1, 0}, lengths[BRANCHES] = {0, 31, 16, 1, 7, 0};
    Normal<T> draw;
    const auto q = draw(BRANCHES * Q_HEADS * D), kp = draw(KV_HEADS * PREFIX * D), vp = draw(KV_HEADS * PREFIX * D);
    const auto ks = draw(BRANCHES * KV_HEADS * SUFFIX * D), vs = draw(BRANCHES * KV_HEADS * SUFFIX * D);
    std::vector<T> out(q.size());
    std::vector<float> lse(BRANCHES * Q_HEADS);
    SharedPrefix a = {};
    a.q = q.data(), a.k_prefix = kp.data(), a.v_prefix = vp.data(), a.k_suffix = ks.data(), a.v_suffix = vs.data();
    a.out = out.data(), a.lse = lse.data(), a.prefix_count = counts, a.suffix_length = lengths, a.dtype = c.dtype;
    a.branches = BRANCHES, a.q_heads = Q_HEADS, a.kv_heads = KV_HEADS, a.head_dim = D, a.examples = 1;
    a.prefix_rows = a.prefix_keys = PREFIX, a.suffix_rows = SUFFIX;
    a.q_branch = Q_HEADS * D, a.q_head = D;
    a.kp_head = a.vp_head = PREFIX * D, a.kp_row = a.vp_row = a.ks_row = a.vs_row = D;
    a.ks_branch = a.vs_branch = KV_HEADS * SUFFIX * D, a.ks_head = a.vs_head = SUFFIX * D;
    shared_prefix_attention(a, c.scale(), c.softcap, c.threads);
    bool good = true;
    for (int64_t at = 0; at < BRANCHES * Q_HEADS; ++at) {
        const int64_t b = at / Q_HEADS, kv = at % Q_HEADS / GROUP;
        Row<T> row = {&q[at * D], {}, {}};
        for (int64_t key = 0; key < counts[b] + lengths[b]; ++key) {
            const int64_t own = key - counts[b];
            const int64_t from = own < 0 ? (kv * PREFIX + key) * D : ((b * KV_HEADS + kv) * SUFFIX + own) * D;
            row.k.push_back((own < 0 ? kp : ks).data() + from);
            row.v.push_back((own < 0 ? vp : vs).data() + from);
        }
        good = right(row, c, &out[at * D], lse[at]) && good;
    }
    return good;
}

template <class T>
bool masked(const Case& c, bool causal) {
    constexpr int64_t BATCH = 2, QUERIES = 23, KEYS = 300;
    const int64_t D = c.head_dim;
    Normal<T> draw;
    const auto q = draw(BATCH * Q_HEADS * QUERIES * D);
    const auto k = draw(BATCH * KV_HEADS * KEYS * D), v = draw(BATCH * KV_HEADS * KEYS * D);
    std::vector<uint8_t> visible(BATCH * KEYS);
    // The first queries of the second row see nothing if causal.
    for (int64_t at = 0; at < BATCH * KEYS; ++at) visible[at] = at < KEYS ? at % 3 > 0 : at > 2 * KEYS - 10;
    std::vector<T> out(q.size());
    std::vector<float> lse(BATCH * Q_HEADS * QUERIES);
    Masked a = {};
    a.q = q.data(), a.k = k.data(), a.v = v.data(), a.out = out.data(), a.lse = lse.data(), a.visible = visible.data();
    a.dtype = c.dtype, a.batch = BATCH, a.q_heads = Q_HEADS, a.kv_heads = KV_HEADS, a.queries = QUERIES, a.keys = KEYS;
    a.head_dim = D, a.causal = causal;
    a.q_batch = Q_HEADS * QUERIES * D, a.q_head = QUERIES * D, a.q_row = a.k_row = a.v_row = D;
    a.k_batch = a.v_batch = KV_HEADS * KEYS * D, a.k_head = a.v_head = KEYS * D;
    masked_attention(a, c.scale(), c.softcap, c.threads);
    bool good = true;
    for (int64_t at = 0; at < BATCH * Q_HEADS * QUERIES; ++at) {
        const int64_t head = at / QUERIES, n = head / Q_HEADS, kv = head % Q_HEADS / GROUP;
        const int64_t limit = causal ? KEYS - QUERIES + at % QUERIES + 1 : KEYS;
        Row<T> row = {&q[at * D], {}, {}};
        for (int64_t key = 0; key < limit; ++key) {
            if (!visible[n * KEYS + key]) continue;
            row.k.push_back(&k[((n * KV_HEADS + kv) * KEYS + key) * D]);
            row.v.push_back(&v[((n * KV_HEADS + kv) * KEYS + key) * D]);
        }
        good = right(row, c, &out[at * D], lse[at]) && good;
    }
    return good;
}

template <class T>
bool check(const char* name, const Case& c) {
    const bool results[] = {shared_prefix<T>(c), masked<T>(c, false), masked<T>(c, true)};
    std::printf("%s: %s, head size %d, softcap %g, %d thread(s): shared prefix %s, masked %s, causal %s\n",
                instruction_set(), name, int(c.head_dim), c.softcap, c.threads, results[0] ? "right" : "WRONG",
                results[1] ? "right" : "WRONG", results[2] ? "right" : "WRONG");
    return results[0] && results[1] && results[2];
}

}  // namespace

int main() {
    bool good = true;
    for (const int64_t head_dim : {32, 40, 128}) {
        for (const double softcap : {0.0, 3.0}) {
            for (const int threads : {1, 16}) {  // with more threads than heads, the threads share the keys
                good = check<float>("float32", {FLOAT32, 2e-6, head_dim, softcap, threads}) && good;
                good = check<BFloat16>("bfloat16", {BFLOAT16, 1.6e-2, head_dim, softcap, threads}) && good;
                good = check<Half>("float16", {FLOAT16, 2e-3, head_dim, softcap, threads}) && good;
            }
        }
    }
    return good ? 0 : 1;
}
