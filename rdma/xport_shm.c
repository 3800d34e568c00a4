// Shared-memory body. Regions are sealed memfds that the peer maps; a write is one memcpy into the
// mapping and one 32-byte entry in a ring of its direction. A SOCK_SEQPACKET socket with an
// abstract name carries the greeting, file descriptors and doorbells, and its hang-up tells at once
// that the peer died. Nothing has a name in a file system, so nothing is left behind by kill -9.
//
//   memfd of a link, made by the connector:  [ring to the acceptor][ring to the connector]
//   ring:  sleeping | head | blocked | entries[depth]      (each on cache lines of its own)
//
// An entry is there when its `seq` is its number: the receiver reads one cache line, and garbage in
// a ring can at worst look like a frame, which is checked. A doorbell is one byte in the socket,
// rung only when the receiver said that it sleeps (or the sender that it is blocked by a full
// ring), so at most one is under way. A socket and not an eventfd, because a peer that holds an
// eventfd could swallow what others ring.
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "rdma/xport_body.h"

enum {
    SEALS = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL,
    FDS_MAX = XPORT_REGIONS_MAX + 1, // of the greeting: the link's memfd and all regions
    MESSAGES_PER_TURN = 16,
};
_Static_assert(FDS_MAX <= 253, "SCM_MAX_FD of the kernel");

struct shm_entry {
    _Atomic uint64_t seq; // number of the entry, counted from 1
    uint32_t region, notice;
    uint64_t offset, bytes;
};

struct shm_ring {
    _Alignas(64) _Atomic uint32_t sleeping; // receiver: ring me
    _Alignas(64) _Atomic uint64_t head;     // entries the receiver is done with
    _Alignas(64) _Atomic uint32_t blocked;  // sender: ring me when head moves
    _Alignas(64) struct shm_entry entries[];
};

// On the socket. BELL has only the type.
enum shm_type { SHM_BELL = 1, SHM_REGION };

struct shm_named {
    uint32_t type, id;
    uint64_t bytes;
};

struct shm_greeting {
    struct xgreeting g;
    struct shm_named regions[XPORT_REGIONS_MAX];
};

struct shm_link {
    struct xlink base;
    void *map; // both rings
    size_t map_bytes;
    int map_fd; // connector: to be sent with the greeting
    bool map_fd_open;
    uint32_t depth;
    struct shm_ring *tx, *rx;
    uint64_t tx_tail; // entries written
    uint64_t tx_head; // of them, known to be consumed
    uint64_t rx_head;
    uint64_t drained; // entries received after the peer was found dead: at most a ring full
    struct xregion peers[XPORT_REGIONS_MAX]; // the peer's regions, mapped
    uint32_t peers_n;
    int fds[FDS_MAX]; // received with the greeting
    uint32_t fds_n;
    struct shm_named names[XPORT_REGIONS_MAX];
};

static struct shm_link *shm_of(struct xlink *l)
{
    return (struct shm_link *)l;
}

// --- memory ---

static int memfd_sealed(const char *name, size_t bytes)
{
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return -1;
    if (ftruncate(fd, (off_t)bytes) < 0 || fcntl(fd, F_ADD_SEALS, SEALS) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

// Memory of a peer: it must not be able to shrink it under us (SIGBUS).
static void *map_foreign(int fd, size_t bytes)
{
    struct stat st;
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & SEALS) != SEALS || fstat(fd, &st) < 0 ||
        (uint64_t)st.st_size != bytes)
        return NULL;
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return p == MAP_FAILED ? NULL : p;
}

static enum status shm_region_announce(struct xport *x, const struct xregion *r);

static enum status shm_region_create(struct xport *x, struct xregion *r, struct errmsg *e)
{
    r->fd = memfd_sealed("hadal-region", r->bytes);
    if (r->fd >= 0)
        r->base = mmap(NULL, r->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r->fd, 0);
    if (r->fd < 0 || r->base == MAP_FAILED) {
        int err = errno;
        if (r->fd >= 0)
            close(r->fd);
        return errmsg_set(e, STATUS_NO_MEMORY, "xport region %u: cannot share %zu bytes: %s", r->id,
                          r->bytes, strerror(err));
    }
    return shm_region_announce(x, r);
}

static void shm_region_free(struct xregion *r)
{
    munmap(r->base, r->bytes);
    close(r->fd);
}

