#include "agent/linux_kernel.h"

#include "agent/decide.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace novpn {

Expected<LinuxKernel> LinuxKernel::open() {
    auto routing = RouteSocket::open();
    if (!routing) return tl::make_unexpected(routing.error());
    auto nft = Nft::open();
    if (!nft) {
        Error error = nft.error();
        if (error.code == std::errc::operation_not_permitted) error.detail = "CAP_NET_ADMIN is needed: run it as root";
        return tl::make_unexpected(error);
    }
    auto cgroups = CgroupTree::find();
    if (!cgroups) return tl::make_unexpected(cgroups.error());
    auto xfrm = XfrmSocket::open();
    if (!xfrm) return tl::make_unexpected(xfrm.error());
    auto root = cgroup_root_of_this_netns();
    if (!root) return tl::make_unexpected(root.error());
    auto birth_marks = BirthMarks::open(cgroups->mount(), *root);
    auto redirects = Redirects::open(cgroups->mount(), *root, birth_marks.unavailable());
    auto cgroup_watch = CgroupWatch::open(cgroups->mount());
    if (!cgroup_watch) return tl::make_unexpected(cgroup_watch.error());
    auto wifi = WifiSocket::open();
    if (!wifi) return tl::make_unexpected(wifi.error());
    auto removal_watch = RemovalWatch::open();
    if (!removal_watch) return tl::make_unexpected(removal_watch.error());
    auto settings = Sysctls::open();
    if (!settings) return tl::make_unexpected(settings.error());
    return LinuxKernel(std::move(*settings), std::move(*routing), std::move(*nft), std::move(*cgroups),
                       std::move(*xfrm), std::move(birth_marks), std::move(redirects), std::move(*cgroup_watch),
                       std::move(*removal_watch), std::move(*wifi), std::move(*root));
}

LinuxKernel::LinuxKernel(Sysctls settings, RouteSocket routing, Nft nft, CgroupTree cgroups, XfrmSocket xfrm,
                         BirthMarks birth_marks, Redirects redirects, CgroupWatch cgroup_watch,
                         RemovalWatch removal_watch, WifiSocket wifi, std::string cgroup_root)
    : settings_(std::move(settings))
    , routing_(std::move(routing))
    , nft_(std::move(nft))
    , cgroups_(std::move(cgroups))
    , xfrm_(std::move(xfrm))
    , birth_marks_(std::move(birth_marks))
    , redirects_(std::move(redirects))
    , cgroup_watch_(std::make_unique<CgroupWatch>(std::move(cgroup_watch)))
    , removal_watch_(std::make_unique<RemovalWatch>(std::move(removal_watch)))
    , wifi_(std::move(wifi))
    , cgroup_root_(std::move(cgroup_root))
    , net_cls_(cgroup_root_) {}

namespace {

/// Of each link, in a table: more than are copied to a class's table, so that the excess is known, and no million.
constexpr std::size_t kMaxRoutesOfALink = kMaxCopiedRoutes + 1;

/// What is in files and has no news is taken for what it was for this long.
constexpr auto kFilesAreKnown = std::chrono::seconds(1);

/// What a link that comes and goes leads to, and nothing of it is in files.
bool is_of_netlink_alone(const Operation& operation) {
    return std::holds_alternative<ReplaceRoute>(operation) || std::holds_alternative<DeleteRoute>(operation) ||
           std::holds_alternative<AddRule>(operation) || std::holds_alternative<DeleteRule>(operation) ||
           std::holds_alternative<AddLink>(operation) || std::holds_alternative<RemoveLink>(operation);
}

/// Its src_valid_mark says how members' replies are judged.
bool has_setting(const Link& link, const Observed& observed) {
    return link.up && !link.loopback && needs_src_valid_mark(link, observed);
}

/// Moves a dump to the end of what is known, or tells what went wrong with it.
template<typename T>
Expected<void> take(std::vector<T>& into, Expected<std::vector<T>> dump) {
    if (!dump) return tl::make_unexpected(dump.error());
    into.insert(into.end(), std::make_move_iterator(dump->begin()), std::make_move_iterator(dump->end()));
    return {};
}

} // namespace

