// Tells when programs of the system write down other name servers: inotify(7) on their files. On the loop's thread.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <functional>
#include <string>

namespace novpn {

class FileWatch {
  public:
    /// `root`: "" but in tests. `changed` is called on the loop, once for a burst.
    FileWatch(boost::asio::io_context& io, std::string root, std::function<void()> changed);

    /// Watches, or does not any more. Where the kernel has no more watches to give, a change is found at the next pass
    /// that asks for other reasons.
    void watch(bool wanted);

  private:
    void add_watches();
    void wait();
    bool drain();

    int etc_ = -1; ///< the watch of a directory with other files too

    boost::asio::posix::stream_descriptor fd_;
    std::string root_;
    std::function<void()> changed_;
};

} // namespace novpn
