#include "agent/old_sockets.h"

#include "agent/process.h"

#include <boost/json/object.hpp>
#include <boost/json/value.hpp>

namespace novpn {

OldSocket named(const OpenSocket& socket, pid_t pid) {
    return {.protocol = protocol_name(socket.ip_protocol),
            .local = endpoint(socket.local, socket.local_port),
            .remote = socket.remote ? endpoint(*socket.remote, socket.remote_port) : "",
            .pid = pid,
            .process = pid ? process_name(pid) : ""};
}

boost::json::array to_json(const std::vector<OldSocket>& sockets) {
    namespace json = boost::json;
    const auto or_null = [](const std::string& text) {
        return text.empty() ? json::value(nullptr) : json::value(text);
    };
    json::array list;
    for (const OldSocket& socket : sockets) {
        if (list.size() == kMaxNamedSockets) break;
        list.push_back({{"protocol", socket.protocol},
                        {"local", socket.local},
                        {"remote", or_null(socket.remote)},
                        {"pid", socket.pid ? json::value(socket.pid) : json::value(nullptr)},
                        {"process", or_null(socket.process)}});
    }
    return list;
}

} // namespace novpn
