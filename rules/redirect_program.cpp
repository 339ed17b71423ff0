#include "rules/redirect_program.h"

#include "rules/bpf_insn.h"
#include "rules/hash.h"

#include <arpa/inet.h>
#include <cstddef>
#include <string>

namespace novpn {
namespace {

// r0 is what a call or the program answers, r1 to r5 are arguments, r6 and r7 outlive a call, r10 is the stack's end.
constexpr std::uint8_t kAnswer = 0, kFirst = 1, kSecond = 2, kThird = 3, kFourth = 4, kContext = 6, kFound = 7,
                       kStack = 10;
// On the stack: the address that the socket asks or is answered by, and below it an AnswerKey.
constexpr std::int16_t kAddress = -16, kKey = -40, kKeyAddress = kKey + 8;
constexpr std::int16_t kDnsPort = 53;

/// Instructions with jumps to places further down.
class Assembly {
  public:
    enum Place : std::uint8_t { pass, refuse };

    void add(int code, std::uint8_t to, std::uint8_t from, std::int16_t offset, std::uint32_t immediate) {
        made_.push_back(insn(code, to, from, offset, immediate));
    }
    void load(std::uint8_t to, std::uint8_t from, std::ptrdiff_t offset, int size = BPF_W) {
        add(BPF_LDX | BPF_MEM | size, to, from, static_cast<std::int16_t>(offset), 0);
    }
    void store(std::uint8_t to, std::ptrdiff_t offset, std::uint8_t from, int size = BPF_W) {
        add(BPF_STX | BPF_MEM | size, to, from, static_cast<std::int16_t>(offset), 0);
    }
    void store_number(std::uint8_t to, std::ptrdiff_t offset, std::uint32_t number, int size = BPF_W) {
        add(BPF_ST | BPF_MEM | size, to, 0, static_cast<std::int16_t>(offset), number);
    }
    void set(std::uint8_t to, std::uint32_t number) { add(BPF_ALU64 | BPF_MOV | BPF_K, to, 0, 0, number); }
    void copy(std::uint8_t to, std::uint8_t from) { add(BPF_ALU64 | BPF_MOV | BPF_X, to, from, 0, 0); }
    void point(std::uint8_t to, std::int16_t offset) {
        copy(to, kStack);
        // NOLINTNEXTLINE(misc-redundant-expression): two of them are 0, and say something
        add(BPF_ALU64 | BPF_ADD | BPF_K, to, 0, 0, static_cast<std::uint32_t>(std::int32_t{offset}));
    }
    void map(std::uint8_t to, int fd) {
        // NOLINTNEXTLINE(misc-redundant-expression): likewise
        add(BPF_LD | BPF_DW | BPF_IMM, to, BPF_PSEUDO_MAP_FD, 0, static_cast<std::uint32_t>(fd));
        add(0, 0, 0, 0, 0);
    }
    void call(bpf_func_id helper) { add(BPF_JMP | BPF_CALL, 0, 0, 0, helper); }
    /// `comparison`: BPF_JMP or BPF_JMP32, whose immediate is not sign-extended, with BPF_JEQ or BPF_JNE.
    void jump(int comparison, std::uint8_t what, std::uint32_t number, Place to) {
        jumps_.emplace_back(made_.size(), to);
        add(comparison | BPF_K, what, 0, 0, number);
    }
    void end(Place at, std::uint32_t answer) {
        for (const auto& [from, to] : jumps_)
            if (to == at) made_[from].off = static_cast<std::int16_t>(made_.size() - from - 1);
        set(kAnswer, answer);
        add(BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
    }
    std::vector<bpf_insn> instructions() && { return std::move(made_); }

  private:
    std::vector<bpf_insn> made_;
    std::vector<std::pair<std::size_t, Place>> jumps_;
};

constexpr std::ptrdiff_t kIp4 = offsetof(bpf_sock_addr, user_ip4), kIp6 = offsetof(bpf_sock_addr, user_ip6);

/// The context's address, at this place of the stack. IPv4 is mapped (RFC 4291, 2.5.5.2), as in sockets of IPv6 that
/// speak it.
void save_address(Assembly& to, const RedirectHook& hook, std::int16_t at) {
    if (hook.ipv6) {
        for (std::int16_t word = 0; word < 16; word = static_cast<std::int16_t>(word + 4)) {
            to.load(kSecond, kContext, kIp6 + word);
            to.store(kStack, at + word, kSecond);
        }
        return;
    }
    to.store_number(kStack, at, 0, BPF_DW);
    to.store_number(kStack, at + 8, htonl(0xffff));
    to.load(kSecond, kContext, kIp4);
    to.store(kStack, at + 12, kSecond);
}

/// The AddressBytes that a register points at become the context's address.
void write_address(Assembly& to, const RedirectHook& hook, std::uint8_t from) {
    if (!hook.ipv6) {
        to.load(kSecond, from, 12);
        to.store(kContext, kIp4, kSecond);
        return;
    }
    for (std::int16_t word = 0; word < 16; word = static_cast<std::int16_t>(word + 4)) {
        to.load(kSecond, from, word);
        to.store(kContext, kIp6 + word, kSecond);
    }
}

void begin(Assembly& to) {
    to.copy(kContext, kFirst);
    to.load(kSecond, kContext, offsetof(bpf_sock_addr, user_port));
    to.jump(BPF_JMP32 | BPF_JNE, kSecond, htons(kDnsPort), Assembly::pass);
}

void save_cookie(Assembly& to) {
    to.copy(kFirst, kContext);
    to.call(BPF_FUNC_get_socket_cookie);
    to.store(kStack, kKey, kAnswer, BPF_DW);
}

void add_asking(Assembly& to, const RedirectHook& hook, Mark mark, int resolvers_map, int answers_map) {
    // A socket from before, or of a class further down the tree, keeps its path and its name servers.
    to.load(kSecond, kContext, offsetof(bpf_sock_addr, sk), BPF_DW);
    to.load(kSecond, kSecond, offsetof(bpf_sock, mark));
    to.add(BPF_ALU | BPF_AND | BPF_K, kSecond, 0, 0, mark.mask);
    to.jump(BPF_JMP32 | BPF_JNE, kSecond, mark.value, Assembly::pass);
    save_address(to, hook, kAddress);
    to.map(kFirst, resolvers_map);
    to.point(kSecond, kAddress);
    to.call(BPF_FUNC_map_lookup_elem);
    to.jump(BPF_JMP | BPF_JEQ, kAnswer, 0, Assembly::pass);
    to.copy(kFound, kAnswer);
    to.load(kFirst, kFound, 0, BPF_DW);
    to.load(kSecond, kFound, 8, BPF_DW);
    to.store(kStack, kKeyAddress, kFirst, BPF_DW);
    to.store(kStack, kKeyAddress + 8, kSecond, BPF_DW);
    to.add(BPF_ALU64 | BPF_OR | BPF_X, kFirst, kSecond, 0, 0);
    to.jump(BPF_JMP | BPF_JEQ, kFirst, 0, Assembly::refuse);
    save_cookie(to);
    to.map(kFirst, answers_map);
    to.point(kSecond, kKey);
    to.point(kThird, kAddress);
    to.set(kFourth, BPF_ANY);
    to.call(BPF_FUNC_map_update_elem);
    write_address(to, hook, kFound);
}

void add_answering(Assembly& to, const RedirectHook& hook, int answers_map) {
    save_cookie(to);
    save_address(to, hook, kKeyAddress);
    to.map(kFirst, answers_map);
    to.point(kSecond, kKey);
    to.call(BPF_FUNC_map_lookup_elem);
    to.jump(BPF_JMP | BPF_JEQ, kAnswer, 0, Assembly::pass);
    write_address(to, hook, kAnswer);
}

} // namespace

std::vector<bpf_insn> instructions_of(const RedirectHook& hook, Mark mark, int resolvers_map, int answers_map) {
    Assembly assembly;
    begin(assembly);
    if (hook.asks)
        add_asking(assembly, hook, mark, resolvers_map, answers_map);
    else
        add_answering(assembly, hook, answers_map);
    assembly.end(Assembly::pass, 1);
    // EPERM. The kernel takes no program that could refuse an answer.
    if (hook.asks) assembly.end(Assembly::refuse, 0);
    return std::move(assembly).instructions();
}

std::vector<std::string> redirect_hooks() {
    std::vector<std::string> words;
    for (const RedirectHook& hook : kRedirectHooks) words.emplace_back(hook.word);
    return words;
}

std::string redirect_program_of(Mark mark) {
    constexpr std::size_t kDigits = 10; // a program's name has 15 characters
    std::string bytes;
    for (const RedirectHook& hook : kRedirectHooks)
        for (const bpf_insn& one : instructions_of(hook, mark, 0, 0))
            bytes.append(reinterpret_cast<const char*>(&one), sizeof one);
    return kBirthProgram + hash(bytes).substr(0, kDigits);
}

} // namespace novpn
