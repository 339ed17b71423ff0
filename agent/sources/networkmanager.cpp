#include "agent/sources/networkmanager.h"

#include "agent/sources/lease.h"
#include "agent/sources/name_servers.h"

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <initializer_list>
#include <memory>
#include <ranges>
#ifdef NOVPN_HAVE_SYSTEMD
#include <systemd/sd-bus.h>
#endif

namespace novpn {

namespace {

std::string text(const BusProperties& properties, const std::string& name) {
    auto found = properties.find(name);
    return found == properties.end() ? std::string() : found->second;
}

/// What a property of this name refers to.
const BusProperties& referred(const BusObjects& objects, const BusProperties& properties, const char* name) {
    static const BusProperties none;
    auto found = objects.find(text(properties, name));
    return found == objects.end() ? none : found->second;
}

std::optional<address> to_gateway(const std::string& text) {
    boost::system::error_code error;
    auto gateway = boost::asio::ip::make_address(text, error);
    return error || gateway.is_unspecified() ? std::nullopt : std::optional(gateway);
}

} // namespace

std::vector<LinkGateway> gateways_of(const BusObjects& objects) {
    std::vector<LinkGateway> gateways;
    for (const BusProperties& device : std::views::values(objects)) {
        // A modem's IpInterface is the link that carries the packets, its Interface a serial port.
        std::string link = text(device, "IpInterface");
        if (link.empty()) continue;
        auto add = [&](const char* config, const char* setting) {
            auto gateway = to_gateway(text(referred(objects, device, config), "Gateway"));
            if (!gateway) gateway = to_gateway(text(device, setting));
            if (gateway) gateways.push_back({link, *gateway, std::nullopt});
            return gateway.has_value();
        };
        if (!add("Ip4Config", "ipv4.gateway") && text(device, "ipv4.never-default") != "true")
            if (auto lease = parse_networkmanager_lease(referred(objects, device, "Dhcp4Config")))
                gateways.push_back({link, lease->gateway, lease->local});
        add("Ip6Config", "ipv6.gateway");
    }
    return gateways;
}

std::vector<LinkNameServers> name_servers_of(const BusObjects& objects) {
    std::vector<LinkNameServers> found;
    for (const auto& [path, device] : objects) {
        std::string link = text(device, "IpInterface");
        if (link.empty()) continue;
        auto servers = parse_servers(text(referred(objects, device, "Ip4Config"), "NameserverData"));
        std::string domains;
        for (const char* config : {"Ip4Config", "Ip6Config"})
            for (const char* name : {"Domains", "Searches"})
                domains += text(referred(objects, device, config), name) + " ";
        if (auto lease = parse_networkmanager_lease(referred(objects, device, "Dhcp4Config"))) {
            if (servers.empty()) servers = lease->resolvers;
            for (const std::string& domain : lease->domains) domains += domain + " ";
        }
        const auto ipv6 = parse_servers(text(referred(objects, device, "Ip6Config"), "Nameservers"));
        servers.insert(servers.end(), ipv6.begin(), ipv6.end());
        auto known_as = parse_domains(domains);
        if (!servers.empty() || !known_as.empty()) found.push_back({link, servers, std::move(known_as)});
    }
    return found;
}

#ifdef NOVPN_HAVE_SYSTEMD

namespace {

struct BusDeleter {
    void operator()(sd_bus* bus) const { sd_bus_close_unref(bus); }
    void operator()(sd_bus_message* message) const { sd_bus_message_unref(message); }
};
using Bus = std::unique_ptr<sd_bus, BusDeleter>;
using BusMessage = std::unique_ptr<sd_bus_message, BusDeleter>;

/// Enters an array and calls `read` for each of its elements, of type `contents`; false when the message is another.
template<typename Read>
bool for_each(sd_bus_message* message, const char* contents, Read read) {
    // The type of an array's element is in braces or a basic type; a dictionary's entry is entered on its own.
    if (sd_bus_message_enter_container(message, SD_BUS_TYPE_ARRAY, contents) < 0) return false;
    std::string entry(contents + 1, std::string_view(contents).size() - 2);
    int more = 0;
    while ((more = sd_bus_message_enter_container(message, SD_BUS_TYPE_DICT_ENTRY, entry.c_str())) > 0)
        if (!read() || sd_bus_message_exit_container(message) < 0) return false;
    return more == 0 && sd_bus_message_exit_container(message) >= 0;
}

bool read_properties(sd_bus_message* message, const std::string& prefix, BusProperties& properties);

/// aa{sv}: the "address" of each.
bool read_name_servers(sd_bus_message* message, std::string& addresses) {
    if (sd_bus_message_enter_container(message, SD_BUS_TYPE_ARRAY, "a{sv}") < 0) return false;
    for (;;) {
        const int more = sd_bus_message_at_end(message, 0);
        if (more != 0) return more > 0 && sd_bus_message_exit_container(message) >= 0;
        BusProperties server;
        if (!read_properties(message, {}, server)) return false;
        addresses += text(server, "address") + " ";
    }
}

/// aay: the bytes of an IPv6 address each.
bool read_ipv6_addresses(sd_bus_message* message, std::string& addresses) {
    if (sd_bus_message_enter_container(message, SD_BUS_TYPE_ARRAY, "ay") < 0) return false;
    for (;;) {
        const int more = sd_bus_message_at_end(message, 0);
        if (more != 0) return more > 0 && sd_bus_message_exit_container(message) >= 0;
        const void* bytes = nullptr;
        std::size_t size = 0;
        if (sd_bus_message_read_array(message, SD_BUS_TYPE_BYTE, &bytes, &size) < 0) return false;
        boost::asio::ip::address_v6::bytes_type server{};
        if (size != server.size()) continue;
        std::memcpy(server.data(), bytes, size);
        addresses += boost::asio::ip::address_v6(server).to_string() + " ";
    }
}

/// v: what is of use of it; the rest is passed over.
bool read_value(sd_bus_message* message, const std::string& name, BusProperties& properties) {
    const char* contents = nullptr;
    char type = 0;
    if (sd_bus_message_peek_type(message, &type, &contents) <= 0 || !contents) return false;
    std::string_view signature = contents;
    if (signature == "s" || signature == "o") {
        const char* value = nullptr;
        if (sd_bus_message_read(message, "v", contents, &value) < 0) return false;
        if (*value) properties[name] = value;
        return true;
    }
    if (signature == "b") {
        int value = 0;
        if (sd_bus_message_read(message, "v", contents, &value) < 0) return false;
        properties[name] = value ? "true" : "false";
        return true;
    }
    if (signature == "as" && (name == "Domains" || name == "Searches")) {
        std::string domains;
        const char* domain = nullptr;
        int more = sd_bus_message_enter_container(message, SD_BUS_TYPE_VARIANT, contents);
        if (more >= 0) more = sd_bus_message_enter_container(message, SD_BUS_TYPE_ARRAY, "s");
        while (more >= 0 && (more = sd_bus_message_read(message, "s", &domain)) > 0)
            domains += domain + std::string(" ");
        if (more < 0 || sd_bus_message_exit_container(message) < 0 || sd_bus_message_exit_container(message) < 0)
            return false;
        properties[name] = domains;
        return true;
    }
    const bool are_servers = signature == "aa{sv}" && name == "NameserverData";
    const bool are_ipv6_servers = signature == "aay" && name == "Nameservers";
    if (are_servers || are_ipv6_servers) {
        std::string addresses;
        if (sd_bus_message_enter_container(message, SD_BUS_TYPE_VARIANT, contents) < 0 ||
            !(are_servers ? read_name_servers(message, addresses) : read_ipv6_addresses(message, addresses)) ||
            sd_bus_message_exit_container(message) < 0)
            return false;
        properties[name] = addresses;
        return true;
    }
    if (signature == "a{sv}")
        return sd_bus_message_enter_container(message, SD_BUS_TYPE_VARIANT, contents) >= 0 &&
               read_properties(message, {}, properties) && sd_bus_message_exit_container(message) >= 0;
    return sd_bus_message_skip(message, "v") >= 0;
}

/// a{sv}
bool read_properties(sd_bus_message* message, const std::string& prefix, BusProperties& properties) {
    return for_each(message, "{sv}", [&] {
        const char* name = nullptr;
        return sd_bus_message_read(message, "s", &name) >= 0 && read_value(message, prefix + name, properties);
    });
}

/// a{oa{sa{sv}}}: the answer of GetManagedObjects (D-Bus specification, org.freedesktop.DBus.ObjectManager).
std::optional<BusObjects> read_objects(sd_bus_message* message) {
    BusObjects objects;
    auto read_object = [&] {
        const char* path = nullptr;
        if (sd_bus_message_read(message, "o", &path) < 0) return false;
        auto& properties = objects[path];
        return for_each(message, "{sa{sv}}", [&] {
            // The name of the interface.
            return sd_bus_message_skip(message, "s") >= 0 && read_properties(message, {}, properties);
        });
    };
    if (!for_each(message, "{oa{sa{sv}}}", read_object)) return std::nullopt;
    return objects;
}

/// a{sa{sv}}: the settings of GetAppliedConnection (NetworkManager's D-Bus reference, Device).
BusProperties read_settings(sd_bus_message* message) {
    BusProperties settings;
    auto read_setting = [&] {
        const char* name = nullptr;
        return sd_bus_message_read(message, "s", &name) >= 0 &&
               read_properties(message, std::string(name) + ".", settings);
    };
    if (!for_each(message, "{sa{sv}}", read_setting)) return {};
    return settings;
}

/// A method call under way. Stays where it is until it is answered or the bus is closed.
struct Call {
    std::function<void(sd_bus_message*)> read;
    std::optional<Answer> came = std::nullopt;
};

bool is_any_of(const sd_bus_error& error, std::initializer_list<const char*> names) {
    return std::ranges::any_of(names, [&](const char* name) { return sd_bus_error_has_name(&error, name) > 0; });
}

/// NetworkManager's own error is an answer, as of a device that has no settings any more. Others are not: the bus ended
/// while the call was under way, for which sd-bus answers all open calls, or NetworkManager did, or there is none.
Answer meaning_of(const sd_bus_error& error) {
    if (is_any_of(error, {SD_BUS_ERROR_SERVICE_UNKNOWN, SD_BUS_ERROR_NAME_HAS_NO_OWNER})) return Answer::nobody;
    return is_any_of(error, {SD_BUS_ERROR_NO_REPLY, SD_BUS_ERROR_DISCONNECTED}) ? Answer::lost : Answer::whole;
}

int take_answer(sd_bus_message* message, void* data, sd_bus_error*) {
    auto& call = *static_cast<Call*>(data);
    const sd_bus_error* error = sd_bus_message_get_error(message);
    call.came = error ? meaning_of(*error) : Answer::whole;
    if (!error) call.read(message);
    return 1;
}

class NetworkManager {
  public:
    explicit NetworkManager(std::chrono::microseconds at_most)
        : end_(std::chrono::steady_clock::now() + at_most) {
        sd_bus* opened = nullptr;
        const int result = sd_bus_open_system(&opened);
        if (result >= 0) bus_.reset(opened);
        opened_ = result >= 0 ? Answer::whole : result == -ENOENT ? Answer::nobody : Answer::lost;
    }