Expected<Observed> LinuxKernel::observe(const Scope& scope) {
    Observed observed;
    observed.cgroup_mount = cgroups_.mount();
    if (auto done = take(observed.links, routing_.links()); !done) return tl::make_unexpected(done.error());
    auto ipv4_of_all = settings_.ipv4_of_all();
    if (!ipv4_of_all) return tl::make_unexpected(ipv4_of_all.error());
    observed.ipv4_of_all = *ipv4_of_all;
    if (auto done = take(observed.addresses, routing_.addresses()); !done) return tl::make_unexpected(done.error());
    if (auto done = take(observed.rules, routing_.rules()); !done) return tl::make_unexpected(done.error());
    if (auto done = take(observed.policies, xfrm_.policies()); !done) return tl::make_unexpected(done.error());

    std::vector<TableId> tables;
    if (scope.main) tables.push_back(kMainTable);
    auto look_at = [&](TableId table) {
        if (std::ranges::find(tables, table) == tables.end()) tables.push_back(table);
    };
    std::ranges::for_each(scope.tables, look_at);
    for (const Rule& rule : observed.rules)
        if (rule.protocol == kNovpnProtocol && rule.action == RuleAction::to_table) look_at(rule.table);
    if (scope.strays) {
        auto own = routing_.routes_of(kNovpnProtocol);
        if (!own) return tl::make_unexpected(own.error());
        for (const Route& route : *own) look_at(route.table);
    }
    for (Family family : kFamilies)
        for (TableId table : tables)
            if (auto done = take(observed.routes, routing_.routes(family, table, kMaxRoutesOfALink)); !done)
                return tl::make_unexpected(done.error());

    for (const Neighbour& gateway : watched_gateways(observed.routes)) {
        auto known = routing_.neighbour(gateway.link, gateway.host);
        if (!known) return tl::make_unexpected(known.error());
        if (*known) observed.gateways.push_back(**known);
    }
    for (const Neighbour& gateway : gateways_to_look_at(scope, observed.routes)) {
        auto known = routing_.neighbour(gateway.link, gateway.host);
        if (!known) return tl::make_unexpected(known.error());
        if (*known) observed.place_gateways.push_back(**known);
    }
    if (scope.wifi)
        if (auto done = take(observed.wifi, wifi_.links(scope.bssids)); !done) return tl::make_unexpected(done.error());
    const auto destinations = telling_destinations(scope);
    for (const address& destination : destinations) {
        auto lookup = routing_.lookup(destination, std::nullopt);
        if (!lookup) return tl::make_unexpected(lookup.error());
        observed.lookups.push_back(std::move(*lookup));
    }
    const auto public_of = [&](Family family) -> const address& {
        return *std::ranges::find(destinations, family, [](const address& a) { return family_of(a); });
    };
    for (const auto& [family, link] : scope.defaults_of) {
        auto lookup = routing_.lookup(public_of(family), std::nullopt, link);
        if (!lookup) return tl::make_unexpected(lookup.error());
        observed.defaults.push_back(std::move(*lookup));
    }
    for (const Link& link : observed.links) {
        if (!link.up || !may_be_tunnel(link, scope.tunnels)) continue;
        for (Family family : kFamilies) {
            auto lookup = routing_.lookup(public_of(family), std::nullopt, link.index);
            if (!lookup) return tl::make_unexpected(lookup.error());
            observed.lookups.push_back(std::move(*lookup));
        }
    }
    look_at_others(observed, scope);
    if (auto done = look_at_files(observed, scope); !done) return tl::make_unexpected(done.error());
    auto nft = nft_.observe();
    if (!nft) return tl::make_unexpected(nft.error());
    observed.nft = std::move(*nft);
    if (scope.strays) legacy_may_filter_early_ = legacy_may_filter_early();
    observed.nft.early_filter = observed.nft.early_filter || legacy_may_filter_early_;
    return observed;
}

