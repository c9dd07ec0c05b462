#include <algorithm>
#include <cmath>

#include "attention/cuda/attention_kernel.cuh"
#include "cuda/launch.cuh"

namespace mmbdhs {
namespace {

constexpr int64_t BLOCKS_WANTED = 1024;  // four for each multiprocessor of the largest devices
constexpr int64_t KEYS_PER_SPLIT = 256;  // at least
constexpr int64_t KEYS_PER_SUFFIX_SPLIT = 64;

int tiles_of(int64_t count, int64_t size) { return int((count + size - 1) / size); }

Scale scale_of(double scale, double softcap) {
    const double log2_e = 1 / std::log(2.0);
    if (softcap > 0) return {float(scale / softcap), float(softcap * log2_e)};
    return {float(scale * log2_e), 0};
}

template <class T, int D>
struct Kind {
    using Element = T;
    using Memory = Tiles<T, D>;
    static constexpr int WIDTH = D;
};

template <class T, class Run>
void with_width(int64_t head_dim, const Run& run) {
    if (head_dim <= 64) return run(Kind<T, 64>{});
    if (head_dim <= 128) return run(Kind<T, 128>{});
    return run(Kind<T, 256>{});
}

// Runs the kernels that were compiled for these elements and this head size.
template <class Run>
void with_kind(int64_t dtype, int64_t head_dim, const Run& run) {
    if (dtype == FLOAT32) return with_width<float>(head_dim, run);
    if (dtype == BFLOAT16) return with_width<__nv_bfloat16>(head_dim, run);
    return with_width<__half>(head_dim, run);
}

// Divides the work among blocks, by shapes alone, so that a captured graph serves all lengths.
Parts parts_of(const SharedPrefix& a, void* workspace) {
    const int64_t group = a.q_heads / a.kv_heads;
    Parts parts = {};
    with_kind(a.dtype, a.head_dim, [&](auto kind) {
        constexpr int64_t rows = decltype(kind)::Memory::ROWS;
        parts.prefix_tiles = tiles_of(a.branches * group, rows);
        parts.suffix_tiles = a.suffix_rows > 0 ? tiles_of(group, rows) : 0;
    });
    const auto splits = [](int64_t blocks, int64_t keys, int64_t least) {
        return std::min(tiles_of(BLOCKS_WANTED, std::max<int64_t>(blocks, 1)), tiles_of(keys, least));
    };
    parts.splits = splits(parts.prefix_tiles * a.kv_heads, a.prefix_keys, KEYS_PER_SPLIT);
    parts.suffix_splits = splits(parts.suffix_tiles * a.branches * a.kv_heads, a.suffix_rows, KEYS_PER_SUFFIX_SPLIT);
    parts.count = parts.splits + parts.suffix_splits;
    parts.out = static_cast<float*>(workspace);
    parts.lse = parts.out + parts.count * a.branches * a.q_heads * a.head_dim;
    return parts;
}

}  // namespace

int64_t shared_prefix_attention_workspace(const SharedPrefix& a) {
    return parts_of(a, nullptr).count * a.branches * a.q_heads * (a.head_dim + 1) * int64_t(sizeof(float));
}

void shared_prefix_attention_cuda(const SharedPrefix& a, double scale, double softcap, void* workspace, void* stream) {
    const char* const op = "shared_prefix_attention";
    const Parts parts = parts_of(a, workspace);
    const int64_t tiles =
        int64_t{parts.prefix_tiles} * parts.splits + parts.suffix_tiles * a.branches * parts.suffix_splits;
    with_kind(a.dtype, a.head_dim, [&](auto kind) {
        using Kind = decltype(kind);
        using T = typename Kind::Element;
        launch(op, tiles * a.kv_heads, sizeof(typename Kind::Memory), stream, shared_prefix_kernel<T, Kind::WIDTH>, a,
               parts, scale_of(scale, softcap));
        launch(op, a.branches * a.q_heads, sizeof(WarpParts), stream, combine_kernel<T>, a, parts);
    });
}

int64_t masked_attention_workspace(const Masked& a) { return a.batch * (2 * a.keys + 1) * int64_t(sizeof(int32_t)); }

void masked_attention_cuda(const Masked& a, double scale, double softcap, void* workspace, void* stream) {
    const char* const op = "masked_attention";
    int32_t* const words = static_cast<int32_t*>(workspace);
    const VisibleKeys list = {words, words + a.batch * a.keys};
    launch(op, a.batch, sizeof(WarpSums), stream, list_visible_kernel, a.visible, a.keys, list);
    with_kind(a.dtype, a.head_dim, [&](auto kind) {
        using Kind = decltype(kind);
        const int tiles = tiles_of(a.queries * (a.q_heads / a.kv_heads), Kind::Memory::ROWS);
        launch(op, tiles * a.kv_heads * a.batch, sizeof(typename Kind::Memory), stream,
               masked_kernel<typename Kind::Element, Kind::WIDTH>, a, list, tiles, scale_of(scale, softcap));
    });
}

}  // namespace mmbdhs
