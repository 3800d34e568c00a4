#include "node/xid.h"

#include <stddef.h>

// By rising number. PROGRAM: what a kernel of any process on the device can bring about by an
// address or an instruction of its own; the driver ends that process and nothing else.
static const struct xid_meaning meanings[] = {
    {8, XID_PROGRAM, "a kernel ran longer than allowed"},
    {13, XID_PROGRAM, "graphics engine exception: a program's illegal access or instruction"},
    {31, XID_PROGRAM, "memory page fault of a program"},
    {32, XID_DEVICE, "corrupted push buffer: driver, or the PCIe link"},
    {38, XID_DEVICE, "driver firmware error"},
    {43, XID_PROGRAM, "a program's channel was stopped after its own error"},
    {45, XID_PROGRAM, "a program's work was removed, after another error or at its end"},
    {46, XID_DEVICE, "the GPU stopped processing"},
    {48, XID_DEVICE, "double bit ECC error"},
    {54, XID_DEVICE, "auxiliary power is not connected"},
    {56, XID_DEVICE, "display engine error"},
    {57, XID_DEVICE, "error programming video memory"},
    {58, XID_DEVICE, "unstable video memory"},
    {61, XID_DEVICE, "internal micro-controller breakpoint"},
    {62, XID_DEVICE, "internal micro-controller halt"},
    {63, XID_NOTICE, "a memory row was remapped or a page retired; takes effect at the next reset"},
    {64, XID_DEVICE, "a bad memory row could not be remapped"},
    {65, XID_DEVICE, "video processor exception"},
    {68, XID_PROGRAM, "video decoder exception of a program"},
    {69, XID_PROGRAM, "graphics engine class error of a program"},
    {74, XID_DEVICE, "NVLink error"},
    {79, XID_DEVICE, "fell off the bus"},
    {81, XID_DEVICE, "VGA subsystem error"},
    {92, XID_DEVICE, "high rate of single bit ECC errors"},
    {93, XID_NOTICE, "the information ROM was changed outside the driver"},
    {94, XID_DEVICE, "uncorrectable ECC error, contained: the program that met it was ended"},
    {95, XID_DEVICE, "uncorrectable ECC error, not contained"},
    {109, XID_PROGRAM, "context switch of a program timed out"},
    {110, XID_DEVICE, "security fault"},
    {119, XID_DEVICE, "the system processor does not answer the driver"},
    {120, XID_DEVICE, "system processor error"},
    {121, XID_DEVICE, "chip-to-chip link error"},
    {122, XID_DEVICE, "SPI controller error"},
    {123, XID_DEVICE, "power management controller error"},
    {136, XID_DEVICE, "link training failed"},
    {137, XID_PROGRAM, "a program's NVLink access to a peer was denied"},
    {140, XID_DEVICE, "unrecovered ECC error"},
    {143, XID_DEVICE, "the GPU could not be initialised"},
    {144, XID_DEVICE, "NVLink error: SAW"},
    {145, XID_DEVICE, "NVLink error: RLW"},
    {146, XID_DEVICE, "NVLink error: TLW"},
    {147, XID_DEVICE, "NVLink error: TREX"},
    {148, XID_DEVICE, "NVLink error: NVLPW"},
    {149, XID_DEVICE, "NVLink error: NETIR"},
    {150, XID_DEVICE, "NVLink error: MSE"},
    {154, XID_NOTICE, "the recovery that the GPU needs has changed"},
    {156, XID_NOTICE, "resource retirement: event"},
    {157, XID_DEVICE, "resource retirement: failure"},
};

const struct xid_meaning *xid_meaning(uint32_t xid)
{
    static const struct xid_meaning unknown = {0, XID_DEVICE, "critical, of unknown meaning"};
    for (size_t i = 0; i < sizeof meanings / sizeof *meanings; i++)
        if (meanings[i].xid == xid)
            return &meanings[i];
    return &unknown;
}
