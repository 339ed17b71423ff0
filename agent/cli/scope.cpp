#include "agent/cli/scope.h"

#include "rules/membership.h"

#include <cerrno>
#include <chrono>
#include <fmt/format.h>
#include <map>
#include <memory>
#include <optional>
#include <unistd.h>
#ifdef NOVPN_HAVE_SYSTEMD
#include <systemd/sd-bus.h>
#endif

namespace novpn::cli {

ScopeRequest scope_for(const std::string& class_name, pid_t pid, std::uint64_t random, const std::string& description) {
    return {.name = fmt::format("{}{}-{:016x}.scope", kRunScopePrefix, pid, random),
            .slice = class_slice(class_name),
            .description = description,
            .pid = pid};
}

std::string bus_address(uid_t uid, const char* xdg_runtime_dir) {
    if (uid == 0) return "unix:path=/run/dbus/system_bus_socket";
    const bool is_given = xdg_runtime_dir != nullptr && *xdg_runtime_dir == '/';
    const std::string directory = is_given ? xdg_runtime_dir : fmt::format("/run/user/{}", uid);
    // What may not stand for itself in an address (D-Bus specification, Server Addresses).
    std::string address = "unix:path=";
    for (const char c : directory + "/bus") {
        const bool is_plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                              std::string_view("-_/.").find(c) != std::string_view::npos;
        address += is_plain ? std::string(1, c) : fmt::format("%{:02x}", static_cast<unsigned char>(c));
    }
    return address;
}

#ifdef NOVPN_HAVE_SYSTEMD

namespace {

constexpr const char* kSystemd = "org.freedesktop.systemd1";
constexpr const char* kPath = "/org/freedesktop/systemd1";
constexpr const char* kManager = "org.freedesktop.systemd1.Manager";
/// A systemd that is busy starting a session takes a while; one that hangs holds nobody up for longer.
constexpr auto kAtMost = std::chrono::seconds(5);

struct Unref {
    void operator()(sd_bus* bus) const { sd_bus_close_unref(bus); }
    void operator()(sd_bus_message* message) const { sd_bus_message_unref(message); }
};
using Bus = std::unique_ptr<sd_bus, Unref>;
using BusMessage = std::unique_ptr<sd_bus_message, Unref>;

/// The start of the scope, as systemd tells of it (org.freedesktop.systemd1(5)).
struct Job {
    std::string path;                           ///< once it is queued
    std::map<std::string, std::string> results; ///< of jobs that are over
    std::optional<std::string> refused;

