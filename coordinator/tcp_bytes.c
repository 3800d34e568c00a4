// Alone in a file because the C library's tcp_info lacks the count, and its header, which libuv's
// and libh2o's include, cannot meet the kernel's.
#include "coordinator/tcp_bytes.h"

#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/socket.h>

uint64_t tcp_bytes_received(int fd)
{
    struct tcp_info info = {0};
    socklen_t n = sizeof info;
    return getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &n) ? 0 : info.tcpi_bytes_received;
}
