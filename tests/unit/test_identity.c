// Whose request it is: keys, headers, users, and what hostile ones become.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "coordinator/coord.h"
#include "coordinator/identity.h"

static struct rpc_text text(const char *s)
{
    return (struct rpc_text){s, strlen(s)};
}

static void expect(const struct identity *id, const char *key, const char *header, const char *user,
                   const char *tenant)
{
    char out[LIMIT_NAME];
    struct openai_error e = {0};
    const struct identity_claim c = {text(key), text(header), text(user)};
    bool ok = identity_tenant(id, &c, out, &e);
    assert_int_equal(ok, tenant != NULL);
    if (ok)
        assert_string_equal(out, tenant);
    else
        assert_int_equal(e.http, 401);
}

static void test_claims(void **state)
{
    struct identity id = {0};
    assert_true(identity_add(&id, "sk-1", "gold"));
    assert_true(identity_add(&id, "sk-12", "tin"));
    assert_false(identity_add(&id, "sk-1", "tin")); // taken
    assert_false(identity_add(&id, "", "tin"));
    expect(&id, "sk-1", "x", "y", "gold");
    expect(&id, "sk-12", "", "", "tin");
    expect(&id, "sk-123", "x", "y", ""); // not known, not required
    expect(&id, "sk-", "x", "y", "");
    id.from = IDENTITY_HEADER;
    expect(&id, "sk-1", "x", "", "gold"); // a key goes before
    expect(&id, "", "x", "y", "x");
    id.from = IDENTITY_USER;
    expect(&id, "", "x", "y", "y");
    id.require_key = true;
    expect(&id, "", "", "y", NULL);
    expect(&id, "sk-2", "", "y", NULL);
    expect(&id, "sk-12", "", "y", "tin");
    identity_finish(&id);
}

static void test_hostile_names(void **state)
{
    struct identity id = {.from = IDENTITY_USER};
    char out[LIMIT_NAME], long_one[1000];
    struct openai_error e = {0};
    memset(long_one, 'a', sizeof long_one);
    const struct rpc_text users[] = {
        {"a b", 3}, {"a\0b", 3}, {"\"", 1}, {"\xc3\xa4", 2}, {long_one, sizeof long_one}};
    for (size_t i = 0; i < sizeof users / sizeof *users; i++) {
        assert_true(identity_tenant(&id, &(struct identity_claim){.user = users[i]}, out, &e));
        assert_memory_equal(out, "user-", 5);
        assert_true(coord_tenant_name_ok(out));
    }
}

static void test_bearer(void **state)
{
    struct rpc_text t = identity_bearer("bearer  k", 9);
    assert_int_equal(t.n, 1);
    assert_int_equal(*t.v, 'k');
    assert_int_equal(identity_bearer("Bearer ", 7).n, 0);
    assert_int_equal(identity_bearer("Basic abcdefgh", 14).n, 0);
    assert_int_equal(identity_bearer("", 0).n, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_claims),
        cmocka_unit_test(test_hostile_names),
        cmocka_unit_test(test_bearer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
