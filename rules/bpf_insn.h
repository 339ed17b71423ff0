// BPF instructions made by hand, so that neither a compiler for BPF nor an object file is needed. Internal to rules/.
#pragma once

#include <cstdint>
#include <linux/bpf.h>

namespace novpn {

/// struct bpf_insn has bit-fields of 4 bits for the registers.
constexpr bpf_insn insn(int code, std::uint8_t to, std::uint8_t from, std::int16_t offset, std::uint32_t immediate) {
    bpf_insn made{};
    made.code = static_cast<std::uint8_t>(code);
    made.dst_reg = to & 0xfU;
    made.src_reg = from & 0xfU;
    made.off = offset;
    made.imm = static_cast<std::int32_t>(immediate);
    return made;
}

} // namespace novpn