/// A sixth of a look's time: files are read again where they may be others than before.
Expected<void> LinuxKernel::look_at_files(Observed& observed, const Scope& scope) {
    if (is_known(scope)) {
        observed.cgroups = files_->cgroups;
        observed.birth_marks = files_->birth_marks;
        observed.redirects = files_->redirects;
        if (std::ranges::any_of(observed.links, [&](const Link& link) { return has_setting(link, observed); }))
            (void)follow(observed);
        return {};
    }
    files_.reset();
    removal_watch_->look_begins();
    const std::uint64_t heard = cgroup_watch_->heard();
    const auto now = std::chrono::steady_clock::now();
    if (auto done = read_files(observed, scope); !done) return done;
    // What is watched from now on only may have changed since it was read.
    if (follow(observed) && !scope.strays && !scope.net_cls)
        files_ = {.cgroups = observed.cgroups,
                  .birth_marks = observed.birth_marks,
                  .redirects = observed.redirects,
                  .asked = scope.cgroups,
                  .attached = scope.attached,
                  .heard = heard,
                  .read_at = now};
    return {};
}

/// News that is queued counts, as that is for the look after it. Of a program that somebody detaches no kernel tells:
/// a look after a while finds it, as it would one that was detached right after the last.
bool LinuxKernel::is_known(const Scope& scope) const {
    if (!scope.trusts_watches || !files_ || scope.net_cls) return false;
    if (scope.cgroups != files_->asked || scope.attached != files_->attached) return false;
    if (std::chrono::steady_clock::now() - files_->read_at > kFilesAreKnown) return false;
    const bool others_are = cgroup_watch_->heard() == files_->heard && cgroup_watch_->is_silent();
    return (scope.attached.empty() || others_are) && removal_watch_->is_silent();
}

Expected<void> LinuxKernel::read_files(Observed& observed, const Scope& scope) const {
    std::vector<std::string> paths = scope.cgroups;
    if (!scope.cgroup_root.empty()) {
        const auto children = cgroups_.children(scope.cgroup_root);
        paths.insert(paths.end(), children.begin(), children.end());
        // It goes with the last of them, but for a crash in between.
        if (children.empty()) paths.push_back(scope.cgroup_root);
    }
    for (const std::string& path : paths)
        if (auto id = cgroups_.id(path)) observed.cgroups[path] = *id;
    if (scope.net_cls || scope.strays) observed.net_cls = net_cls_.observe();
    if (birth_marks_.pinned()) {
        paths.insert(paths.end(), scope.attached.begin(), scope.attached.end());
        // Also to classes that are no more: what is unpinned while it is attached could not be detached any more.
        auto more = tree_below(scope.strays ? "" : cgroup_root_);
        paths.insert(paths.end(), more.begin(), more.end());
    }
    auto birth_marks = birth_marks_.observe(paths);
    if (!birth_marks) return tl::make_unexpected(birth_marks.error());
    observed.birth_marks = std::move(*birth_marks);
    auto redirects = redirects_.observe(paths);
    if (!redirects) return tl::make_unexpected(redirects.error());
    observed.redirects = std::move(*redirects);
    return {};
}

/// What of ours is in files, of which no netlink tells: cgroups, class ids, pins, and how a strict rp_filter judges
/// members' replies (rp_filter itself is told of).
bool LinuxKernel::follow(const Observed& observed) const {
    std::set<std::string> directories{cgroups_.mount() + "/" + cgroup_root_};
    std::set<std::string> files{Sysctls::src_valid_mark_file("all")};
    for (const Link& link : observed.links)
        if (has_setting(link, observed)) files.insert(Sysctls::src_valid_mark_file(link.name));
    // Its directory is there while anything is in it.
    if (!observed.birth_marks.classes.empty() || !observed.redirects.classes.empty())
        directories.insert(observed.birth_marks.directory);
    if (!observed.net_cls.mount.empty()) {
        directories.insert(observed.net_cls.mount + "/" + cgroup_root_);
        for (const auto& [path, _] : observed.net_cls.ours)
            files.insert(NetCls::classid_file(observed.net_cls.mount, path));
    }
    return removal_watch_->follow(directories, files);
}

Expected<std::vector<Firewall>> LinuxKernel::firewalls() {
    auto found = nft_.firewalls();
    if (!found) return found;
    std::ranges::move(legacy_firewalls(), std::back_inserter(*found));
    return found;
}

Expected<std::vector<ReversePathFilter>> LinuxKernel::reverse_path_filters() { return nft_.reverse_path_filters(); }

/// What the watch tells is the answer; a look at everything reads the tree anew.
void LinuxKernel::look_at_others(Observed& observed, const Scope& scope) const {
    if (!scope.others) return cgroup_watch_->stop();
    if (scope.strays || !cgroup_watch_->is_watching()) cgroup_watch_->scan();
    observed.others = cgroup_watch_->seen();
    if (const auto& problem = cgroup_watch_->problem()) observed.others_problem = to_string(*problem);
}

