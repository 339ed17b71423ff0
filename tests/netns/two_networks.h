// A laptop and the internet in network namespaces of their own: an uplink, a tunnel that has the default route, a route
// for marked packets, and a server that answers with the address it saw. The calling process becomes the laptop.
#pragma once

#include <atomic>
#include <cstdint>
#include <list>
#include <string>
#include <sys/socket.h>
#include <thread>

namespace novpn::test {

inline constexpr char kUplinkName[] = "up0";
inline constexpr char kServer4[] = "203.0.113.1";
inline constexpr char kServer6[] = "2001:db8:ff::1";
inline constexpr char kUplink4[] = "192.0.2.2";
inline constexpr char kUplink6[] = "2001:db8:1::2";
inline constexpr char kTunnel4[] = "10.8.0.2";
inline constexpr char kTunnel6[] = "2001:db8:8::2";
inline constexpr std::uint16_t kEchoPort = 7;
inline constexpr std::uint16_t kDnsPort = 53;
inline constexpr std::uint16_t kSilentPort = 9; ///< takes datagrams, never answers

/// Runs a shell command; throws with its output when it fails.
std::string run(const std::string& command);
bool succeeds(const std::string& command);

class Socket {
  public:
    /// Born now, in the cgroup that this process is in now.
    Socket(const std::string& family_of_address, int type);
    explicit Socket(int fd)
        : fd_(fd) {}
    Socket(Socket&& other) noexcept
        : fd_(other.fd_) {
        other.fd_ = -1;
    }
    Socket(const Socket&) = delete;
    Socket& operator=(const Socket&) = delete;
    ~Socket();
    int fd() const { return fd_; }
    void set_mark(std::uint32_t mark) const;
    /// 0 or errno.
    int connect(const std::string& address, std::uint16_t port) const;
    void bind(const std::string& address, std::uint16_t port) const;
    void listen() const;
    void send_to(const std::string& address, std::uint16_t port) const;
    /// Says something and returns the answer; "" when there is none in time.
    std::string ask() const;

  private:
    int fd_;
};

class TwoNetworks {
  public:
    TwoNetworks();
    ~TwoNetworks();
    TwoNetworks(const TwoNetworks&) = delete;
    /// In the internet's network namespace, as `nsenter` would.
    std::string run_in_internet(const std::string& command) const;
    /// A socket made in the internet's network namespace.
    Socket internet_socket(const std::string& family_of_address, int type) const;

  private:
    struct Served {
        Socket socket;
        enum { listener, connection, datagrams, silent } kind;
    };
    void listen_everywhere();
    void serve();
    /// False when the connection is over.
    bool answer(const Served& served);

    int internet_ = -1; ///< its network namespace
    std::list<Served> served_;
    std::atomic<bool> stop_ = false;
    std::thread server_;
};

} // namespace novpn::test
