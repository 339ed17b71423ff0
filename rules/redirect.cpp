#include "rules/redirect.h"

#include "rules/bpf.h"
#include "rules/redirect_program.h"

#include <algorithm>
#include <bpf/bpf.h>
#include <cerrno>
#include <cstring>

namespace novpn {
namespace {

constexpr std::string_view kResolversPin = "resolvers", kAnswersPin = "answers";
constexpr std::uint32_t kMostResolvers = 64;
/// Of sockets that have asked; the kernel forgets the one that has not been needed for longest, and takes its memory at
/// the start.
constexpr std::uint32_t kMostAnswers = 2048;

std::string pin_of(const std::string& class_name, std::string_view what) {
    return class_name + kPinOfOther + std::string(what);
}

bpf::Fd make_map(bpf_map_type type, const char* name, std::uint32_t key, std::uint32_t most) {
    return bpf::Fd(bpf_map_create(type, name, key, sizeof(AddressBytes), most, nullptr));
}

bpf::Fd make_resolvers_map() { return make_map(BPF_MAP_TYPE_HASH, "novpn_dns", sizeof(AddressBytes), kMostResolvers); }
bpf::Fd make_answers_map() { return make_map(BPF_MAP_TYPE_LRU_HASH, "novpn_dns", sizeof(AnswerKey), kMostAnswers); }

bpf::Fd load(const RedirectHook& hook, Mark mark, const std::string& name, const bpf::Fd& resolvers,
             const bpf::Fd& answers) {
    return bpf::load({BPF_PROG_TYPE_CGROUP_SOCK_ADDR, hook.type}, name,
                     instructions_of(hook, mark, resolvers.get(), answers.get()));
}

AddressBytes to_bytes(const address& a) {
    using namespace boost::asio::ip;
    return a.is_v6() ? a.to_v6().to_bytes() : make_address_v6(v4_mapped, a.to_v4()).to_bytes();
}

address to_address(const AddressBytes& bytes) {
    using namespace boost::asio::ip;
    const address_v6 a(bytes);
    if (a.is_v4_mapped()) return make_address_v4(v4_mapped, a);
    return a;
}

Resolvers read(const bpf::Fd& map) {
    Resolvers resolvers;
    AddressBytes asked{}, next{}, resolver{};
    for (const void* from = nullptr; bpf_map_get_next_key(map.get(), from, next.data()) == 0; from = asked.data()) {
        asked = next;
        if (bpf_map_lookup_elem(map.get(), asked.data(), resolver.data()) != 0) continue;
        const bool refused = resolver == AddressBytes{};
        resolvers[to_address(asked)] = refused ? std::nullopt : std::optional(to_address(resolver));
    }
    return resolvers;
}

/// Empty: nothing stands in the way.
std::string find_obstacle() {
    const bpf::Fd resolvers = make_resolvers_map();
    const bpf::Fd answers = make_answers_map();
    // The newest of the hooks, Linux 5.8.
    if (resolvers && answers && load(kRedirectHooks.back(), {1, 1}, "novpn_probe", resolvers, answers) &&
        load(kRedirectHooks.front(), {1, 1}, "novpn_probe", resolvers, answers))
        return {};
    return std::string("the kernel takes no BPF program that redirects connect() and getpeername() (CGROUP_BPF, Linux "
                       "5.8): ") +
           strerror(errno);
}

} // namespace

Redirects::Redirects(std::string cgroup_mount, const std::string& directory)
    : cgroup_mount_(std::move(cgroup_mount))
    , directory_(std::string(bpf::kMount) + "/" + directory) {}

Redirects Redirects::open(std::string cgroup_mount, const std::string& directory, const std::string& no_birth_marks) {
    Redirects made(std::move(cgroup_mount), directory);
    made.unavailable_ = no_birth_marks.empty() ? find_obstacle() : no_birth_marks;
    return made;
}

std::string Redirects::path_of(const std::string& class_name, std::string_view what) const {
    return directory_ + "/" + pin_of(class_name, what);
}

Expected<ObservedRedirects> Redirects::observe(const std::vector<std::string>& cgroups) const {
    ObservedRedirects observed{.unavailable = unavailable_};
    const auto pins = bpf::names_in(directory_);
    if (!pins) return tl::make_unexpected(pins.error());
    for (const std::string& name : *pins)
        if (const auto end = name.find(kPinOfOther); end != std::string::npos) observed.classes[name.substr(0, end)];
    for (auto& [class_name, seen] : observed.classes) {
        std::map<bpf_attach_type, std::uint32_t> programs;
        std::set<std::string> names;
        for (const RedirectHook& hook : kRedirectHooks) {
            const auto pinned = bpf::pinned_at(path_of(class_name, hook.word));
            if (!pinned && bpf::is_shortage(errno))
                return system_error(errno, "looking at " + path_of(class_name, hook.word));
            if (pinned) programs[hook.type] = pinned->id;
            names.insert(pinned ? pinned->name : "");
        }
        bool whole = names.size() == 1 && names.begin()->starts_with(kBirthProgram);
        for (const std::string& path : cgroups) {
            const bpf::Fd cgroup = bpf::open_directory(cgroup_mount_ + "/" + path);
            if (!cgroup && bpf::is_shortage(errno)) return system_error(errno, "looking at cgroup " + path);
            std::size_t found = 0;
            for (const auto& [type, id] : programs)
                if (const auto attached = cgroup ? bpf::attached_to(cgroup, type) : std::nullopt)
                    found += static_cast<std::size_t>(std::ranges::count(attached->programs, id));
            if (found == 0) continue;
            seen.cgroups.insert(path);
            whole = whole && found == kRedirectHooks.size();
        }
        const bpf::Fd resolvers(bpf_obj_get(path_of(class_name, kResolversPin).c_str()));
        if (!resolvers && bpf::is_shortage(errno))
            return system_error(errno, "looking at " + path_of(class_name, kResolversPin));
        if (resolvers) seen.resolvers = read(resolvers);
        if (whole && resolvers) seen.program = *names.begin();
    }
    return observed;
}

Expected<void> Redirects::pin(const std::string& class_name, Mark mark) const {
    const std::string doing = "pinning the DNS programs of class " + class_name + " in " + directory_;
    const bpf::Fd resolvers = make_resolvers_map();
    const bpf::Fd answers = make_answers_map();
    if (!resolvers || !answers) return system_error(errno, "making the DNS maps of class " + class_name);
    auto pinned = bpf::pin(resolvers, directory_, pin_of(class_name, kResolversPin), doing);
    if (pinned) pinned = bpf::pin(answers, directory_, pin_of(class_name, kAnswersPin), doing);
    for (const RedirectHook& hook : kRedirectHooks) {
        if (!pinned) break;
        const bpf::Fd program = load(hook, mark, redirect_program_of(mark), resolvers, answers);
        pinned = program ? bpf::pin(program, directory_, pin_of(class_name, hook.word), doing)
                         : system_error(errno, "loading the DNS programs of class " + class_name);
    }
    if (!pinned) (void)unpin(class_name);
    return pinned;
}

Expected<void> Redirects::set(const std::string& class_name, const Resolvers& resolvers) const {
    const std::string doing = "setting the resolvers of class " + class_name;
    const bpf::Fd map(bpf_obj_get(path_of(class_name, kResolversPin).c_str()));
    if (!map) return system_error(errno, doing);
    for (const auto& [asked, _] : read(map))
        if (!resolvers.contains(asked)) bpf_map_delete_elem(map.get(), to_bytes(asked).data());
    for (const auto& [asked, resolver] : resolvers) {
        const AddressBytes key = to_bytes(asked), value = resolver ? to_bytes(*resolver) : AddressBytes{};
        if (bpf_map_update_elem(map.get(), key.data(), value.data(), BPF_ANY) != 0) return system_error(errno, doing);
    }
    return {};
}

Expected<void> Redirects::attach(const std::string& class_name, const std::string& cgroup) const {
    const std::string directory = cgroup_mount_ + "/" + cgroup;
    const std::string doing = "attaching the DNS programs of class " + class_name + " to cgroup " + cgroup;
    for (const RedirectHook& hook : kRedirectHooks) {
        auto attached = bpf::attach(path_of(class_name, hook.word), directory, hook.type, doing);
        if (attached) continue;
        (void)detach(class_name, cgroup);
        return attached;
    }
    return {};
}

Expected<void> Redirects::detach(const std::string& class_name, const std::string& cgroup) const {
    Expected<void> detached;
    const std::string directory = cgroup_mount_ + "/" + cgroup;
    const std::string doing = "detaching the DNS programs of class " + class_name + " from cgroup " + cgroup;
    for (const RedirectHook& hook : kRedirectHooks) {
        const std::string path = path_of(class_name, hook.word);
        if (!bpf::pinned_at(path) && errno == ENOENT && bpf::open_directory(directory)) continue;
        auto done = bpf::detach(path, directory, hook.type, doing);
        if (!done) detached = done;
    }
    return detached;
}

Expected<void> Redirects::unpin(const std::string& class_name) const {
    Expected<void> unpinned;
    for (const RedirectHook& hook : kRedirectHooks)
        if (auto done = bpf::unpin(directory_, pin_of(class_name, hook.word)); !done) unpinned = done;
    for (const std::string_view map : {kResolversPin, kAnswersPin})
        if (auto done = bpf::unpin(directory_, pin_of(class_name, map)); !done) unpinned = done;
    return unpinned;
}

} // namespace novpn
