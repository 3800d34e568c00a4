#include "kernels/cuda/share.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/log.h"

// Smaller allocations share 2 MiB with others, and a handle opens all of it.
enum { GRANULE = 2 << 20 };

static uint64_t process_mark(void)
{
    static _Atomic uint64_t mark;
    uint64_t m = atomic_load(&mark), fresh = 0;
    if (m)
        return m;
    if (getrandom(&fresh, sizeof fresh, 0) != (ssize_t)sizeof fresh)
        fresh = (uint64_t)getpid() << 32;
    fresh |= 1;
    return atomic_compare_exchange_strong(&mark, &m, fresh) ? fresh : m;
}

static void read_boot_id(char out[SHARE_BOOT_ID_BYTES])
{
    memset(out, 0, SHARE_BOOT_ID_BYTES);
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, out, SHARE_BOOT_ID_BYTES - 1);
    if (n <= 0)
        log_warn("this host's boot id cannot be read: no peer memory between processes");
    if (fd >= 0)
        close(fd);
}

cudaError_t share_alloc(size_t bytes, void **out)
{
    bytes = (bytes + GRANULE - 1) / GRANULE * GRANULE;
    cudaError_t e = cudaMalloc(out, bytes);
    if (e == cudaSuccess)
        e = cudaMemset(*out, 0, bytes);
    // A memset of the default stream; the kern's own does not wait for it.
    return e == cudaSuccess ? cudaStreamSynchronize(0) : e;
}

enum status share_export(void *p, size_t bytes, int device, struct share_note *out,
                         struct errmsg *err)
{
    struct cudaDeviceProp prop;
    cudaError_t e = cudaGetDeviceProperties(&prop, device);
    if (e != cudaSuccess)
        return errmsg_set(err, STATUS_INTERNAL, "device %d: %s", device, cudaGetErrorString(e));
    *out = (struct share_note){
        .bytes = bytes, .process = process_mark(), .address = (uintptr_t)p, .device = prop.uuid};
    read_boot_id(out->boot_id);
    e = cudaIpcGetMemHandle(&out->handle, p);
    if (e != cudaSuccess) {
        cudaGetLastError();
        log_warn("cuda device %d: no memory for other processes: %s", device,
                 cudaGetErrorString(e));
        out->boot_id[0] = 0;
    }
    return STATUS_OK;
}

static int device_of(const cudaUUID_t *uuid)
{
    int n = 0;
    struct cudaDeviceProp p;
    if (cudaGetDeviceCount(&n) != cudaSuccess)
        n = 0;
    for (int i = 0; i < n; i++)
        if (cudaGetDeviceProperties(&p, i) == cudaSuccess && !memcmp(&p.uuid, uuid, sizeof *uuid))
            return i;
    return -1;
}

bool share_same_device(const struct share_note *note, int device)
{
    return device_of(&note->device) == device;
}

static cudaError_t enable_peer(int device, int peer)
{
    if (device == peer)
        return cudaSuccess;
    cudaError_t e = cudaDeviceEnablePeerAccess(peer, 0);
    return e == cudaErrorPeerAccessAlreadyEnabled ? cudaSuccess : e;
}

static cudaError_t map(const struct share_note *n, int device, struct share_mapping *out)
{
    char boot_id[SHARE_BOOT_ID_BYTES];
    bool here = n->process == process_mark();
    int peer = device_of(&n->device), can = 1;
    read_boot_id(boot_id);
    if (!here && (!boot_id[0] || memcmp(boot_id, n->boot_id, sizeof boot_id) != 0))
        return cudaErrorPeerAccessUnsupported;
    if (peer < 0)
        return cudaErrorInvalidDevice;
    if (peer != device && (cudaDeviceCanAccessPeer(&can, device, peer) != cudaSuccess || !can))
        return cudaErrorPeerAccessUnsupported;
    if (here) {
        out->p = (void *)(uintptr_t)n->address;
        return enable_peer(device, peer);
    }
    cudaError_t e = cudaIpcOpenMemHandle(&out->p, n->handle, cudaIpcMemLazyEnablePeerAccess);
    out->opened = e == cudaSuccess;
    return e;
}

cudaError_t share_map(const struct share_note *note, int device, struct share_mapping *out)
{
    *out = (struct share_mapping){0};
    cudaError_t e = map(note, device, out);
    cudaGetLastError(); // none of these is sticky
    if (e != cudaSuccess)
        *out = (struct share_mapping){0};
    return e;
}

cudaError_t share_unmap(struct share_mapping *m)
{
    cudaError_t e = m->opened ? cudaIpcCloseMemHandle(m->p) : cudaSuccess;
    *m = (struct share_mapping){0};
    return e;
}
