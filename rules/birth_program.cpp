#include "rules/birth_program.h"

#include "rules/bpf_insn.h"
#include "rules/hash.h"

#include <cstddef>
#include <string>

namespace novpn {
namespace {

// r0 is the answer, r1 the socket, r2 and r3 are free.
constexpr std::uint8_t kAnswer = 0, kSocket = 1, kMark = 2, kTaken = 3;
constexpr std::int16_t kMarkOffset = offsetof(bpf_sock, mark);

} // namespace

std::vector<bpf_insn> instructions_of(const BirthMark& birth) {
    constexpr std::int16_t kTwoFurther = 2;
    return {
        insn(BPF_LDX | BPF_MEM | BPF_W, kMark, kSocket, kMarkOffset, 0),
        insn(BPF_ALU | BPF_MOV | BPF_X, kTaken, kMark, 0, 0),
        // 32-bit operations: the immediate of a 64-bit one is sign-extended.
        insn(BPF_ALU | BPF_AND | BPF_K, kTaken, 0, 0, birth.taken),
        insn(BPF_JMP | BPF_JNE | BPF_K, kTaken, 0, kTwoFurther, 0),
        insn(BPF_ALU | BPF_OR | BPF_K, kMark, 0, 0, birth.mark.value),
        insn(BPF_STX | BPF_MEM | BPF_W, kSocket, kMark, kMarkOffset, 0),
        insn(BPF_ALU64 | BPF_MOV | BPF_K, kAnswer, 0, 0, 1),
        insn(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
    };
}

std::string program_of(const BirthMark& birth) {
    // The kernel's own tag of a program is SHA-1 or SHA-256, by its version, and its name has 15 characters.
    constexpr std::size_t kDigits = 10;
    std::string bytes;
    for (const bpf_insn& one : instructions_of(birth)) bytes.append(reinterpret_cast<const char*>(&one), sizeof one);
    return kBirthProgram + hash(bytes).substr(0, kDigits);
}

} // namespace novpn
