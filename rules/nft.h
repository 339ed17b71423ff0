// The kernel's `table inet novpn` over nfnetlink (libmnl, libnftnl). Synchronous, on a socket of its own; one batch a
// change. Owns the socket; not thread-safe. Which structure and which elements there should be is decided elsewhere.
#pragma once

#include "netlink/error.h"
#include "rules/firewall.h"
#include "rules/steering.h"

#include <memory>

namespace novpn {

class Nft {
  public:
    /// operation_not_permitted without CAP_NET_ADMIN; protocol_not_supported: the kernel has no nf_tables.
    static Expected<Nft> open();
    Nft(Nft&&) noexcept;
    Nft& operator=(Nft&&) noexcept;
    ~Nft();

    /// The table as the kernel has it, one request when no nft table has changed since the last time; `present ==
    /// false` is not an error.
    Expected<ObservedNft> observe();
    /// Packets by class name, for status: read from the table's named counters.
    Expected<std::map<std::string, PacketCounts>> counters();

    /// First packets of flows by class name, since their structure was made.
    Expected<std::map<std::string, FlowCounts>> flow_counts();
    /// Chains of others that may drop what leaves this machine, those of iptables-nft among them. Two dumps of
    /// everybody's chains and rules: not for every look.
    Expected<std::vector<Firewall>> firewalls();
    /// Chains of others that judge by the way back where packets come in. Likewise.
    Expected<std::vector<ReversePathFilter>> reverse_path_filters();

    /// Asks the kernel, in a batch that it is bound to undo, whether it knows every expression the table uses.
    /// The error says which feature is missing, by its config option ("NFT_SOCKET: socket cgroupv2, Linux 5.13").
    Expected<void> probe();

    /// Makes the table with this structure, or replaces it, in one transaction. Its elements are `members` and the
    /// classes' users, destinations and links (`cgroups` only tell which levels there are). Counters of classes that
    /// were there go on.
    Expected<void> replace(const NftTable& table, const std::set<MemberElement>& members);
    /// nft delete table inet novpn; an absent table is not an error.
    Expected<void> remove();
    Expected<void> add(const MemberElement& member);
    Expected<void> remove(const MemberElement& member);
    Expected<void> add(const LinkElement& link);
    Expected<void> remove(const LinkElement& link);
    /// All or nothing: what is to be removed must be there.
    Expected<void> change(const ElementChange& change);

    /// Of the socket, by which notifications of our own changes are told from others'.
    std::uint32_t port_id() const;

  private:
    struct Impl;
    explicit Nft(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

/// Notifications of other programs' changes to any nft table (NFNLGRP_NFTABLES). The caller waits for `fd()` to be
/// readable, then drains it.
class NftMonitor {
  public:
    static Expected<NftMonitor> open();
    NftMonitor(NftMonitor&&) noexcept;
    NftMonitor& operator=(NftMonitor&&) noexcept;
    ~NftMonitor();
    int fd() const;
    /// Reads what is queued, never blocks. True when `table inet novpn` may have been changed by another than the
    /// socket of `ours`, or somebody's reverse path filter has come or gone; also after an overrun.
    bool drain(const Nft& ours);

  private:
    explicit NftMonitor(int fd);
    int fd_ = -1;
};

/// `table` as the text that `nft -f` takes: what replace() does, for the log and `novpn plan`.
/// `link_name` is given by the caller so that elements read as names.
std::string to_nft(const NftTable& table, const LinkNames& link_name);

} // namespace novpn