static size_t ring_bytes(uint32_t depth)
{
    return (sizeof(struct shm_ring) + depth * sizeof(struct shm_entry) + 63) & ~(size_t)63;
}

static size_t rings_bytes(uint32_t depth)
{
    return (2 * ring_bytes(depth) + 4095) & ~(size_t)4095;
}

static void rings_place(struct shm_link *s, void *map, uint32_t depth)
{
    struct shm_ring *to_acceptor = map;
    struct shm_ring *to_connector = (struct shm_ring *)((uint8_t *)map + ring_bytes(depth));
    s->map = map;
    s->map_bytes = rings_bytes(depth);
    s->depth = depth;
    s->tx = s->base.incoming ? to_connector : to_acceptor;
    s->rx = s->base.incoming ? to_acceptor : to_connector;
}

// --- socket messages ---

union fd_control {
    char buf[CMSG_SPACE(FDS_MAX * sizeof(int))];
    struct cmsghdr align;
};

static ssize_t send_fds(int sock, const void *bytes, size_t n, const int *fds, size_t fds_n)
{
    union fd_control c = {0};
    struct iovec iov = {(void *)(uintptr_t)bytes, n};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    if (fds_n > 0) {
        msg.msg_control = c.buf;
        msg.msg_controllen = CMSG_SPACE(fds_n * sizeof(int));
        struct cmsghdr *h = CMSG_FIRSTHDR(&msg);
        h->cmsg_level = SOL_SOCKET;
        h->cmsg_type = SCM_RIGHTS;
        h->cmsg_len = CMSG_LEN(fds_n * sizeof(int));
        memcpy(CMSG_DATA(h), fds, fds_n * sizeof(int));
    }
    return sendmsg(sock, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
}

// All descriptors that came are taken over, so that a peer cannot fill our table.
static ssize_t recv_fds(int sock, void *bytes, size_t n, int fds[FDS_MAX], uint32_t *fds_n)
{
    union fd_control c;
    struct iovec iov = {bytes, n};
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = c.buf, .msg_controllen = sizeof c.buf};
    *fds_n = 0;
    ssize_t got = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (got < 0)
        return got;
    for (struct cmsghdr *h = CMSG_FIRSTHDR(&msg); h; h = CMSG_NXTHDR(&msg, h)) {
        if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS)
            continue;
        size_t count = (h->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        assert(*fds_n + count <= FDS_MAX);
        memcpy(fds + *fds_n, CMSG_DATA(h), count * sizeof(int));
        *fds_n += (uint32_t)count;
    }
    return got;
}

static void fds_close(const int *fds, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        close(fds[i]);
}

static void ring_bell(struct xlink *l)
{
    // A full socket holds a bell already; a dead one is noticed by its hang-up.
    const char bell = SHM_BELL;
    ssize_t n = l->fd >= 0 ? send(l->fd, &bell, 1, MSG_NOSIGNAL | MSG_DONTWAIT) : 0;
    (void)n;
}

// --- opening, connecting, greeting ---

static socklen_t abstract_name(struct sockaddr_un *sa, const char *name)
{
    *sa = (struct sockaddr_un){.sun_family = AF_UNIX};
    size_t n = strlen(name);
    assert(n < sizeof sa->sun_path - 1);
    memcpy(sa->sun_path + 1, name, n);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + n);
}

static enum status shm_open_body(struct xport *x, const struct xport_config *config,
                                 struct errmsg *e)
{
    char name[64];
    uint64_t unique;
    if (getrandom(&unique, sizeof unique, 0) != sizeof unique)
        return errmsg_set(e, STATUS_IO, "xport shm: getrandom: %s", strerror(errno));
    snprintf(name, sizeof name, "hadal-%d-%016llx", (int)getpid(), (unsigned long long)unique);
    struct sockaddr_un sa;
    socklen_t n = abstract_name(&sa, name);
    x->listen_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (x->listen_fd < 0 || bind(x->listen_fd, (struct sockaddr *)&sa, n) < 0 ||
        listen(x->listen_fd, SOMAXCONN) < 0)
        return errmsg_set(e, status_from_errno(errno), "xport shm: cannot listen: %s",
                          strerror(errno));
    while (x->depth & (x->depth - 1)) // rings want a power of two
        x->depth += x->depth & -x->depth;
    snprintf(x->address, sizeof x->address, "shm:%s#%016llx", name, (unsigned long long)x->token);
    return STATUS_OK;
}

