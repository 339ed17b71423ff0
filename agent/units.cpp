#include "agent/units.h"

#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cerrno>
#include <memory>
#ifdef NOVPN_HAVE_SYSTEMD
#include <systemd/sd-bus.h>
#endif

namespace novpn {

namespace {

constexpr auto kAtMost = std::chrono::milliseconds(200);
constexpr int kTries = 30;
constexpr auto kBetweenTries = std::chrono::seconds(1);

} // namespace

#ifdef NOVPN_HAVE_SYSTEMD

namespace {

struct Unref {
    void operator()(sd_bus* bus) const { sd_bus_close_unref(bus); }
    void operator()(sd_bus_message* message) const { sd_bus_message_unref(message); }
};

struct Answer {
    bool given = false;
    std::optional<std::string> refusal;
};

int take_answer(sd_bus_message* message, void* data, sd_bus_error*) {
    auto& answer = *static_cast<Answer*>(data);
    answer.given = true;
    if (!sd_bus_message_is_method_error(message, nullptr)) return 1;
    const char* why = sd_bus_message_get_error(message)->message;
    answer.refusal = why ? why : "systemd refuses";
    return 1;
}

} // namespace

Expected<void> start_unit(const std::string& unit, std::chrono::microseconds at_most) {
    const std::string doing = "starting " + unit;
    const auto end = std::chrono::steady_clock::now() + at_most;
    Answer answer; // outlives the bus
    sd_bus* opened = nullptr;
    if (const int done = sd_bus_open_system(&opened); done < 0) return system_error(-done, doing, "no bus answers");
    const std::unique_ptr<sd_bus, Unref> bus(opened);
    // Asynchronous: a synchronous call waits for the bus to let us in, however long that takes.
    const int sent = sd_bus_call_method_async(bus.get(), nullptr, "org.freedesktop.systemd1",
                                              "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager",
                                              "StartUnit", take_answer, &answer, "ss", unit.c_str(), "replace");
    if (sent < 0) return system_error(-sent, doing);
    while (!answer.given) {
        const int processed = sd_bus_process(bus.get(), nullptr);
        if (processed < 0) return system_error(-processed, doing, "the bus is gone");
        if (processed > 0) continue;
        const auto left = std::chrono::duration_cast<std::chrono::microseconds>(end - std::chrono::steady_clock::now());
        if (left.count() <= 0) return system_error(ETIMEDOUT, doing, "systemd does not answer");
        const int waited = sd_bus_wait(bus.get(), static_cast<std::uint64_t>(left.count()));
        if (waited < 0 && waited != -EINTR) return system_error(-waited, doing);
    }
    if (answer.refusal) return tl::make_unexpected(Error{.code = {}, .doing = doing, .detail = *answer.refusal});
    return {};
}

#else

Expected<void> start_unit(const std::string& unit, std::chrono::microseconds) {
    return tl::make_unexpected(Error{.code = {}, .doing = "starting " + unit, .detail = "built without libsystemd"});
}

#endif

UnitStarter::UnitStarter(boost::asio::io_context& io, Heard heard)
    : io_(io)
    , heard_(std::move(heard)) {}

UnitStarter::~UnitStarter() {
    if (thread_) thread_->join();
}

void UnitStarter::start(const std::string& unit) { ask(unit, kTries); }

void UnitStarter::ask(const std::string& unit, int tries_left) {
    if (!thread_) thread_.emplace(1u);
    boost::asio::post(*thread_, [this, unit, tries_left] {
        auto done = start_unit(unit, kAtMost);
        boost::asio::post(io_, [this, unit, tries_left, done = std::move(done)] {
            if (done) return heard_(unit, std::nullopt);
            const bool tries_again = done.error().code && tries_left > 1;
            if (!tries_again || tries_left == kTries) heard_(unit, done.error()); // said once, and once it is final
            if (!tries_again) return;
            auto later = std::make_shared<boost::asio::steady_timer>(io_, kBetweenTries);
            later->async_wait([this, unit, tries_left, later](const boost::system::error_code& error) {
                if (!error) ask(unit, tries_left - 1);
            });
        });
    });
}

} // namespace novpn
