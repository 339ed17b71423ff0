// Owning pointers for libnftnl's objects, and the userdata that the nft tool shows as a comment. Internal to rules/.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <libnftnl/chain.h>
#include <libnftnl/expr.h>
#include <libnftnl/gen.h>
#include <libnftnl/object.h>
#include <libnftnl/rule.h>
#include <libnftnl/set.h>
#include <libnftnl/table.h>
#include <libnftnl/udata.h>
#include <memory>
#include <new>
#include <string>

namespace novpn::nft {

struct Free {
    void operator()(nftnl_table* p) const { nftnl_table_free(p); }
    void operator()(nftnl_obj* p) const { nftnl_obj_free(p); }
    void operator()(nftnl_set* p) const { nftnl_set_free(p); }
    void operator()(nftnl_set_elem* p) const { nftnl_set_elem_free(p); }
    void operator()(nftnl_chain* p) const { nftnl_chain_free(p); }
    void operator()(nftnl_rule* p) const { nftnl_rule_free(p); }
    void operator()(nftnl_expr* p) const { nftnl_expr_free(p); }
    void operator()(nftnl_gen* p) const { nftnl_gen_free(p); }
    void operator()(nftnl_udata_buf* p) const { nftnl_udata_buf_free(p); }
};

template<typename T>
using Ptr = std::unique_ptr<T, Free>;

template<typename T>
Ptr<T> made(T* raw) {
    if (raw == nullptr) throw std::bad_alloc();
    return Ptr<T>(raw);
}

constexpr std::size_t kUserdata = 256; // NFT_USERDATA_MAXLEN

static_assert(int{NFTNL_UDATA_TABLE_COMMENT} == int{NFTNL_UDATA_RULE_COMMENT});
/// Userdata that the nft tool shows as a comment.
inline Ptr<nftnl_udata_buf> comment_of(const std::string& text) {
    auto userdata = made(nftnl_udata_buf_alloc(kUserdata));
    nftnl_udata_put_strz(userdata.get(), NFTNL_UDATA_RULE_COMMENT, text.c_str());
    return userdata;
}

inline std::string comment_in(const void* data, std::uint32_t size) {
    std::string comment;
    const auto take = [](const nftnl_udata* part, void* into) {
        if (nftnl_udata_type(part) != NFTNL_UDATA_RULE_COMMENT) return 0;
        const auto* text = static_cast<const char*>(nftnl_udata_get(part));
        static_cast<std::string*>(into)->assign(text, strnlen(text, nftnl_udata_len(part)));
        return 0;
    };
    if (data != nullptr) nftnl_udata_parse(data, size, take, &comment);
    return comment;
}

inline Ptr<nftnl_set> set_named(const std::string& table, const std::string& name) {
    auto set = made(nftnl_set_alloc());
    nftnl_set_set_str(set.get(), NFTNL_SET_TABLE, table.c_str());
    nftnl_set_set_str(set.get(), NFTNL_SET_NAME, name.c_str());
    return set;
}

} // namespace novpn::nft
