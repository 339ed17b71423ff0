#include "rules/steering.h"

#include "rules/nft.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace novpn {
namespace {

ClassMarking novpn_class() {
    return {.name = "novpn",
            .mark = {.value = 0x4e000000, .mask = 0xff000000},
            .dns_by_vpn = true,
            .guarded = true,
            .cgroups = {"novpn-1/novpn"},
            .links = {}};
}

NftTable one_class() { return {.classes = {novpn_class()}}; }

template<typename Change>
std::string structure_with(Change change) {
    NftTable table = one_class();
    change(table.classes.front());
    return structure_of(table);
}

TEST(CgroupLevel, CountsTheComponentsOfThePath) {
    EXPECT_EQ(cgroup_level(""), 0U);
    EXPECT_EQ(cgroup_level("novpn-1"), 1U);
    EXPECT_EQ(cgroup_level("novpn-1/novpn"), 2U);
    EXPECT_EQ(cgroup_level("user.slice/user-1000.slice/user@1000.service"), 3U);
}

ClassMarking class_of(const char* name, Mark mark) {
    ClassMarking c = novpn_class();
    c.name = name;
    c.mark = mark;
    return c;
}

TEST(ToNft, LooksUpTheClassOfAMarkAmongThoseOfTheSameBits) {
    const Mark its = novpn_class().mark;
    const auto text = [](const std::vector<ClassMarking>& classes) {
        return to_nft({.classes = classes}, LinkNames{});
    };
    const std::string of_one_mask = text({novpn_class(), class_of("games", {0x01000000, its.mask})});
    for (const char* expected :
         {"ct mark & 0xff000000 vmap { 0x4e000000 : goto restore_novpn, 0x01000000 : goto restore_games } comment",
          "meta mark & 0xff000000 vmap { 0x4e000000 : jump born_novpn, 0x01000000 : jump born_games } comment",
          "meta mark & 0xff000000 vmap { 0x4e000000 : goto guard_novpn, 0x01000000 : goto guard_games } comment"})
        EXPECT_THAT(of_one_mask, testing::HasSubstr(expected));
    const std::string of_two = text({novpn_class(), class_of("games", {0x00300000, 0x00f00000})});
    for (const char* expected : {"meta mark & 0x00f00000 == 0x00300000 goto guard_games comment",
                                 "meta mark & 0xff000000 == 0x4e000000 goto guard_novpn comment"})
        EXPECT_THAT(of_two, testing::HasSubstr(expected));
}

TEST(StructureOf, IsTheSameForTheSameTable) { EXPECT_EQ(structure_of(one_class()), structure_of(one_class())); }

TEST(StructureOf, DiffersForEachStructuralField) {
    const std::set<std::string> all{
        structure_of(one_class()),
        structure_of(NftTable{}),
        structure_with([](ClassMarking& c) { c.name = "games"; }),
        structure_with([](ClassMarking& c) { c.mark.value = 0x4d000000; }),
        structure_with([](ClassMarking& c) { c.mark.mask = 0x7f000000; }),
        structure_with([](ClassMarking& c) { c.dns_by_vpn = false; }),
        structure_with([](ClassMarking& c) { c.guarded = false; }),
        structure_with([](ClassMarking& c) { c.classid = 5; }),
        structure_with([](ClassMarking& c) { c.cgroups.insert("a/b/c"); }), // another level: another map
    };
    EXPECT_EQ(all.size(), 9U);
    NftTable idle = one_class();
    idle.idle = true;
    EXPECT_FALSE(all.contains(structure_of(idle)));
}

TEST(StructureOf, DiffersForTheOrderOfClasses) {
    ClassMarking games = novpn_class();
    games.name = "games";
    games.mark.value = 0x4d000000;
    EXPECT_NE(structure_of({.classes = {novpn_class(), games}}), structure_of({.classes = {games, novpn_class()}}));
}

TEST(StructureOf, DoesNotDifferForElements) {
    EXPECT_EQ(structure_of(one_class()), structure_with([](ClassMarking& c) {
                  c.cgroups.insert("novpn-1/other");
                  c.links.insert(IfIndex{7});
              }));
}

TEST(ToNft, SaysWhatTheTableDoes) {
    const std::vector<Link> links{{.index = IfIndex{3}, .name = "eth0", .kind = "", .master = std::nullopt}};
    NftTable table = one_class();
    table.classes.front().links = {IfIndex{3}};
    const std::string text = to_nft(table, LinkNames{&links});
    EXPECT_EQ(text, "table inet novpn\n"
                    "delete table inet novpn\n"
                    "table inet novpn {\n"
                    "\tcomment \"" +
                        structure_of(table) + R"("
	counter marked_novpn { }
	counter masqueraded_novpn { }
	counter sent_novpn { }
	counter arrived_novpn { }
	counter dropped_novpn { }
	chain restore_novpn { }
	chain born_novpn { }
	chain mark_novpn { }
	chain guard_novpn { }
	set links_novpn {
		type iface_index
		elements = { "eth0" }
	}
	map cgroup_level_2 {
		type cgroupsv2 : verdict
		elements = { "novpn-1/novpn" : goto mark_novpn }
	}
	chain restore_novpn {
		meta mark set meta mark & 0x00ffffff | 0x4e000000 accept comment "the mark of novpn"
	}
	chain born_novpn {
		udp dport 53 meta mark set meta mark & 0x00ffffff accept comment "DNS takes the ordinary path"
		tcp dport 53 meta mark set meta mark & 0x00ffffff accept comment "DNS takes the ordinary path"
		ct direction reply fib saddr . oif type != local meta mark set meta mark & 0x00ffffff accept comment "an answer goes where it was asked"
	}
	chain mark_novpn {
		udp dport 53 return comment "DNS takes the ordinary path"
		tcp dport 53 return comment "DNS takes the ordinary path"
		meta mark & 0xff000000 == 0x4e000000 fib saddr . oif type local ct mark set ct mark & 0x00ffffff | 0x4e000000 counter name "marked_novpn" accept comment "marked at birth"
		meta l4proto tcp tcp flags & (fin | syn | rst | ack) != syn counter name "dropped_novpn" drop comment "amid a forgotten flow of novpn"
		ct mark set ct mark & 0x00ffffff | 0x4e000000 meta mark set meta mark & 0x00ffffff | 0x4e000000 counter name "marked_novpn" comment "a new flow of novpn"
	}
	chain guard_novpn {
		oif != "lo" ct status & confirmed == 0 counter name "arrived_novpn" comment "no firewall of another program dropped it"
		oif "lo" accept comment "to this machine"
		oif @links_novpn accept comment "links of novpn"
		udp dport 53 accept comment "DNS takes the ordinary path"
		tcp dport 53 accept comment "DNS takes the ordinary path"
		counter name "dropped_novpn" drop comment "never by another link"
	}
	chain output {
		type route hook output priority -150; policy accept;
		ct mark & 0xff000000 == 0x4e000000 goto restore_novpn comment "a flow that began in novpn"
		meta mark & 0xff000000 == 0x4e000000 jump born_novpn comment "a socket of novpn"
		ct state established,related,untracked return comment "a flow keeps the path it began on"
		ct status confirmed return comment "a flow keeps the path it began on"
		fib daddr type local return comment "to this machine"
		socket cgroupv2 level 2 vmap @cgroup_level_2 comment "members at level 2"
	}
	chain sent {
		type nat hook output priority -100; policy accept;
		meta mark & 0xff000000 == 0x4e000000 oif != "lo" counter name "sent_novpn" comment "flows of novpn"
	}
	chain prerouting {
		type filter hook prerouting priority -149; policy accept;
		ct direction reply ct mark & 0xff000000 == 0x4e000000 goto restore_novpn comment "replies to novpn"
	}
	chain guard {
		type filter hook postrouting priority -150; policy accept;
		meta mark & 0xff000000 == 0x4e000000 goto guard_novpn comment "packets of novpn"
	}
	chain postrouting {
		type nat hook postrouting priority 100; policy accept;
		meta mark & 0xff000000 == 0x4e000000 oif != "lo" fib saddr . oif type != local counter name "masqueraded_novpn" masquerade comment "a source chosen for the tunnel"
	}
}
)");
}

TEST(ToNft, LooksUpTheDeepestCgroupFirst) {
    NftTable table = one_class();
    table.classes.front().cgroups = {"a", "a/b", "a/b/c"};
    const std::string text = to_nft(table, LinkNames{});
    const auto rule_at = [&](int level) { return text.find("socket cgroupv2 level " + std::to_string(level)); };
    EXPECT_LT(rule_at(3), rule_at(2));
    EXPECT_LT(rule_at(2), rule_at(1));
    EXPECT_NE(rule_at(1), std::string::npos);
}

} // namespace
} // namespace novpn
