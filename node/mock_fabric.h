// Who formed which epoch together, among the mock engines of one fabric: the world of links that
// real ranks would have between them.
#pragma once

#include "node/engine_mock.h"

struct mock_rank_place {
    int32_t stage, tensor;
};

// One epoch of one replica, while any rank is in it.
struct mock_group {
    struct mock_group *prev, *next; // in the fabric
    uint64_t replica, epoch;
    uint32_t stages, tensor;
    bool alone;               // a process of its own: the other ranks are not seen
    struct mock_rank **ranks; // [stages * tensor], NULL = not (or no more) there
    uint32_t present, linked;
    bool broken; // a rank left or a link was cut
    uint64_t broken_us;
    struct mock_rank_place bad, bad_too; // who; a rank suspects another than itself
};

// A rank as the fabric sees it, embedded in the engine.
struct mock_rank {
    struct mock_fabric *fabric;
    struct mock_group *group; // NULL = in none
    struct mock_rank_place place;
    bool linked, hung, lies;
    double slow;
    void (*changed)(struct mock_rank *r); // another rank's doing may have changed what is due
};

struct mock_kv;
struct mock_kv **mock_fabric_kvs(struct mock_fabric *f); // list of the leads that move KV
// Any rank of one's group is cut off from any of the other's.
bool mock_fabric_groups_cut(const struct mock_rank *a, const struct mock_rank *b);

uint64_t mock_fabric_now(const struct mock_fabric *f);
// Enters the group of this epoch, made if need be. EXISTS: the place is taken; INTERNAL: the other
// ranks were told another shape.
enum status mock_fabric_join(struct mock_rank *r, const struct msg_form *form, bool alone);
void mock_fabric_link(struct mock_rank *r);
void mock_fabric_leave(struct mock_rank *r); // breaks the group for the others
void mock_fabric_hang(struct mock_rank *r, bool hung);
void mock_fabric_cut(struct mock_rank *a, struct mock_rank *b, bool cut);
void mock_fabric_forget(struct mock_rank *r); // destroyed: mends its cut links

// All ranks are there, linked, and none hangs.
bool mock_group_complete(const struct mock_group *g);
bool mock_group_hangs(const struct mock_group *g);
bool mock_group_lies(const struct mock_group *g);
struct mock_rank_place mock_group_suspect(const struct mock_rank *r);
// How many times slower than usual this stage is.
double mock_group_slow(const struct mock_group *g, uint32_t stage);
