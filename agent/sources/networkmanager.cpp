#include "agent/sources/networkmanager.h"

#include <memory>
#include <optional>
#ifdef NOVPN_HAVE_SYSTEMD
#include <systemd/sd-bus.h>
#endif

namespace novpn {

std::vector<LinkGateway> gateways_of(const BusObjects& objects) {
    std::vector<LinkGateway> gateways;
    auto property = [](const auto& properties, const char* name) {
        auto found = properties.find(name);
        return found == properties.end() ? std::string() : found->second;
    };
    for (const auto& [path, device] : objects) {
        // A modem's IpInterface is the link that carries the packets, its Interface a serial port.
        std::string link = property(device, "IpInterface");
        if (link.empty()) continue;
        for (const char* config : {"Ip4Config", "Ip6Config"}) {
            auto found = objects.find(property(device, config));
            if (found == objects.end()) continue;
            boost::system::error_code error;
            auto gateway = boost::asio::ip::make_address(property(found->second, "Gateway"), error);
            if (!error && !gateway.is_unspecified()) gateways.push_back({link, gateway});
        }
    }
    return gateways;
}

#ifdef NOVPN_HAVE_SYSTEMD

namespace {

struct BusDeleter {
    void operator()(sd_bus* bus) const { sd_bus_close_unref(bus); }
    void operator()(sd_bus_message* message) const { sd_bus_message_unref(message); }
};
using Bus = std::unique_ptr<sd_bus, BusDeleter>;
using BusMessage = std::unique_ptr<sd_bus_message, BusDeleter>;

/// v: the value when it is a string or an object path.
std::optional<std::string> read_text(sd_bus_message* message) {
    const char* contents = nullptr;
    char type = 0;
    if (sd_bus_message_peek_type(message, &type, &contents) <= 0 || !contents) return std::nullopt;
    std::string_view signature = contents;
    const char* text = nullptr;
    if (signature == "s" || signature == "o") {
        if (sd_bus_message_read(message, "v", contents, &text) < 0) return std::nullopt;
        return text;
    }
    if (sd_bus_message_skip(message, "v") < 0) return std::nullopt;
    return std::string();
}

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

/// a{oa{sa{sv}}}: the answer of GetManagedObjects (D-Bus specification, org.freedesktop.DBus.ObjectManager).
BusObjects read_objects(sd_bus_message* message) {
    BusObjects objects;
    auto read_object = [&] {
        const char* path = nullptr;
        if (sd_bus_message_read(message, "o", &path) < 0) return false;
        auto& properties = objects[path];
        return for_each(message, "{sa{sv}}", [&] {
            if (sd_bus_message_skip(message, "s") < 0) return false; // the name of the interface
            return for_each(message, "{sv}", [&] {
                const char* name = nullptr;
                if (sd_bus_message_read(message, "s", &name) < 0) return false;
                auto text = read_text(message);
                if (text && !text->empty()) properties[name] = std::move(*text);
                return text.has_value();
            });
        });
    };
    if (!for_each(message, "{oa{sa{sv}}}", read_object)) return {};
    return objects;
}

struct Answer {
    bool come = false;
    BusObjects objects;
};

int take_answer(sd_bus_message* message, void* data, sd_bus_error*) {
    auto& answer = *static_cast<Answer*>(data);
    answer.come = true;
    if (!sd_bus_message_is_method_error(message, nullptr)) answer.objects = read_objects(message);
    return 1;
}

} // namespace

BusObjects ask_networkmanager(std::chrono::microseconds at_most) {
    const auto end = std::chrono::steady_clock::now() + at_most;
    sd_bus* opened = nullptr;
    if (sd_bus_open_system(&opened) < 0) return {};
    Bus bus(opened);
    sd_bus_message* made = nullptr;
    if (sd_bus_message_new_method_call(bus.get(), &made, "org.freedesktop.NetworkManager", "/org/freedesktop",
                                       "org.freedesktop.DBus.ObjectManager", "GetManagedObjects") < 0)
        return {};
    BusMessage request(made);
    sd_bus_message_set_auto_start(request.get(), 0);
    Answer answer;
    // Asynchronous: a synchronous call waits for the bus to let us in, however long that takes.
    if (sd_bus_call_async(bus.get(), nullptr, request.get(), take_answer, &answer, 0) < 0) return {};
    while (!answer.come) {
        int processed = sd_bus_process(bus.get(), nullptr);
        if (processed < 0) return {};
        if (processed > 0) continue;
        auto left = std::chrono::duration_cast<std::chrono::microseconds>(end - std::chrono::steady_clock::now());
        if (left.count() <= 0 || sd_bus_wait(bus.get(), static_cast<std::uint64_t>(left.count())) < 0) return {};
    }
    return answer.objects;
}

#else

BusObjects ask_networkmanager(std::chrono::microseconds) { return {}; }

#endif

} // namespace novpn
