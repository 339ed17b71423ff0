#include "rules/nft.h"

#include "rules/nft_firewalls.h"
#include "rules/nft_messages.h"
#include "rules/nft_probe.h"

#include <algorithm>
#include <cerrno>
#include <limits>
#include <optional>

namespace novpn {

namespace {

/// What there is of our table, but for the elements of its sets.
struct Skeleton {
    nft::TableHeader header;
    nft::Inventory inventory;
    bool intact = false;
};

} // namespace

struct Nft::Impl {
    nft::Socket socket;
    std::optional<Skeleton> skeleton; ///< as long as nobody can have changed it
    /// What was seen at generation `seen_at`; the kernel counts a generation up with every transaction.
    std::optional<std::uint32_t> seen_at;
    ObservedNft seen;
    std::uint32_t commits_seen = 0; ///< our own, until then
    /// What others have is as it was then.
    bool others_unchanged(std::uint32_t generation) const {
        return seen_at && generation - *seen_at == socket.commits() - commits_seen;
    }
};

namespace {

constexpr int kConsistentAttempts = 5;

std::string about(const char* doing) { return std::string(doing) + " table inet " + nft::kTable; }

std::string about(const char* doing, const MemberElement& member) {
    return doing + (" cgroup " + std::to_string(member.cgroup_id) + " of map cgroup_level_") +
           std::to_string(member.level);
}

std::string about(const char* doing, const LinkElement& link) {
    return doing + (" link " + std::to_string(link.link.value) + " of set links_") + link.class_name;
}

bool is_absent(const Expected<void>& result) {
    return !result && result.error().code == std::errc::no_such_file_or_directory;
}

Expected<std::optional<Skeleton>> read_skeleton(nft::Socket& socket, const std::string& doing) {
    auto header = nft::table_header(socket, doing);
    if (!header) return tl::make_unexpected(header.error());
    if (!*header) return std::nullopt;
    auto inventory = nft::observed_inventory(socket, doing);
    if (!inventory) return tl::make_unexpected(inventory.error());
    const bool intact = !(*header)->dormant && nft::has_inventory((*header)->comment, *inventory);
    return Skeleton{std::move(**header), std::move(*inventory), intact};
}

/// `early_filter` and `skeleton`: where they are known already.
Expected<ObservedNft> look(nft::Socket& socket, std::optional<bool> early_filter, std::optional<Skeleton>& skeleton) {
    const std::string doing = about("reading");
    ObservedNft observed;
    if (!early_filter) {
        const auto filters = nft::reverse_path_filters(socket, nft::kAnswerPriority);
        if (!filters) return tl::make_unexpected(filters.error());
        early_filter = std::ranges::any_of(*filters, is_early);
    }
    observed.early_filter = *early_filter;
    if (!skeleton) {
        auto read = read_skeleton(socket, doing);
        if (!read) return tl::make_unexpected(read.error());
        skeleton = std::move(*read);
    }
    if (!skeleton) return observed;
    const auto elements = nft::observed_elements(socket, skeleton->inventory, doing);
    if (!elements) return tl::make_unexpected(elements.error());

    observed.present = true;
    observed.structure = skeleton->header.comment;
    observed.intact = skeleton->intact && !elements->foreign;
    observed.follows = nft::follows_connections(skeleton->inventory);
    observed.members = elements->members;
    observed.users = elements->users;
    observed.destinations = elements->destinations;
    observed.links = elements->links;
    return observed;
}

} // namespace

Nft::Nft(std::unique_ptr<Impl> impl)
    : impl_(std::move(impl)) {}
Nft::Nft(Nft&&) noexcept = default;
Nft& Nft::operator=(Nft&&) noexcept = default;
Nft::~Nft() = default;

Expected<Nft> Nft::open() {
    auto socket = nft::Socket::open();
    if (!socket) return tl::make_unexpected(socket.error());
    // nfnetlink refuses every request without CAP_NET_ADMIN, and answers EINVAL when nf_tables is not there.
    const auto generation = nft::generation(*socket);
    if (!generation && generation.error().code == std::errc::invalid_argument) {
        return system_error(EPROTONOSUPPORT, generation.error().doing, "NF_TABLES: nf_tables");
    }
    if (!generation) return tl::make_unexpected(generation.error());
    return Nft(std::make_unique<Impl>(Impl{.socket = std::move(*socket), .skeleton = {}, .seen_at = {}, .seen = {}}));
}

std::uint32_t Nft::port_id() const { return impl_->socket.port_id(); }

Expected<ObservedNft> Nft::observe() {
    for (int attempt = 1;; ++attempt) {
        const auto before = nft::generation(impl_->socket);
        if (!before) return tl::make_unexpected(before.error());
        if (impl_->seen_at == *before) return impl_->seen;
        const bool by_us_alone = impl_->others_unchanged(*before);
        if (!by_us_alone) impl_->skeleton.reset();
        auto observed =
            look(impl_->socket, by_us_alone ? std::optional(impl_->seen.early_filter) : std::nullopt, impl_->skeleton);
        const auto after = nft::generation(impl_->socket);
        if (!after) return tl::make_unexpected(after.error());
        if (*before != *after && attempt < kConsistentAttempts) continue;
        // Mixed from two generations, but somebody who never stops changing rules must not stop us: see again next
        // time.
        if (!observed || *before != *after) return observed;
        impl_->seen_at = *after;
        impl_->commits_seen = impl_->socket.commits();
        impl_->seen = *observed;
        return observed;
    }
}

Expected<std::map<std::string, PacketCounts>> Nft::counters() {
    const auto packets = nft::counter_packets(impl_->socket, "reading the counters of table inet novpn");
    if (!packets) return tl::make_unexpected(packets.error());
    std::map<std::string, PacketCounts> counts;
    const auto take = [&](const std::string& prefix, std::uint64_t PacketCounts::*field) {
        for (const auto& [name, value] : *packets) {
            if (name.starts_with(prefix)) counts[name.substr(prefix.size())].*field = value;
        }
    };
    take(nft::kMarkedCounter, &PacketCounts::marked);
    take(nft::kMasqueradedCounter, &PacketCounts::masqueraded);
    take(nft::kDroppedCounter, &PacketCounts::dropped);
    return counts;
}

Expected<std::map<std::string, FlowCounts>> Nft::flow_counts() {
    // The kernel lists them in the order in which they were made, `sent` first: what is under way meanwhile counts as
    // arrived rather than as lost.
    const auto packets = nft::counter_packets(impl_->socket, "reading the counters of table inet novpn");
    if (!packets) return tl::make_unexpected(packets.error());
    std::map<std::string, FlowCounts> counts;
    for (const auto& [name, value] : *packets) {
        const std::string sent = nft::kSentCounter;
        const std::string arrived = nft::kArrivedCounter;
        if (name.starts_with(sent)) counts[name.substr(sent.size())].sent = value;
        if (name.starts_with(arrived)) counts[name.substr(arrived.size())].arrived = value;
    }
    return counts;
}

Expected<std::vector<Firewall>> Nft::firewalls() { return nft::firewalls(impl_->socket); }

Expected<std::vector<ReversePathFilter>> Nft::reverse_path_filters() {
    return nft::reverse_path_filters(impl_->socket, std::numeric_limits<std::int32_t>::max());
}

Expected<void> Nft::probe() { return nft::probe(impl_->socket, nft::everything()); }

Expected<void> Nft::replace(const NftTable& table, const std::set<MemberElement>& members) {
    const std::string doing = "replacing nft table inet novpn";
    const auto counted = nft::counter_packets(impl_->socket, doing);
    if (!counted) return tl::make_unexpected(counted.error());

    const nft::Structure made = nft::structure(table);
    std::set<UserElement> users;
    std::set<DestinationElement> destinations;
    std::set<LinkElement> links;
    for (const ClassMarking& c : table.classes) {
        for (const std::uint32_t uid : c.users) users.insert({.class_name = c.name, .uid = uid});
        for (const Prefix& prefix : c.destinations) destinations.insert({.class_name = c.name, .prefix = prefix});
        if (!c.guarded) continue;
        for (const IfIndex link : c.links) links.insert({.class_name = c.name, .link = link});
    }
    impl_->skeleton.reset();
    nft::Batch batch;
    // Deleting a table that is not there fails the batch, adding one that is there does not.
    nft::add_table(batch, nft::kTable, "");
    nft::delete_table(batch, nft::kTable);
    nft::add_table(batch, nft::kTable, structure_of(table));
    for (const std::string& counter : made.counters) {
        const auto packets = counted->find(counter);
        nft::add_counter(batch, nft::kTable, counter, packets == counted->end() ? 0 : packets->second);
    }
    std::uint32_t id = 0;
    for (const nft::Set& set : made.sets) nft::add_set(batch, nft::kTable, set, ++id);
    for (const nft::Chain& chain : made.chains) nft::add_chain(batch, nft::kTable, chain);
    for (const nft::Rule& rule : made.rules) nft::add_rule(batch, nft::kTable, rule);
    nft::add_elements(batch, links);
    nft::add_elements(batch, users);
    nft::add_elements(batch, destinations);
    nft::add_elements(batch, members);
    return impl_->socket.commit(std::move(batch), doing);
}

Expected<void> Nft::remove() {
    impl_->skeleton.reset();
    nft::Batch batch;
    nft::delete_table(batch, nft::kTable);
    const auto done = impl_->socket.commit(std::move(batch), "deleting nft table inet novpn");
    return is_absent(done) ? Expected<void>() : done;
}

Expected<void> Nft::add(const MemberElement& member) {
    nft::Batch batch;
    nft::add_elements(batch, std::set{member});
    return impl_->socket.commit(std::move(batch), about("adding", member));
}

Expected<void> Nft::add(const LinkElement& link) {
    nft::Batch batch;
    nft::add_elements(batch, std::set{link});
    return impl_->socket.commit(std::move(batch), about("adding", link));
}

Expected<void> Nft::remove(const MemberElement& member) {
    nft::Batch batch;
    nft::delete_element(batch, member);
    const auto done = impl_->socket.commit(std::move(batch), about("removing", member));
    return is_absent(done) ? Expected<void>() : done;
}

Expected<void> Nft::remove(const LinkElement& link) {
    nft::Batch batch;
    nft::delete_element(batch, link);
    const auto done = impl_->socket.commit(std::move(batch), about("removing", link));
    return is_absent(done) ? Expected<void>() : done;
}

Expected<void> Nft::change(const ElementChange& change) {
    nft::Batch batch;
    for (const MemberElement& member : change.members_to_remove) nft::delete_element(batch, member);
    for (const UserElement& user : change.users_to_remove) nft::delete_element(batch, user);
    for (const DestinationElement& destination : change.destinations_to_remove) nft::delete_element(batch, destination);
    nft::add_elements(batch, change.members_to_add);
    nft::add_elements(batch, change.users_to_add);
    nft::add_elements(batch, change.destinations_to_add);
    return impl_->socket.commit(std::move(batch), about("changing elements of"));
}

} // namespace novpn
