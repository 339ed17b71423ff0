// What the command line does where no agent runs: the same look, decide, diff, apply, once, in this process.
#pragma once

#include "netlink/error.h"
#include "rules/firewall.h"

#include <boost/asio/ip/address.hpp>
#include <boost/json/object.hpp>
#include <string>
#include <vector>

namespace novpn {

/// What an agent with this config would change now, one ip or nft command each. Changes nothing.
/// An empty name: the file where novpnd looks by default, and its defaults where there is none.
Expected<std::vector<std::string>> plan_without_agent(const std::string& config_file, const std::string& runtime_dir);

/// Service::explain() of an agent with the config that novpnd finds by default.
Expected<boost::json::object> explain_without_agent(const boost::asio::ip::address& destination,
                                                    const std::string& class_name);

/// Whether this kernel has what steering needs; then why sockets cannot be marked at birth, empty where they can.
Expected<std::string> kernel_without_bpf();

/// Why `dns: uplink` cannot be done here; empty where it can. Only root can ask for all of it.
Expected<std::string> kernel_without_redirects();

/// Others' that may drop what leaves this machine.
Expected<std::vector<Firewall>> firewalls_here();
/// Chains of others that judge what comes in by the way back.
Expected<std::vector<ReversePathFilter>> reverse_path_filters_here();

/// Removes all that is ours in this network namespace. device_or_resource_busy: a live agent holds the lock.
Expected<void> force_down(const std::string& runtime_dir);

} // namespace novpn
