// What a TCP connection has received, as the kernel counts it.
#pragma once

#include <stdint.h>

// 0 when the kernel does not tell.
uint64_t tcp_bytes_received(int fd);
