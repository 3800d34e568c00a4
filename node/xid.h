// What an XID means for a device: the driver's number for an error ("XID Errors" in NVIDIA's GPU
// deployment documentation).
#pragma once

#include <stdint.h>

enum xid_class {
    XID_PROGRAM, // a program's mistake, or the end of one that was hit: others are not affected
    XID_NOTICE,  // worth telling; the device goes on computing right
    XID_DEVICE,  // results or the next step cannot be relied on: the device is suspect
};

struct xid_meaning {
    uint32_t xid;
    enum xid_class class;
    const char *text; // "fell off the bus"
};

// Never NULL: a number that is not known counts as the device's (the driver only sends critical
// ones to who listens), with a text that says so.
const struct xid_meaning *xid_meaning(uint32_t xid);