std::vector<std::string> LinuxKernel::tree_below(const std::string& cgroup) const {
    std::vector<std::string> paths;
    for (const std::string& child : cgroups_.children(cgroup)) {
        paths.push_back(child);
        std::ranges::move(tree_below(child), std::back_inserter(paths));
    }
    return paths;
}

Expected<void> LinuxKernel::probe() {
    auto nft = nft_.observe();
    if (!nft) return tl::make_unexpected(nft.error());
    return nft->intact ? Expected<void>{} : nft_.probe();
}

Expected<MemberElement> LinuxKernel::element(const std::string& class_name, const std::string& cgroup) const {
    auto id = cgroups_.id(cgroup);
    if (!id) return system_error(ENOENT, "looking for cgroup " + cgroups_.mount() + "/" + cgroup);
    return MemberElement{class_name, cgroup_level(cgroup), *id};
}

Expected<void> LinuxKernel::replace_nft(const NftTable& table) {
    std::set<MemberElement> members;
    for (const ClassMarking& c : table.classes) {
        for (const std::string& cgroup : c.cgroups) {
            auto member = element(c.name, cgroup);
            if (!member) return tl::make_unexpected(member.error());
            members.insert(*member);
        }
        // By their ids: one that has gone since is harmless, and its end is told.
        for (const auto& [path, id] : c.others) members.insert({c.name, cgroup_level(path), id});
    }
    return nft_.replace(table, members);
}

Expected<SocketDiag*> LinuxKernel::socket_diag() {
    if (!socket_diag_) {
        auto opened = SocketDiag::open();
        if (!opened) return tl::make_unexpected(opened.error());
        socket_diag_ = std::move(*opened);
    }
    return &*socket_diag_;
}

Expected<std::vector<OpenSocket>> LinuxKernel::sockets() {
    auto diag = socket_diag();
    if (!diag) return tl::make_unexpected(diag.error());
    return (*diag)->sockets();
}

Expected<Connections*> LinuxKernel::conntrack() {
    if (!conntrack_) {
        auto opened = Connections::open();
        if (!opened) return tl::make_unexpected(opened.error());
        conntrack_ = std::move(*opened);
    }
    return &*conntrack_;
}

Expected<std::vector<Connection>> LinuxKernel::connections(const std::optional<Mark>& with) {
    auto known = conntrack();
    if (!known) return tl::make_unexpected(known.error());
    return (*known)->dump(with);
}

std::set<std::uint64_t> LinuxKernel::cgroup_ids(const std::string& cgroup) {
    std::set<std::uint64_t> ids;
    if (auto id = cgroups_.id(cgroup)) ids.insert(*id);
    for (const std::string& child : cgroups_.children(cgroup)) ids.merge(cgroup_ids(child));
    return ids;
}

std::vector<pid_t> LinuxKernel::processes(const std::string& cgroup) {
    std::vector<pid_t> pids = cgroups_.processes(cgroup);
    for (const std::string& child : cgroups_.children(cgroup)) {
        auto below = processes(child);
        pids.insert(pids.end(), below.begin(), below.end());
    }
    return pids;
}

std::map<std::size_t, Error> LinuxKernel::apply_each(std::span<const Operation> operations) {
    std::vector<RouteWrite> writes;
    writes.reserve(operations.size());
    for (const Operation& operation : operations) {
        if (const auto* replace = std::get_if<ReplaceRoute>(&operation))
            writes.push_back({.route = &replace->route, .removes = false});
        else if (const auto* remove = std::get_if<DeleteRoute>(&operation))
            writes.push_back({.route = &remove->route, .removes = true});
        else
            return Kernel::apply_each(operations);
    }
    return routing_.write(writes);
}

