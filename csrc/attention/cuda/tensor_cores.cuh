// Products of small matrices, spread over the lanes of a warp as the PTX manual describes (mma.m16n8k16). Lane l is
// number l % 4 of group l / 4, and each register holds two neighbouring elements. Hopper's wgmma would be faster on
// Hopper; these instructions run on everything from sm_80 on.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "the attention kernels need sm_80 or newer: leave older architectures out of MMBDHS_CUDA_ARCHS"
#endif

#ifdef __CUDACC__

namespace mmbdhs {
namespace {

// c [16, 8] += a [16, 16] · b [16, 8].
template <class T>
__device__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    if constexpr (std::is_same_v<T, __half>) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    } else {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
}

// Loads b [16, 8] from a row-major matrix in shared memory: lane l points at row l % 16, aligned to 16 bytes.
template <class T>
__device__ void load_transposed(uint32_t (&b)[2], const T* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(b[0]), "=r"(b[1])
                 : "r"(uint32_t(__cvta_generic_to_shared(row)))
                 : "memory");
}

}  // namespace
}  // namespace mmbdhs

#endif  // without nvcc, the emulator of the tests defines both