    /// Whether there is a bus: one that refuses, or has no room, may be about to start.
    Answer opened() const { return opened_; }

    /// `flags` is the method's only argument, if it has one.
    bool call(const std::string& path, const char* interface, const char* method, std::optional<std::uint32_t> flags,
              std::function<void(sd_bus_message*)> read) {
        sd_bus_message* made = nullptr;
        if (!bus_ || sd_bus_message_new_method_call(bus_.get(), &made, "org.freedesktop.NetworkManager", path.c_str(),
                                                    interface, method) < 0)
            return false;
        BusMessage request(made);
        sd_bus_message_set_auto_start(request.get(), 0);
        if (flags && sd_bus_message_append(request.get(), "u", *flags) < 0) return false;
        // Asynchronous: a synchronous call waits for the bus to let us in, however long that takes.
        calls_.push_back(Call{std::move(read)});
        return sd_bus_call_async(bus_.get(), nullptr, request.get(), take_answer, &calls_.back(), 0) >= 0;
    }

    /// Until all calls are answered: the worst that became of one.
    Answer wait() {
        const auto is_open = [](const Call& call) { return !call.came; };
        while (std::ranges::any_of(calls_, is_open)) {
            int processed = sd_bus_process(bus_.get(), nullptr);
            if (processed < 0) return Answer::lost;
            if (processed > 0) continue;
            auto left = std::chrono::duration_cast<std::chrono::microseconds>(end_ - std::chrono::steady_clock::now());
            if (left.count() <= 0 || sd_bus_wait(bus_.get(), static_cast<std::uint64_t>(left.count())) < 0)
                return Answer::lost;
        }
        Answer worst = Answer::whole;
        for (const Call& call : calls_) worst = std::max(worst, *call.came);
        return worst;
    }