static enum status shm_dial(struct xlink *l, const char *where, struct errmsg *e)
{
    struct sockaddr_un sa;
    if (!*where || strlen(where) >= sizeof sa.sun_path - 1)
        return errmsg_set(e, STATUS_BAD_CONFIG, "xport shm: '%.100s' is no socket name", where);
    socklen_t n = abstract_name(&sa, where);
    l->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (l->fd < 0)
        return errmsg_set(e, status_from_errno(errno), "xport shm: socket: %s", strerror(errno));
    if (connect(l->fd, (struct sockaddr *)&sa, n) < 0)
        return errno == EAGAIN
                   ? errmsg_set(e, STATUS_AGAIN, "xport shm: %s has too many callers", where)
                   : errmsg_set(e, STATUS_LINK_DOWN, "xport shm: %s: %s", where, strerror(errno));

    uint32_t depth = l->x->depth;
    struct shm_link *s = shm_of(l);
    s->map_fd = memfd_sealed("hadal-link", rings_bytes(depth));
    void *map = s->map_fd < 0 ? NULL : map_foreign(s->map_fd, rings_bytes(depth));
    if (s->map_fd >= 0 && !map)
        close(s->map_fd);
    if (!map)
        return errmsg_set(e, STATUS_NO_MEMORY, "xport shm: cannot share the rings of a link: %s",
                          strerror(errno));
    s->map_fd_open = true;
    rings_place(s, map, depth);
    xsock_watch(l, EPOLLOUT);
    return STATUS_OK;
}

static void map_fd_close(struct shm_link *s)
{
    if (s->map_fd_open)
        close(s->map_fd);
    s->map_fd_open = false;
}

static enum status shm_greet(struct xlink *l, struct xgreeting *g)
{
    struct xport *x = l->x;
    struct shm_link *s = shm_of(l);
    struct shm_greeting m = {.g = *g};
    int fds[FDS_MAX];
    size_t fds_n = 0;
    if (!l->incoming)
        fds[fds_n++] = s->map_fd;
    m.g.regions_n = g->code == XGREET_OK ? x->regions_n : 0;
    for (uint32_t i = 0; i < m.g.regions_n; i++) {
        m.regions[i] = (struct shm_named){
            .type = SHM_REGION, .id = x->regions[i].id, .bytes = x->regions[i].bytes};
        fds[fds_n++] = x->regions[i].fd;
    }
    size_t n = offsetof(struct shm_greeting, regions) + m.g.regions_n * sizeof m.regions[0];
    ssize_t sent = send_fds(l->fd, &m, n, fds, fds_n);
    map_fd_close(s);
    return sent == (ssize_t)n ? STATUS_OK : STATUS_LINK_DOWN;
}

// Only processes of the same user (or root) have business here.
static bool peer_is_ours(int fd)
{
    struct ucred cred;
    socklen_t n = sizeof cred;
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &n) == 0 &&
           (cred.uid == geteuid() || cred.uid == 0);
}

static enum status shm_greeted(struct xlink *l)
{
    struct shm_link *s = shm_of(l);
    struct shm_greeting m;
    assert(s->fds_n == 0);
    ssize_t n = recv_fds(l->fd, &m, sizeof m, s->fds, &s->fds_n);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return STATUS_PENDING;
    if (n <= 0)
        return STATUS_LINK_DOWN;
    size_t head = offsetof(struct shm_greeting, regions);
    if ((size_t)n < head || !peer_is_ours(l->fd))
        return STATUS_LINK_PROTOCOL;
    l->greeting = m.g;
    if (m.g.magic != XPORT_MAGIC || m.g.version != XPORT_VERSION)
        return STATUS_OK; // to be refused by name; the rest is not ours to read
    if (m.g.regions_n > XPORT_REGIONS_MAX ||
        (size_t)n != head + m.g.regions_n * sizeof m.regions[0])
        return STATUS_LINK_PROTOCOL;
    memcpy(s->names, m.regions, m.g.regions_n * sizeof m.regions[0]);
    return STATUS_OK;
}

static struct xregion *peer_region(struct shm_link *s, uint32_t id)
{
    for (uint32_t i = 0; i < s->peers_n; i++)
        if (s->peers[i].id == id)
            return &s->peers[i];
    return NULL;
}

