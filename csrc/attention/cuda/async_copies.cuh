// Copies of 16 bytes from global to shared memory that go on while a thread does something else.
#pragma once

#include <cstdint>

#ifdef __CUDACC__

namespace mmbdhs {
namespace {

// Begins to copy 16 bytes, or to write 16 bytes of 0. Both addresses are aligned to 16 bytes.
__device__ __forceinline__ void copy_chunk(void* to, const void* from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(uint32_t(__cvta_generic_to_shared(to))),
                 "l"(__cvta_generic_to_global(from)), "r"(there ? 16 : 0)
                 : "memory");
}

// Ends a group of copies.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until all groups of this thread's copies are done. Other threads see them after the next barrier.
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_group 0;" ::: "memory"); }

}  // namespace
}  // namespace mmbdhs

#endif  // without nvcc, the emulator of the tests defines them
