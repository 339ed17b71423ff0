// Settings of the machine that are not novpn's and may stand in its way. Reads files only.
#pragma once

#include <filesystem>
#include <string>

namespace novpn {

/// Of systemd-networkd (networkd.conf(5)).
struct NetworkdSettings {
    bool runs = false;
    bool keeps_rules = false;  ///< ManageForeignRoutingPolicyRules=no
    bool keeps_routes = false; ///< ManageForeignRoutes=no
    bool operator==(const NetworkdSettings&) const = default;
};
/// `root` is / but for a test.
NetworkdSettings networkd_settings(const std::filesystem::path& root = "/");

/// What the kernel takes of a packet's source address by IPv4 (ip-sysctl.rst): the stricter of the link's value and
/// that of all.
struct ReversePath {
    int rp_filter = 0;
    bool src_valid_mark = false; ///< the way back is looked up with the packet's mark
    bool operator==(const ReversePath&) const = default;
};
ReversePath reverse_path(const std::string& link, const std::filesystem::path& root = "/");

/// By what programs ask for names besides DNS (nsswitch.conf(5)): "nss-resolve", "nscd"; empty: by nothing that answers
/// in their place.
std::string asked_beside_dns(const std::filesystem::path& root = "/");

} // namespace novpn
