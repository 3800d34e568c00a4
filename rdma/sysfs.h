// What the kernel tells of the RDMA devices of a host, read from sysfs: needs neither libibverbs
// nor rights. For `hadal ctl doctor`, and for whoever chooses among devices by distance.
//
// Paths: Documentation/ABI/stable/sysfs-class-infiniband of Linux. Files that are absent or odd
// give 0, "" or -1, never an error: drivers differ in what they offer.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { RDMA_PORTS_MAX = 64, RDMA_SYSFS_NAME = 64 };

struct rdma_port {
    char device[RDMA_SYSFS_NAME]; // "mlx5_0"
    uint32_t port;                // 1 ..
    char state[32];               // "ACTIVE", "DOWN", ...
    char physical[32];            // "LinkUp", "Disabled", "Polling", ...
    char rate[RDMA_SYSFS_NAME];   // "400 Gb/sec (4X NDR)"
    bool roce;                    // link layer Ethernet; else InfiniBand
    char netdev[RDMA_SYSFS_NAME]; // its network interface; "" = not known
    uint32_t netdev_mtu;          // bytes; 0 = not known
    int gid_v2;                   // first RoCE v2 GID made of a routable address; -1 = none
    char gid_address[48];         // that address, as text
    int numa_node;                // -1 = not known, or the host has one only
    char pci_speed[32], pci_speed_max[32]; // "32.0 GT/s PCIe"; "" = no PCI device
    uint32_t pci_width, pci_width_max;     // lanes; 0 = not known
    int ecn; // RoCE congestion control on every priority: 1 = on, 0 = off on some, -1 = not told
    // Since the driver was loaded; 0 also where the device does not count.
    uint64_t out_of_sequence, ack_timeouts, rnr_retries, ecn_marked, symbol_errors;
};

// Largest payload of a packet that an MTU of the network interface leaves room for: 256 .. 4096 in
// powers of two (the kernel's iboe_get_mtu); 0 = too small for any.
uint32_t rdma_roce_mtu(uint32_t netdev_mtu);

// All ports below `root` ("/sys"), by name; returns how many (`max` at most). *absent: the kernel
// has no RDMA devices at all.
size_t rdma_sysfs_read(const char *root, struct rdma_port *ports, size_t max, bool *absent);