  private:
    std::chrono::steady_clock::time_point end_;
    std::deque<Call> calls_; // outlives the bus
    Bus bus_;
    Answer opened_ = Answer::lost;
};

} // namespace

BusAnswer ask_networkmanager(std::chrono::microseconds at_most) {
    const auto without = [](Answer came) { return BusAnswer{.came = came, .objects = {}}; };
    NetworkManager asked(at_most);
    if (asked.opened() != Answer::whole) return without(asked.opened());
    std::optional<BusObjects> objects;
    if (!asked.call("/org/freedesktop", "org.freedesktop.DBus.ObjectManager", "GetManagedObjects", {},
                    [&](sd_bus_message* message) { objects = read_objects(message); }))
        return without(Answer::lost);
    if (const Answer came = asked.wait(); !objects) return without(came == Answer::nobody ? came : Answer::lost);
    for (auto& [path, properties] : *objects) {
        BusProperties& device = properties; // clang before 16 captures no structured binding
        // A device that is not in use refers to "/"; it has no settings to answer with.
        if (!device.contains("IpInterface") || text(device, "ActiveConnection") == "/") continue;
        if (!asked.call(path, "org.freedesktop.NetworkManager.Device", "GetAppliedConnection", 0,
                        [&device](sd_bus_message* message) { device.merge(read_settings(message)); }))
            return without(Answer::lost);
    }
    if (asked.wait() != Answer::whole) return without(Answer::lost);
    const auto manager = objects->find("/org/freedesktop/NetworkManager");
    const bool is_starting = manager != objects->end() && text(manager->second, "Startup") == "true";
    return {.came = is_starting ? Answer::lost : Answer::whole, .objects = std::move(*objects)};
}

#else

BusAnswer ask_networkmanager(std::chrono::microseconds) { return {.came = Answer::nobody, .objects = {}}; }

#endif

} // namespace novpn