static enum status peer_region_add(struct shm_link *s, const struct shm_named *named, int fd)
{
    if (named->type != SHM_REGION || s->peers_n == XPORT_REGIONS_MAX || named->bytes == 0 ||
        named->bytes > (uint64_t)1 << 44 || peer_region(s, named->id))
        return STATUS_LINK_PROTOCOL;
    void *base = map_foreign(fd, named->bytes);
    if (!base)
        return STATUS_LINK_PROTOCOL;
    s->peers[s->peers_n++] =
        (struct xregion){.id = named->id, .fd = -1, .base = base, .bytes = named->bytes};
    return STATUS_OK;
}

static enum status shm_start(struct xlink *l)
{
    struct shm_link *s = shm_of(l);
    const struct xgreeting *g = &l->greeting;
    uint32_t own = l->incoming ? 1 : 0; // descriptors before those of the regions
    if (s->fds_n != g->regions_n + own)
        return STATUS_LINK_PROTOCOL;
    if (l->incoming) {
        bool power = g->depth && !(g->depth & (g->depth - 1)) && g->depth <= XPORT_DEPTH_MAX;
        void *map = power ? map_foreign(s->fds[0], rings_bytes(g->depth)) : NULL;
        if (!map)
            return STATUS_LINK_PROTOCOL;
        rings_place(s, map, g->depth);
    }
    enum status st = STATUS_OK;
    for (uint32_t i = 0; i < g->regions_n && st == STATUS_OK; i++)
        st = peer_region_add(s, &s->names[i], s->fds[own + i]);
    fds_close(s->fds, s->fds_n);
    s->fds_n = 0;
    return st;
}

static void shm_stop(struct xlink *l)
{
    struct shm_link *s = shm_of(l);
    if (s->map)
        munmap(s->map, s->map_bytes);
    for (uint32_t i = 0; i < s->peers_n; i++)
        munmap(s->peers[i].base, s->peers[i].bytes);
    fds_close(s->fds, s->fds_n);
    map_fd_close(s);
}

// A region made while links are up.
static enum status shm_region_announce(struct xport *x, const struct xregion *r)
{
    for (size_t i = 0; i < x->links_n; i++) {
        struct xlink *l = x->links[i];
        bool greeted = l->state == XLINK_UP || (l->state == XLINK_GREETING && !l->incoming);
        struct shm_named m = {.type = SHM_REGION, .id = r->id, .bytes = r->bytes};
        if (greeted && send_fds(l->fd, &m, sizeof m, &r->fd, 1) != sizeof m)
            xlink_fail(l, STATUS_LINK_DOWN, true); // it reads nothing: as good as dead
    }
    return STATUS_OK;
}

// One message of an UP link; false when there is none.
static bool take_message(struct xlink *l)
{
    struct shm_named m;
    int fds[FDS_MAX];
    uint32_t fds_n;
    ssize_t n = recv_fds(l->fd, &m, sizeof m, fds, &fds_n);
    if (n < 0)
        return errno == EINTR;
    enum status s = STATUS_OK;
    if (n == 0)
        s = STATUS_LINK_DOWN;
    else if (n == sizeof m && fds_n == 1)
        s = peer_region_add(shm_of(l), &m, fds[0]);
    else if (n != 1 || fds_n != 0 || *(const char *)&m != SHM_BELL)
        s = STATUS_LINK_PROTOCOL;
    fds_close(fds, fds_n);
    if (s != STATUS_OK)
        xlink_fail(l, s, s == STATUS_LINK_DOWN);
    return s == STATUS_OK;
}

static void shm_service(struct xlink *l, uint32_t events)
{
    int turns = MESSAGES_PER_TURN;
    while (turns > 0 && take_message(l))
        turns--;
    if (turns > 0 && (events & (EPOLLHUP | EPOLLERR)))
        xlink_fail(l, STATUS_LINK_DOWN, true);
}

// --- the rings ---

// True when there is room. A sender that finds none says so and looks again, as the receiver moves
// the head and then looks whether somebody is blocked.
static bool ring_has_room(struct shm_link *s)
{
    for (int look = 0; look < 3; look++) {
        if (s->tx_tail - s->tx_head < s->depth)
            return true;
        if (look == 1) {
            atomic_store_explicit(&s->tx->blocked, 1, memory_order_relaxed);
            atomic_thread_fence(memory_order_seq_cst);
        }
        uint64_t head = atomic_load_explicit(&s->tx->head, memory_order_acquire);
        if (head - s->tx_head > s->tx_tail - s->tx_head) { // never true of an honest peer
            xlink_fail(&s->base, STATUS_LINK_PROTOCOL, false);
            return false;
        }
        s->tx_head = head;
    }
    return s->tx_tail - s->tx_head < s->depth;
}