Expected<void> LinuxKernel::apply(const Operation& operation) {
    if (!is_of_netlink_alone(operation)) files_.reset();
    struct Apply {
        LinuxKernel& kernel;
        Expected<void> operator()(const ReplaceRoute& op) { return kernel.routing_.replace(op.route); }
        Expected<void> operator()(const DeleteRoute& op) { return kernel.routing_.remove(op.route); }
        Expected<void> operator()(const AddRule& op) { return kernel.routing_.add(op.rule); }
        Expected<void> operator()(const DeleteRule& op) { return kernel.routing_.remove(op.rule); }
        Expected<void> operator()(const AddXfrmPolicy& op) { return kernel.xfrm_.add(op.policy); }
        Expected<void> operator()(const DeleteXfrmPolicy& op) { return kernel.xfrm_.remove(op.policy); }
        Expected<void> operator()(const CreateCgroup& op) { return kernel.cgroups_.create(op.path); }
        Expected<void> operator()(const RemoveCgroup& op) {
            if (auto done = kernel.cgroups_.empty_into_root(op.path); !done) return done;
            return kernel.cgroups_.remove(op.path);
        }
        Expected<void> operator()(const MountNetCls& op) { return kernel.net_cls_.mount(op.directory); }
        Expected<void> operator()(const UnmountNetCls& op) { return kernel.net_cls_.unmount(op.directory); }
        Expected<void> operator()(const SetClassid& op) { return kernel.net_cls_.create(op.path, op.classid); }
        Expected<void> operator()(const RemoveNetClsCgroup& op) { return kernel.net_cls_.remove(op.path); }
        Expected<void> operator()(const ReplaceNft& op) { return kernel.replace_nft(op.table); }
        Expected<void> operator()(const DeleteNft&) { return kernel.nft_.remove(); }
        Expected<void> operator()(const AddMember& op) {
            auto member = kernel.element(op.class_name, op.cgroup);
            if (!member) return tl::make_unexpected(member.error());
            return kernel.nft_.add(*member);
        }
        Expected<void> operator()(const RemoveMember& op) { return kernel.nft_.remove(op.member); }
        Expected<void> operator()(const AddLink& op) { return kernel.nft_.add(op.element); }
        Expected<void> operator()(const RemoveLink& op) { return kernel.nft_.remove(op.element); }
        Expected<void> operator()(const PinBirthMark& op) { return kernel.birth_marks_.pin(op.class_name, op.birth); }
        Expected<void> operator()(const UnpinBirthMark& op) { return kernel.birth_marks_.unpin(op.class_name); }
        Expected<void> operator()(const AttachBirthMark& op) {
            return kernel.birth_marks_.attach(op.class_name, op.cgroup);
        }
        Expected<void> operator()(const DetachBirthMark& op) {
            return kernel.birth_marks_.detach(op.class_name, op.cgroup);
        }
        Expected<void> operator()(const PinRedirect& op) { return kernel.redirects_.pin(op.class_name, op.mark); }
        Expected<void> operator()(const UnpinRedirect& op) { return kernel.redirects_.unpin(op.class_name); }
        Expected<void> operator()(const SetResolvers& op) { return kernel.redirects_.set(op.class_name, op.resolvers); }
        Expected<void> operator()(const AttachRedirect& op) {
            return kernel.redirects_.attach(op.class_name, op.cgroup);
        }
        Expected<void> operator()(const DetachRedirect& op) {
            return kernel.redirects_.detach(op.class_name, op.cgroup);
        }
        Expected<void> operator()(const DropConnection& op) {
            auto known = kernel.conntrack();
            return known ? (*known)->drop(op.connection) : tl::make_unexpected(known.error());
        }
        Expected<void> operator()(const AddConnections& op) {
            auto known = kernel.conntrack();
            return known ? (*known)->add(op.sockets) : tl::make_unexpected(known.error());
        }
        Expected<void> operator()(const SetSrcValidMark& op) {
            return kernel.routing_.set_src_valid_mark(op.link, op.on);
        }
        Expected<void> operator()(const ForgetNeighbour& op) { return kernel.routing_.forget(op.neighbour); }
        Expected<void> operator()(const ProbeNeighbour& op) { return kernel.routing_.probe(op.neighbour); }
        Expected<void> operator()(const ChangeElements& op) { return kernel.nft_.change(op.change); }
        Expected<void> operator()(const EndSocket& op) {
            auto diag = kernel.socket_diag();
            return diag ? (*diag)->end(op.socket) : tl::make_unexpected(diag.error());
        }
    };
    return std::visit(Apply{*this}, operation);
}

} // namespace novpn