    std::optional<std::string> result() const {
        const auto own = results.find(path);
        return own == results.end() ? std::nullopt : std::optional(own->second);
    }
};

int take_queued(sd_bus_message* message, void* data, sd_bus_error*) {
    auto& job = *static_cast<Job*>(data);
    const char* path = nullptr;
    if (sd_bus_message_is_method_error(message, nullptr)) {
        const char* why = sd_bus_message_get_error(message)->message;
        job.refused = why ? why : "systemd refuses";
    } else if (sd_bus_message_read(message, "o", &path) < 0) {
        job.refused = "systemd's answer makes no sense";
    } else {
        job.path = path;
    }
    return 1;
}

int take_removed(sd_bus_message* message, void* data, sd_bus_error*) {
    std::uint32_t id = 0;
    const char *path = nullptr, *unit = nullptr, *result = nullptr;
    if (sd_bus_message_read(message, "uoss", &id, &path, &unit, &result) >= 0)
        static_cast<Job*>(data)->results[path] = result;
    return 0;
}

/// Systemd sends signals only while somebody asked for them. Where that is refused there is none, and the wait ends.
int take_nothing(sd_bus_message*, void*, sd_bus_error*) { return 1; }

int append_text(sd_bus_message* message, const char* name, const std::string& value) {
    return sd_bus_message_append(message, "(sv)", name, "s", value.c_str());
}

int append(sd_bus_message* message, const ScopeRequest& scope) {
    const auto pid = static_cast<std::uint32_t>(scope.pid);
    int done = sd_bus_message_append(message, "ss", scope.name.c_str(), "fail");
    if (done >= 0) done = sd_bus_message_open_container(message, SD_BUS_TYPE_ARRAY, "(sv)");
    if (done >= 0) done = append_text(message, "Description", scope.description);
    if (done >= 0) done = append_text(message, "Slice", scope.slice);
    if (done >= 0) done = append_text(message, "CollectMode", "inactive-or-failed");
    if (done >= 0) done = sd_bus_message_append(message, "(sv)", "PIDs", "au", 1, pid);
    if (done >= 0) done = sd_bus_message_close_container(message);
    return done < 0 ? done : sd_bus_message_append(message, "a(sa(sv))", 0);
}

/// All asynchronous: a synchronous call waits for the bus to let us in, however long that takes.
int ask(sd_bus* bus, const ScopeRequest& scope, Job& job) {
    int done = sd_bus_match_signal_async(bus, nullptr, kSystemd, kPath, kManager, "JobRemoved", take_removed,
                                         take_nothing, &job);
    if (done < 0) return done;
    done = sd_bus_call_method_async(bus, nullptr, kSystemd, kPath, kManager, "Subscribe", take_nothing, nullptr, "");
    if (done < 0) return done;
    sd_bus_message* made = nullptr;
    done = sd_bus_message_new_method_call(bus, &made, kSystemd, kPath, kManager, "StartTransientUnit");
    const BusMessage request(made);
    // To be started if it has no name yet: a bus of systemd's that has just been started itself waits for it.
    if (done >= 0) done = append(request.get(), scope);
    return done < 0 ? done : sd_bus_call_async(bus, nullptr, request.get(), take_queued, &job, 0);
}

Expected<Bus> open_bus(const std::string& doing) {
    sd_bus* made = nullptr;
    int done = sd_bus_new(&made);
    Bus bus(made);
    const std::string address = bus_address(::geteuid(), ::getenv("XDG_RUNTIME_DIR"));
    if (done >= 0) done = sd_bus_set_address(bus.get(), address.c_str());
    if (done >= 0) done = sd_bus_set_bus_client(bus.get(), 1);
    if (done >= 0) done = sd_bus_start(bus.get());
    if (done < 0) return system_error(-done, doing, "no systemd answers");
    return bus;
}

} // namespace

Expected<void> enter_scope(const ScopeRequest& scope) {
    const std::string doing = "starting " + scope.name;
    const auto end = std::chrono::steady_clock::now() + kAtMost;
    Job job; // outlives the bus
    auto bus = open_bus(doing);
    if (!bus) return tl::make_unexpected(bus.error());
    if (const int done = ask(bus->get(), scope, job); done < 0) return system_error(-done, doing);
    while (!job.refused && !job.result()) {
        const int processed = sd_bus_process(bus->get(), nullptr);
        if (processed < 0) return system_error(-processed, doing, "systemd's bus is gone");
        if (processed > 0) continue;
        const auto left = std::chrono::duration_cast<std::chrono::microseconds>(end - std::chrono::steady_clock::now());
        if (left.count() <= 0) return system_error(ETIMEDOUT, doing);
        if (const int waited = sd_bus_wait(bus->get(), static_cast<std::uint64_t>(left.count())); waited < 0)
            if (waited != -EINTR) return system_error(-waited, doing);
    }
    if (job.refused) return tl::make_unexpected(Error{.code = {}, .doing = doing, .detail = *job.refused});
    if (*job.result() != "done")
        return tl::make_unexpected(Error{.code = {}, .doing = doing, .detail = "systemd says " + *job.result()});
    return {};
}

#else

Expected<void> enter_scope(const ScopeRequest& scope) {
    return system_error(EOPNOTSUPP, "starting " + scope.name, "built without libsystemd");
}

#endif

} // namespace novpn::cli
