// What leaves traces of the compiler's protections in a program: an array on the stack, filled by the C library with as
// much as the caller says.
#include <cstdio>
#include <cstdlib>
#include <unistd.h>

int main(int argc, char** argv) {
    char line[64];
    const auto size = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : sizeof line;
    const ssize_t got = read(STDIN_FILENO, line, size);
    return got < 0 || std::fwrite(line, 1, static_cast<std::size_t>(got), stdout) != static_cast<std::size_t>(got);
}
