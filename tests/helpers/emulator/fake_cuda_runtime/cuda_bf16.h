#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

struct __nv_bfloat16 {
    uint16_t bits;
    explicit operator float() const {
        const uint32_t wide = uint32_t{bits} << 16;
        float value;
        std::memcpy(&value, &wide, sizeof value);
        return value;
    }
};
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
    if (std::isnan(value)) return {0x7FFF};
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return {uint16_t((bits + 0x7FFFu + (bits >> 16 & 1)) >> 16)};  // to nearest, ties to even
}
