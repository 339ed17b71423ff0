// Values to nf_tables messages and back, through libnftnl. Internal to rules/.
#pragma once

#include "rules/nft_socket.h"
#include "rules/nft_structure.h"

#include <map>
#include <optional>

namespace novpn::nft {

void add_table(Batch& batch, const std::string& table, const std::string& comment);
void delete_table(Batch& batch, const std::string& table);
/// A counter that goes on from `packets`.
void add_counter(Batch& batch, const std::string& table, const std::string& name, std::uint64_t packets);
/// `id` names the set within its batch.
void add_set(Batch& batch, const std::string& table, const Set& set, std::uint32_t id);
void add_chain(Batch& batch, const std::string& table, const Chain& chain);
void add_rule(Batch& batch, const std::string& table, const Rule& rule);

void add_elements(Batch& batch, const std::set<MemberElement>& members);
void add_elements(Batch& batch, const std::set<UserElement>& users);
void add_elements(Batch& batch, const std::set<DestinationElement>& destinations);
void add_elements(Batch& batch, const std::set<LinkElement>& links);
void delete_element(Batch& batch, const MemberElement& member);
void delete_element(Batch& batch, const UserElement& user);
void delete_element(Batch& batch, const DestinationElement& destination);
void delete_element(Batch& batch, const LinkElement& link);

struct TableHeader {
    bool dormant = false;
    std::string comment;
};

/// What the kernel has of `table inet novpn`. Each is one request, an inventory four.
Expected<std::uint32_t> generation(Socket& socket);
Expected<std::optional<TableHeader>> table_header(Socket& socket, const std::string& doing);
Expected<Inventory> observed_inventory(Socket& socket, const std::string& doing);
Expected<std::map<std::string, std::uint64_t>> counter_packets(Socket& socket, const std::string& doing);

struct Elements {
    std::set<MemberElement> members;
    std::set<UserElement> users;
    std::set<DestinationElement> destinations;
    std::set<LinkElement> links;
    bool foreign = false; ///< some element goes elsewhere than to a class
};
/// `sets` are the set items of an inventory.
Expected<Elements> observed_elements(Socket& socket, const Inventory& sets, const std::string& doing);

} // namespace novpn::nft
