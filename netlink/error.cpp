#include "netlink/error.h"

namespace novpn {

std::string to_string(const Error& error) {
    std::string text = error.doing;
    if (error.code) text += (text.empty() ? "" : ": ") + error.code.message();
    if (!error.detail.empty()) text += error.code ? " (" + error.detail + ")" : ": " + error.detail;
    return text;
}

tl::unexpected<Error> system_error(int number, std::string doing, std::string detail) {
    return tl::make_unexpected(Error{.code = std::error_code(number, std::system_category()),
                                     .doing = std::move(doing),
                                     .detail = std::move(detail)});
}

} // namespace novpn