static uint8_t *peer_target(struct shm_link *s, const struct xwrite *w)
{
    struct xregion *r = peer_region(s, w->region);
    if (!r) { // perhaps announced, not read yet
        shm_service(&s->base, 0);
        r = peer_region(s, w->region);
    }
    if (!r || w->bytes > r->bytes || w->offset > r->bytes - w->bytes)
        return NULL;
    return r->base + w->offset;
}

static enum status shm_write(struct xlink *l, const struct xwrite *w)
{
    struct shm_link *s = shm_of(l);
    if (!ring_has_room(s))
        return l->state == XLINK_UP ? STATUS_FULL : STATUS_LINK_DOWN;
    uint8_t *dst = peer_target(s, w);
    if (l->state != XLINK_UP)
        return STATUS_LINK_DOWN;
    if (dst && w->bytes)
        memcpy(dst, w->src, w->bytes);
    // Without a target nothing is copied, and the receiver closes the link over this entry.
    struct shm_entry *e = &s->tx->entries[s->tx_tail & (s->depth - 1)];
    e->region = w->region;
    e->notice = w->notice;
    e->offset = w->offset;
    e->bytes = w->bytes;
    atomic_store_explicit(&e->seq, ++s->tx_tail, memory_order_release);
    xlink_work_add(l, w->user);
    l->wq_over++;

    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(&s->tx->sleeping, memory_order_relaxed) &&
        atomic_exchange(&s->tx->sleeping, 0))
        ring_bell(l);
    return STATUS_OK;
}

static const struct shm_entry *next_entry(const struct shm_link *s)
{
    const struct shm_entry *e = &s->rx->entries[s->rx_head & (s->depth - 1)];
    uint64_t seq = atomic_load_explicit(&e->seq, memory_order_acquire);
    return seq == s->rx_head + 1 ? e : NULL;
}

static void publish_head(struct shm_link *s)
{
    atomic_store_explicit(&s->rx->head, s->rx_head, memory_order_release);
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(&s->rx->blocked, memory_order_relaxed) &&
        atomic_exchange(&s->rx->blocked, 0))
        ring_bell(&s->base);
}

static int shm_receive(struct xlink *l, struct xport_event *events, int max)
{
    struct shm_link *s = shm_of(l);
    const struct shm_entry *e = NULL;
    int n = 0;
    while (n < max && (e = next_entry(s))) {
        // Copied before it is checked: the peer can still write there.
        struct xframe f = {.region = e->region, .notice = e->notice};
        f.offset = *(const volatile uint64_t *)&e->offset;
        f.bytes = *(const volatile uint64_t *)&e->bytes;
        s->rx_head++;
        if (!xport_target(l->x, &f)) {
            xlink_fail(l, STATUS_LINK_PROTOCOL, false);
            l->rx_over = true;
            break;
        }
        xlink_notice(l, &f, &events[n++]);
    }
    if (n > 0)
        publish_head(s);
    if (l->state == XLINK_FAILED && (!e || (s->drained += (uint64_t)n) >= s->depth))
        l->rx_over = true;
    return n;
}

static bool shm_ready(struct xlink *l)
{
    return next_entry(shm_of(l)) != NULL;
}

static void shm_sleeping(struct xlink *l, bool sleep)
{
    atomic_store_explicit(&shm_of(l)->rx->sleeping, sleep, memory_order_relaxed);
}

const struct xport_body xport_shm_body = {
    .name = "shm",
    .link_bytes = sizeof(struct shm_link),
    .memory_polled = true,
    .open = shm_open_body,
    .arrive = xsock_accept,
    .region_create = shm_region_create,
    .region_free = shm_region_free,
    .dial = shm_dial,
    .greet = shm_greet,
    .greeted = shm_greeted,
    .start = shm_start,
    .write = shm_write,
    .service = shm_service,
    .receive = shm_receive,
    .ready = shm_ready,
    .sleeping = shm_sleeping,
    .stop = shm_stop,
};
