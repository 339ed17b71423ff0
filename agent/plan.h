// From what is observed to what is desired: the ordered operations between, each printed as the command a person would
// type. Pure. Every prefix of a plan leaves a member's packet at the uplink or at the backstop, never in a tunnel.
#pragma once

#include "agent/decide.h"
#include "agent/observed.h"
#include "netlink/sockets.h"
#include "rules/connections.h"

#include <variant>

namespace novpn {

struct ReplaceRoute {
    Route route;
    bool operator==(const ReplaceRoute&) const = default;
};
struct DeleteRoute {
    Route route;
    bool operator==(const DeleteRoute&) const = default;
};
struct AddRule {
    Rule rule;
    bool operator==(const AddRule&) const = default;
};
struct DeleteRule {
    Rule rule;
    bool operator==(const DeleteRule&) const = default;
};
/// Its index is one that no policy has.
struct AddXfrmPolicy {
    XfrmPolicy policy;
    bool operator==(const AddXfrmPolicy&) const = default;
};
struct DeleteXfrmPolicy {
    XfrmPolicy policy;
    bool operator==(const DeleteXfrmPolicy&) const = default;
};
struct CreateCgroup {
    std::string path;
    bool operator==(const CreateCgroup&) const = default;
};
/// Processes still inside go to the root of the tree.
struct RemoveCgroup {
    std::string path;
    bool operator==(const RemoveCgroup&) const = default;
};
/// Where nobody has mounted it.
struct MountNetCls {
    std::string directory;
    bool operator==(const MountNetCls&) const = default;
};
/// What an agent has mounted and nobody uses any more.
struct UnmountNetCls {
    std::string directory;
    bool operator==(const UnmountNetCls&) const = default;
};
/// A cgroup of net_cls, made if need be, and its class id. `mount` is for the text.
struct SetClassid {
    std::string mount;
    std::string path;
    std::uint32_t classid = 0;
    bool operator==(const SetClassid&) const = default;
};
/// Processes still inside go to the root of the hierarchy, where no class id is.
struct RemoveNetClsCgroup {
    std::string mount;
    std::string path;
    bool operator==(const RemoveNetClsCgroup&) const = default;
};
/// The whole table in one transaction, whether or not there was one.
struct ReplaceNft {
    NftTable table;
    bool operator==(const ReplaceNft&) const = default;
};
struct DeleteNft {
    bool operator==(const DeleteNft&) const = default;
};
/// By path: the cgroup may be made by an earlier operation of the same plan.
struct AddMember {
    std::string class_name;
    std::string cgroup;
    bool operator==(const AddMember&) const = default;
};
struct RemoveMember {
    MemberElement member;
    bool operator==(const RemoveMember&) const = default;
};
struct AddLink {
    LinkElement element;
    bool operator==(const AddLink&) const = default;
};
struct RemoveLink {
    LinkElement element;
    bool operator==(const RemoveLink&) const = default;
};

/// Loads the program that gives a class's new sockets their mark, and pins it, attached to nothing yet.
struct PinBirthMark {
    std::string class_name;
    BirthMark birth;
    bool operator==(const PinBirthMark&) const = default;
};
struct UnpinBirthMark {
    std::string class_name;
    bool operator==(const UnpinBirthMark&) const = default;
};
/// The class's pinned program to a cgroup, by its path.
struct AttachBirthMark {
    std::string class_name;
    std::string cgroup;
    bool operator==(const AttachBirthMark&) const = default;
};
struct DetachBirthMark {
    std::string class_name;
    std::string cgroup;
    bool operator==(const DetachBirthMark&) const = default;
};

/// Loads the programs that redirect a class's DNS, and pins them, attached to nothing yet.
struct PinRedirect {
    std::string class_name;
    Mark mark;
    bool operator==(const PinRedirect&) const = default;
};
struct UnpinRedirect {
    std::string class_name;
    bool operator==(const UnpinRedirect&) const = default;
};
/// These in the place of what the class's programs have.
struct SetResolvers {
    std::string class_name;
    Resolvers resolvers;
    bool operator==(const SetResolvers&) const = default;
};
/// The class's pinned programs to a cgroup, by its path.
struct AttachRedirect {
    std::string class_name;
    std::string cgroup;
    bool operator==(const AttachRedirect&) const = default;
};
struct DetachRedirect {
    std::string class_name;
    std::string cgroup;
    bool operator==(const DetachRedirect&) const = default;
};

/// Users, destinations and cgroups of others, all in one transaction.
struct ChangeElements {
    ElementChange change;
    bool operator==(const ChangeElements&) const = default;
};

/// A member that leaves its class: its flow would go on by a path that is not its any more.
struct EndSocket {
    OpenSocket socket;
    bool operator==(const EndSocket&) const = default;
};

/// A member's flow that is translated to an address that is gone.
struct DropConnection {
    Connection connection;
    bool operator==(const DropConnection&) const = default;
};

/// Flows that are older than what follows connections, of sockets that are connected; never none. Known from now on, as
/// those of no class.
struct AddConnections {
    std::vector<OpenSocket> sockets;
    bool operator==(const AddConnections&) const = default;
};

/// A link's src_valid_mark, with the tag that tells that it is ours; off: both as they are by themselves.
struct SetSrcValidMark {
    IfIndex link;
    bool on = false;
    bool operator==(const SetSrcValidMark&) const = default;
};

/// A gateway that failed and may answer by now: without an entry the next packet asks for it again.
struct ForgetNeighbour {
    Neighbour neighbour;
    bool operator==(const ForgetNeighbour&) const = default;
};

/// A gateway that tells a site: the kernel asks for its link-layer address.
struct ProbeNeighbour {
    Neighbour neighbour;
    bool operator==(const ProbeNeighbour&) const = default;
};

using Operation = std::variant<ReplaceRoute, DeleteRoute, AddRule, DeleteRule, AddXfrmPolicy, DeleteXfrmPolicy,
                               CreateCgroup, RemoveCgroup, MountNetCls, UnmountNetCls, SetClassid, RemoveNetClsCgroup,
                               ReplaceNft, DeleteNft, AddMember, RemoveMember, AddLink, RemoveLink, PinBirthMark,
                               UnpinBirthMark, AttachBirthMark, DetachBirthMark, PinRedirect, UnpinRedirect,
                               SetResolvers, AttachRedirect, DetachRedirect, ChangeElements, EndSocket, DropConnection,
                               AddConnections, SetSrcValidMark, ForgetNeighbour, ProbeNeighbour>;
using Plan = std::vector<Operation>;

/// Empty when everything is as desired. A Desired with nothing in it gives the plan that releases everything of ours.
Plan diff(const Observed& observed, const Desired& desired);

/// "ip route replace default via 192.168.10.1 dev wlan0 table 7866 proto 78"
std::string to_string(const Operation& operation, const Observed& observed);

/// About a copied route by a gateway: no other such operation leans on it, nor it on them, whatever becomes of them.
bool stands_alone(const Operation& operation);

/// A plan goes on without a copied route that the kernel refuses, without the mark that sockets are born with (nft
/// marks their packets then), without the programs for its DNS, without the end of a socket or a connection,
/// with a neighbour remembered and with one that is not asked: the rest of the steering does not lean on them.
bool is_dispensable(const Operation& operation);

} // namespace novpn
