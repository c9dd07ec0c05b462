// Random words with an address: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
//
// The layout of an address, for C++ and CUDA, and for Python as ADDRESS_LAYOUT in reference.py:
//   key word 0, 1        the seed, low word first
//   counter word 0       block: an op that draws many items takes item i from word i % 4 of block i / 4
//   counter word 1       purpose << 28 | iteration << 16 | sentence
//   counter word 2, 3    the key of the example, low word first
// A word w stands for the number w / 2^32 in [0, 1).
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define MMBDHS_HOST_DEVICE __host__ __device__
#else
#define MMBDHS_HOST_DEVICE
#endif

namespace mmbdhs {

enum Purpose : uint32_t { IMAGE_MASK = 1, SWAP = 2, CUT = 3, TOKEN = 4, NOISE = 5 };

constexpr int BLOCK_WORDS = 4;
constexpr int ITERATION_SHIFT = 16;
constexpr int PURPOSE_SHIFT = 28;
constexpr uint32_t SENTENCE_LIMIT = 1u << ITERATION_SHIFT;
constexpr uint32_t ITERATION_LIMIT = 1u << (PURPOSE_SHIFT - ITERATION_SHIFT);
constexpr uint32_t PURPOSE_LIMIT = 1u << (32 - PURPOSE_SHIFT);

struct Words {
    uint32_t word[BLOCK_WORDS];
};

MMBDHS_HOST_DEVICE inline Words philox(Words counter, uint32_t key0, uint32_t key1) {
    uint32_t* c = counter.word;
    for (int round = 0; round < 10; ++round) {
        const uint64_t product0 = uint64_t{0xD2511F53u} * c[0];
        const uint64_t product1 = uint64_t{0xCD9E8D57u} * c[2];
        c[0] = uint32_t(product1 >> 32) ^ c[1] ^ key0;
        c[1] = uint32_t(product1);
        c[2] = uint32_t(product0 >> 32) ^ c[3] ^ key1;
        c[3] = uint32_t(product0);
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return counter;
}

struct Address {
    uint64_t seed;
    uint64_t key;
    uint32_t counter1;  // counter word 1
};

MMBDHS_HOST_DEVICE inline Address address(uint64_t seed, int64_t key, uint32_t purpose, uint32_t iteration,
                                          uint32_t sentence) {
    return {seed, uint64_t(key), purpose << PURPOSE_SHIFT | iteration << ITERATION_SHIFT | sentence};
}

MMBDHS_HOST_DEVICE inline Words draw_block(const Address& at, uint32_t block) {
    const Words counter = {{block, at.counter1, uint32_t(at.key), uint32_t(at.key >> 32)}};
    return philox(counter, uint32_t(at.seed), uint32_t(at.seed >> 32));
}

// A uniform number in 0 … count - 1 (0 if count is 0): the high half of the product.
inline uint32_t below(uint32_t word, uint32_t count) { return uint32_t(uint64_t{word} * count >> 32); }

// Writes `count` numbers in [0, 1) for each of `rows` addresses, row-major.
void random_uniform(uint64_t seed, const int64_t* keys, uint32_t purpose, uint32_t iteration, const int32_t* sentences,
                    int64_t rows, int64_t count, double* numbers);

}  // namespace mmbdhs
