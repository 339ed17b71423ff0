#include "agent/control/varlink.h"

#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>

namespace novpn::varlink {
namespace {

namespace json = boost::json;

tl::unexpected<Error> malformed(std::string detail) {
    return tl::make_unexpected(Error{.code = {}, .doing = "reading a Varlink message", .detail = std::move(detail)});
}

Expected<json::object> parse_object(std::string_view text) {
    json::parse_options options;
    options.max_depth = kMaxDepth;
    json::error_code error;
    json::value value = json::parse(text, error, {}, options);
    if (error) return malformed("not JSON: " + error.message());
    if (!value.is_object()) return malformed("not a JSON object");
    return std::move(value.get_object());
}

/// False when `name` is there and is no bool; `to` stays as it is when it is absent.
bool take_flag(const json::object& object, std::string_view name, bool& to) {
    const json::value* value = object.if_contains(name);
    if (value == nullptr || value->is_null()) return true;
    if (!value->is_bool()) return false;
    to = value->get_bool();
    return true;
}

bool take_string(const json::object& object, std::string_view name, std::string& to) {
    const json::value* value = object.if_contains(name);
    if (value == nullptr || value->is_null()) return true;
    if (!value->is_string()) return false;
    to = std::string(value->get_string());
    return true;
}

bool take_parameters(json::object& object, json::object& to) {
    json::value* value = object.if_contains("parameters");
    if (value == nullptr || value->is_null()) return true;
    if (!value->is_object()) return false;
    to = std::move(value->get_object());
    return true;
}

std::string finish(const json::object& object) {
    std::string text = json::serialize(object);
    text.push_back('\0');
    return text;
}

} // namespace

Expected<Call> parse_call(std::string_view text) {
    auto object = parse_object(text);
    if (!object) return tl::make_unexpected(object.error());
    Call call;
    if (!take_string(*object, "method", call.method) || interface_of(call.method).empty())
        return malformed("`method` is not INTERFACE.METHOD");
    if (!take_parameters(*object, call.parameters)) return malformed("`parameters` is not an object");
    if (!take_flag(*object, "oneway", call.oneway) || !take_flag(*object, "more", call.more) ||
        !take_flag(*object, "upgrade", call.upgrade))
        return malformed("`oneway`, `more` and `upgrade` are true or false");
    // Neither makes sense with another: a oneway call has no reply to continue, nor one to upgrade after.
    if (call.oneway + call.more + call.upgrade > 1)
        return malformed("`oneway`, `more` and `upgrade` exclude each other");
    return call;
}

Expected<Reply> parse_reply(std::string_view text) {
    auto object = parse_object(text);
    if (!object) return tl::make_unexpected(object.error());
    Reply reply;
    if (!take_string(*object, "error", reply.error)) return malformed("`error` is not a string");
    if (!take_parameters(*object, reply.parameters)) return malformed("`parameters` is not an object");
    if (!take_flag(*object, "continues", reply.continues)) return malformed("`continues` is not true or false");
    return reply;
}

std::string to_message(const Call& call) {
    json::object object;
    object["method"] = call.method;
    if (!call.parameters.empty()) object["parameters"] = call.parameters;
    if (call.oneway) object["oneway"] = true;
    if (call.more) object["more"] = true;
    if (call.upgrade) object["upgrade"] = true;
    return finish(object);
}

std::string to_message(const Reply& reply) {
    json::object object;
    if (!reply.error.empty()) object["error"] = reply.error;
    object["parameters"] = reply.parameters;
    if (reply.continues) object["continues"] = true;
    return finish(object);
}

std::string_view interface_of(std::string_view method) {
    const auto dot = method.rfind('.');
    if (dot == std::string_view::npos || dot + 1 == method.size()) return {};
    return method.substr(0, dot);
}

void Messages::append(std::string_view bytes) {
    if (!too_long_) bytes_.append(bytes);
}

std::optional<std::string> Messages::next() {
    if (too_long_) return std::nullopt;
    const auto end = bytes_.find('\0', searched_);
    const auto length = end == std::string::npos ? bytes_.size() : end;
    if (length > limit_) {
        too_long_ = true;
        bytes_ = {};
        return std::nullopt;
    }
    if (end == std::string::npos) {
        searched_ = bytes_.size();
        return std::nullopt;
    }
    std::string message = bytes_.substr(0, end);
    bytes_.erase(0, end + 1);
    searched_ = 0;
    return message;
}

} // namespace novpn::varlink
