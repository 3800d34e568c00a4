// libibverbs and librdmacm, looked up when the first verbs xport is opened: the program starts, and
// says "no device", on hosts that have neither. Private to the verbs body.
//
// What the headers inline (post_send, post_recv, poll_cq, req_notify_cq) goes through the device's
// own table and needs no symbol.
#pragma once

#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>

#include "base/status.h"

#define VERBS_SYMBOLS(X)                                                                           \
    X(int, query_device, (struct ibv_context *, struct ibv_device_attr *), ibv)                    \
    X(int, query_gid, (struct ibv_context *, uint8_t, int, union ibv_gid *), ibv)                  \
    X(struct ibv_pd *, alloc_pd, (struct ibv_context *), ibv)                                      \
    X(int, dealloc_pd, (struct ibv_pd *), ibv)                                                     \
    X(struct ibv_mr *, reg_mr, (struct ibv_pd *, void *, size_t, int), ibv)                        \
    X(int, dereg_mr, (struct ibv_mr *), ibv)                                                       \
    X(struct ibv_comp_channel *, create_comp_channel, (struct ibv_context *), ibv)                 \
    X(int, destroy_comp_channel, (struct ibv_comp_channel *), ibv)                                 \
    X(struct ibv_cq *, create_cq,                                                                  \
      (struct ibv_context *, int, void *, struct ibv_comp_channel *, int), ibv)                    \
    X(int, destroy_cq, (struct ibv_cq *), ibv)                                                     \
    X(int, get_cq_event, (struct ibv_comp_channel *, struct ibv_cq **, void **), ibv)              \
    X(void, ack_cq_events, (struct ibv_cq *, unsigned), ibv)                                       \
    X(int, modify_qp, (struct ibv_qp *, struct ibv_qp_attr *, int), ibv)                           \
    X(const char *, wc_status_str, (enum ibv_wc_status), ibv)                                      \
    X(struct ibv_context **, get_devices, (int *), rdma)                                           \
    X(void, free_devices, (struct ibv_context **), rdma)                                           \
    X(struct rdma_event_channel *, create_event_channel, (void), rdma)                             \
    X(void, destroy_event_channel, (struct rdma_event_channel *), rdma)                            \
    X(int, create_id,                                                                              \
      (struct rdma_event_channel *, struct rdma_cm_id **, void *, enum rdma_port_space), rdma)     \
    X(int, destroy_id, (struct rdma_cm_id *), rdma)                                                \
    X(int, bind_addr, (struct rdma_cm_id *, struct sockaddr *), rdma)                              \
    X(int, listen, (struct rdma_cm_id *, int), rdma)                                               \
    X(int, resolve_addr, (struct rdma_cm_id *, struct sockaddr *, struct sockaddr *, int), rdma)   \
    X(int, resolve_route, (struct rdma_cm_id *, int), rdma)                                        \
    X(int, create_qp, (struct rdma_cm_id *, struct ibv_pd *, struct ibv_qp_init_attr *), rdma)     \
    X(void, destroy_qp, (struct rdma_cm_id *), rdma)                                               \
    X(int, connect, (struct rdma_cm_id *, struct rdma_conn_param *), rdma)                         \
    X(int, accept, (struct rdma_cm_id *, struct rdma_conn_param *), rdma)                          \
    X(int, reject, (struct rdma_cm_id *, const void *, uint8_t), rdma)                             \
    X(int, set_option, (struct rdma_cm_id *, int, int, void *, size_t), rdma)                      \
    X(int, get_cm_event, (struct rdma_event_channel *, struct rdma_cm_event **), rdma)             \
    X(int, ack_cm_event, (struct rdma_cm_event *), rdma)                                           \
    X(__be16, get_src_port, (struct rdma_cm_id *), rdma)                                           \
    X(const char *, event_str, (enum rdma_cm_event_type), rdma)

// ibv_reg_mr is verbs_lib()->ibv.reg_mr, rdma_connect is verbs_lib()->rdma.connect.
struct verbs_lib {
    struct {
#define VERBS_MEMBER_ibv(type, name, args) type(*name) args;
#define VERBS_MEMBER_rdma(type, name, args)
#define VERBS_MEMBER(type, name, args, prefix) VERBS_MEMBER_##prefix(type, name, args)
        VERBS_SYMBOLS(VERBS_MEMBER)
#undef VERBS_MEMBER_ibv
#undef VERBS_MEMBER_rdma
    } ibv;
    struct {
#define VERBS_MEMBER_ibv(type, name, args)
#define VERBS_MEMBER_rdma(type, name, args) type(*name) args;
        VERBS_SYMBOLS(VERBS_MEMBER)
#undef VERBS_MEMBER_ibv
#undef VERBS_MEMBER_rdma
#undef VERBS_MEMBER
    } rdma;
};

// The table, loaded once per process (thread-safe), never unloaded. STATUS_NO_DEVICE: a library or
// a symbol is missing; *e names it.
enum status verbs_lib_load(struct errmsg *e);
// After a successful load only.
const struct verbs_lib *verbs_lib(void);
