// The Linux side of the port: rtnetlink, nf_tables and the cgroup tree of the network namespace the process is in.
// Synchronous; one thread.
#pragma once

#include "agent/kernel.h"
#include "netlink/nl80211.h"
#include "netlink/rtnetlink.h"
#include "netlink/sockets.h"
#include "netlink/xfrm.h"
#include "rules/birth_mark.h"
#include "rules/cgroup.h"
#include "rules/cgroup_watch.h"
#include "rules/net_cls.h"
#include "rules/nft.h"
#include "rules/redirect.h"
#include "rules/removal_watch.h"
#include "rules/sysctl.h"

#include <chrono>

namespace novpn {

class LinuxKernel : public Kernel {
  public:
    /// operation_not_permitted without CAP_NET_ADMIN; a kernel feature that is missing is named in the error.
    static Expected<LinuxKernel> open();

    Expected<Observed> observe(const Scope& scope) override;
    Expected<void> apply(const Operation& operation) override;
    std::map<std::size_t, Error> apply_each(std::span<const Operation> operations) override;
    Expected<Lookup> lookup(const address& destination, std::optional<Mark> mark) override {
        return routing_.lookup(destination, mark);
    }
    Expected<std::map<std::string, PacketCounts>> packets() override { return nft_.counters(); }
    Expected<std::map<std::string, FlowCounts>> flow_counts() override { return nft_.flow_counts(); }
    Expected<std::vector<Firewall>> firewalls() override;
    /// Of others, by nft; those of iptables-legacy cannot be read.
    Expected<std::vector<ReversePathFilter>> reverse_path_filters();
    Expected<std::vector<OpenSocket>> sockets() override;
    Expected<std::vector<Connection>> connections(const std::optional<Mark>& with) override;
    std::set<std::uint64_t> cgroup_ids(const std::string& cgroup) override;
    std::optional<std::string> cgroup_of(pid_t pid) override { return CgroupTree::of(pid); }
    Expected<void> place(const std::string& cgroup, pid_t pid) override { return cgroups_.move(cgroup, pid); }
    std::vector<pid_t> processes(const std::string& cgroup) override;
    std::optional<std::string> net_cls_of(pid_t pid) override { return NetCls::of(pid); }
    Expected<void> place_in_net_cls(const std::string& cgroup, pid_t pid) override {
        return net_cls_.move(cgroup, pid);
    }
    std::vector<pid_t> net_cls_processes(const std::string& cgroup) override { return net_cls_.processes(cgroup); }

    /// Whether the kernel has every nft expression that steering uses. A table of ours that is there proves it.
    Expected<void> probe();

    const RouteSocket& routing() const { return routing_; }
    const Nft& nft() const { return nft_; }
    const XfrmSocket& xfrm() const { return xfrm_; }
    const BirthMarks& birth_marks() const { return birth_marks_; }
    const Redirects& redirects() const { return redirects_; }
    CgroupWatch& cgroup_watch() const { return *cgroup_watch_; }
    RemovalWatch& removal_watch() const { return *removal_watch_; }

  private:
    LinuxKernel(Sysctls settings, RouteSocket routing, Nft nft, CgroupTree cgroups, XfrmSocket xfrm,
                BirthMarks birth_marks, Redirects redirects, CgroupWatch cgroup_watch, RemovalWatch removal_watch,
                WifiSocket wifi, std::string cgroup_root);
    void look_at_others(Observed& observed, const Scope& scope) const;
    Expected<void> look_at_files(Observed& observed, const Scope& scope);
    Expected<void> read_files(Observed& observed, const Scope& scope) const;
    bool is_known(const Scope& scope) const;
    bool follow(const Observed& observed) const;
    std::vector<std::string> tree_below(const std::string& cgroup) const;
    Expected<MemberElement> element(const std::string& class_name, const std::string& cgroup) const;
    Expected<SocketDiag*> socket_diag();
    Expected<Connections*> conntrack();
    Expected<void> replace_nft(const NftTable& table);

    Sysctls settings_;
    RouteSocket routing_;
    Nft nft_;
    CgroupTree cgroups_;
    XfrmSocket xfrm_;
    BirthMarks birth_marks_;
    Redirects redirects_;
    std::unique_ptr<CgroupWatch> cgroup_watch_;
    std::unique_ptr<RemovalWatch> removal_watch_;
    WifiSocket wifi_;
    std::string cgroup_root_; ///< of this network namespace
    NetCls net_cls_;
    bool legacy_may_filter_early_ = false;  ///< as of the last look at everything
    std::optional<SocketDiag> socket_diag_; ///< these two are opened when they are first needed
    std::optional<Connections> conntrack_;
    /// What a look saw in files, where all of it is watched.
    struct Files {
        std::map<std::string, std::uint64_t> cgroups;
        ObservedBirthMarks birth_marks;
        ObservedRedirects redirects;
        std::vector<std::string> asked; ///< of which cgroups
        std::set<std::string> attached; ///< and of which of others, by the watch of these
        std::uint64_t heard = 0;
        std::chrono::steady_clock::time_point read_at;
    };
    std::optional<Files> files_;
};

} // namespace novpn
