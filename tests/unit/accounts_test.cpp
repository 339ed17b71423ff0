#include "agent/control/accounts.h"

#include "agent/spawn.h"

#include <future>
#include <gtest/gtest.h>

namespace novpn {
namespace {

namespace asio = boost::asio;

/// A name service that answers when it is told to, as a directory across the network does.
class AccountsTest : public testing::Test {
  protected:
    bool run(asio::awaitable<bool> (Accounts::*question)(Caller, Allow), const Allow& allow) {
        bool allowed = false;
        io.restart();
        spawn(io, [](Accounts& of, auto asked, Allow to, bool& answer) -> asio::awaitable<void> {
            answer = co_await (of.*asked)(user_alone(1000), to);
        }(accounts, question, allow, allowed));
        io.run();
        return allowed;
    }

    std::promise<void> service;
    std::shared_future<void> answers = service.get_future().share();
    asio::io_context io{1};
    Accounts accounts{io, [answers = answers](const Caller&, const Allow& allow) {
                          answers.wait();
                          return !allow.users.empty();
                      }};
};

TEST_F(AccountsTest, OnlyWhoCanWaitHearsOfALateAnswer) {
    EXPECT_FALSE(run(&Accounts::allowed, {.users = {"ada"}}));
    service.set_value();
    EXPECT_TRUE(run(&Accounts::allowed_at_last, {.users = {"ada"}}));
}

TEST_F(AccountsTest, WhoCanWaitIsNotToldWhatWasAskedForAnother) {
    EXPECT_FALSE(run(&Accounts::allowed, {}));
    service.set_value();
    EXPECT_TRUE(run(&Accounts::allowed_at_last, {.users = {"ada"}}));
}

} // namespace
} // namespace novpn
