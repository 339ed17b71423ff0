#include "agent/standalone.h"

#include "agent/control/accounts.h"
#include "agent/linux_kernel.h"
#include "agent/lock.h"
#include "agent/setup.h"
#include "agent/sources/gather.h"
#include "agent/table_names.h"
#include "rules/cgroup.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

namespace novpn {

namespace {

struct Standalone {
    LinuxKernel kernel;
    std::string cgroup_root;
};

/// stdout is for what the command was asked for. What is done is silent, as everywhere on the command line.
void log_warnings_to_stderr() {
    if (spdlog::get("novpn")) return; // `doctor` looks twice
    auto logger = spdlog::stderr_logger_st("novpn");
    logger->set_pattern("novpn: %v");
    logger->set_level(spdlog::level::warn);
    spdlog::set_default_logger(std::move(logger));
}

Expected<Standalone> open_kernel() {
    log_warnings_to_stderr();
    auto cgroup_root = cgroup_root_of_this_netns();
    if (!cgroup_root) return tl::make_unexpected(cgroup_root.error());
    auto kernel = LinuxKernel::open();
    if (!kernel) return tl::make_unexpected(kernel.error());
    return Standalone{std::move(*kernel), std::move(*cgroup_root)};
}

} // namespace

Expected<std::vector<std::string>> plan_without_agent(const std::string& config_file, const std::string& runtime_dir) {
    auto config = load_config_or_default(config_file, runtime_dir);
    if (!config) return tl::make_unexpected(Error{.doing = to_string(config.error())});
    auto standalone = open_kernel();
    if (!standalone) return tl::make_unexpected(standalone.error());
    Agent agent(standalone->kernel, std::move(*config),
                {.cgroup_root = standalone->cgroup_root,
                 .class_slices = runtime_dir == kDefaultRuntimeDir,
                 .is_allowed = is_allowed_now});
    agent.heard(gather({}, std::chrono::system_clock::now(), kSourcesMaxWait));
    return agent.plan();
}

Expected<boost::json::object> explain_without_agent(const boost::asio::ip::address& destination,
                                                    const std::string& class_name) {
    auto config = load_config_or_default({}, kDefaultRuntimeDir);
    if (!config) return tl::make_unexpected(Error{.doing = to_string(config.error())});
    auto standalone = open_kernel();
    if (!standalone) return tl::make_unexpected(standalone.error());
    Agent agent(standalone->kernel, std::move(*config), {.cgroup_root = standalone->cgroup_root});
    return agent.explain(destination, class_name);
}

Expected<std::string> kernel_without_bpf() {
    auto standalone = open_kernel();
    if (!standalone) return tl::make_unexpected(standalone.error());
    if (auto probed = standalone->kernel.probe(); !probed) return tl::make_unexpected(probed.error());
    return standalone->kernel.birth_marks().unavailable();
}

Expected<std::string> kernel_without_redirects() {
    auto standalone = open_kernel();
    if (!standalone) return tl::make_unexpected(standalone.error());
    return standalone->kernel.redirects().unavailable();
}

Expected<std::vector<Firewall>> firewalls_here() {
    auto standalone = open_kernel();
    if (!standalone) return tl::make_unexpected(standalone.error());
    return standalone->kernel.firewalls();
}

Expected<std::vector<ReversePathFilter>> reverse_path_filters_here() {
    auto standalone = open_kernel();
    if (!standalone) return tl::make_unexpected(standalone.error());
    return standalone->kernel.reverse_path_filters();
}

Expected<void> force_down(const std::string& runtime_dir) {
    auto lock = NamespaceLock::take();
    if (!lock) return tl::make_unexpected(lock.error());
    auto standalone = open_kernel();
    if (!standalone) return tl::make_unexpected(standalone.error());
    // What is ours is marked in the kernel: the config that made it is not needed.
    auto released = release_everything(standalone->kernel, Config{}, standalone->cgroup_root);
    if (released && runtime_dir == kDefaultRuntimeDir) released = remove_table_names();
    return released;
}

} // namespace novpn
