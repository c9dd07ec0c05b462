// The CUDA sources and their launches, on the emulator. The functions return an error message, or null.
#include <exception>

#include "attention/cuda/attention.cu"
#include "image_mask/image_mask.cu"

using namespace mmbdhs;

namespace {

std::string failure;

template <class Run>
const char* reported(const Run& run) {
    try {
        run();
        return nullptr;
    } catch (const std::exception& error) {
        failure = error.what();
        return failure.c_str();
    }
}

// Kernels with errors that the emulator must notice.
__global__ void leaves_early() {
    if (threadIdx.x == 5) return;
    __syncthreads();
}

__global__ void parts_ways() {
    if (threadIdx.x < WARP) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}

__global__ void overruns() { shared_memory[4 + threadIdx.x] = 1; }

__global__ void strays() { *reinterpret_cast<volatile int*>(8) = 1; }

__global__ void takes_much() {}

__global__ void slips() { load<4>(shared_memory + 2); }

}  // namespace

extern "C" {

const char* run_leaves_early(void* stream) {
    return reported([=] { launch("leaves_early", 2, 0, stream, leaves_early); });
}
const char* run_parts_ways(void* stream) {
    return reported([=] { launch("parts_ways", 2, 0, stream, parts_ways); });
}
const char* run_overruns(void* stream) {
    return reported([=] { launch("overruns", 2, THREADS, stream, overruns); });
}
// Two launches. The second one, past the launcher of the library, with one byte more than the first was allowed.
const char* run_takes_much(void* stream) {
    return reported([=] {
        constexpr size_t MUCH = emulator::SHARED_WITHOUT_ASKING + 1;
        launch("takes_much", 1, MUCH, stream, takes_much);
        cudaLaunchConfig_t config = {1, THREADS, MUCH + 1, stream};
        if (cudaLaunchKernelEx(&config, takes_much) != cudaSuccess) throw std::runtime_error(cudaGetErrorString({}));
    });
}
const char* run_strays(void* stream) {
    return reported([=] { launch("strays", 2, 0, stream, strays); });
}
const char* run_slips(void* stream) {
    return reported([=] { launch("slips", 2, THREADS, stream, slips); });
}

void set_schedule(int schedule) { emulator::device.schedule = schedule; }
void remove_barrier(const char* place) { emulator::device.removed = place; }
void* last_stream() { return emulator::device.stream; }

const char* count_visible(uint64_t seed, const int64_t* keys, uint32_t iteration, const int32_t* tokens,
                          int64_t examples, uint64_t visible_from, int64_t* counts, void* stream) {
    return reported([=] { count_visible_cuda(seed, keys, iteration, tokens, examples, visible_from, counts, stream); });
}

const char* write_visible(uint64_t seed, const int64_t* keys, uint32_t iteration, const int32_t* tokens,
                          int64_t examples, uint64_t visible_from, const int64_t* offsets, int32_t* indices,
                          void* stream) {
    return reported(
        [=] { write_visible_cuda(seed, keys, iteration, tokens, examples, visible_from, offsets, indices, stream); });
}

int64_t shared_prefix_workspace(const SharedPrefix* arguments) { return shared_prefix_attention_workspace(*arguments); }
// The tiles that block `index` of `blocks` takes of segments with `counts` keys each: (segment, first key) pairs. Returns
// how many there are.
int64_t tiles_of_block(const int32_t* counts, int32_t segments, int32_t index, int32_t blocks, int32_t* pairs) {
    static Tiles<__half, 128> tiles;
    tiles.segment_count = segments;
    for (int32_t i = 0; i < segments; ++i) tiles.segments[i] = {i, counts[i], 0};
    TileWalk<__half, 128> walk(tiles, {index, blocks});
    int64_t taken = 0;
    for (KeyTile tile = walk.take(); tile.count > 0; tile = walk.take(), ++taken)
        pairs[2 * taken] = tile.begin, pairs[2 * taken + 1] = tile.first;
    return taken;
}

int64_t shared_memory_of(int64_t dtype, int64_t head_dim) {
    int64_t bytes = 0;
    with_kind(dtype, head_dim, [&](auto kind) { bytes = sizeof(typename decltype(kind)::Memory); });
    return bytes;
}
int64_t masked_workspace(const Masked* arguments) { return masked_attention_workspace(*arguments); }

const char* shared_prefix_attention(const SharedPrefix* arguments, double scale, double softcap, void* workspace,
                                    void* stream) {
    return reported([=] { shared_prefix_attention_cuda(*arguments, scale, softcap, workspace, stream); });
}

const char* masked_attention(const Masked* arguments, double scale, double softcap, void* workspace, void* stream) {
    return reported([=] { masked_attention_cuda(*arguments, scale, softcap, workspace, stream); });
}
}
