// hadal ctl doctor: whether RDMA can work on this host, and whether the cluster uses it.
#pragma once

#include <stdbool.h>

struct doctor_options {
    const char *url;   // coordinator asked about the cluster
    bool url_given;    // then it must answer
    const char *sysfs; // NULL: this host's /sys, and writes through each port
    bool json;
};

// Prints what was found. CMD_OK, or CMD_FAILED when something is broken.
int doctor_run(const struct doctor_options *o);
