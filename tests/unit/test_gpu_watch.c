// The GPU watch over a fake NVML: figures, what makes a device suspect and what does not, and that
// nothing waits for a driver that hangs.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <cmocka.h>
#include <dlfcn.h>

#include "base/log.h"
#include "node/gpu_watch.h"
#include "node/xid.h"
#include "tests/unit/fake_nvml.h"

static __typeof__(fake_nvml_set) *set;
static const char *_Atomic device_name;

static bool fake_device(struct engine *e, char uuid[ENGINE_UUID_BYTES])
{
    const char *name = device_name;
    if (name)
        strcpy(uuid, name);
    return name;
}

static const struct engine_ops ops = {.name = "fake", .device = fake_device};
static struct engine engine = {.ops = &ops};

static const char *library(void)
{
    return getenv("FAKE_NVML");
}

static struct gpu_watch *start(void)
{
    for (int i = 0; i < FAKE_NVML_VALUES; i++)
        set((enum fake_nvml_value)i, 0);
    device_name = "GPU-fake";
    struct gpu_watch *w = gpu_watch_start(
        &(struct gpu_watch_args){.engine = &engine, .library = library(), .period_ms = 5});
    assert_non_null(w);
    return w;
}

static void rest(int ms)
{
    struct timespec t = {.tv_nsec = ms * 1000000L};
    nanosleep(&t, NULL);
}

// Waits until `field` of the figures is `v`.
#define AWAIT(w, f, field, v)                                                                      \
    do {                                                                                           \
        for (int i_ = 0; i_ < 2000; i_++) {                                                        \
            gpu_watch_read(w, &(f));                                                               \
            if ((f).field == (v))                                                                  \
                break;                                                                             \
            rest(1);                                                                               \
        }                                                                                          \
        assert_int_equal((f).field, v);                                                            \
    } while (0)

static void test_figures(void **state)
{
    struct gpu_watch *w = start();
    struct gpu_figures f;
    set(FAKE_NVML_UTILIZATION, 87);
    set(FAKE_NVML_CORRECTED, 3);
    AWAIT(w, f, utilization_percent, 87);
    AWAIT(w, f, ecc_corrected, 3);
    assert_true(f.present && !f.suspect);
    assert_string_equal(f.name, "Fake 100");
    assert_string_equal(f.reason, "");
    assert_true(f.memory_total_bytes == 80ull << 30 && f.memory_used_bytes == 20ull << 30);
    assert_int_equal(f.temperature_c, 55);
    assert_int_equal(f.power_mw, 312345);
    assert_int_equal(f.sm_mhz, 1755);
    gpu_watch_stop(w);
}

static void test_errors_before_the_start_are_history(void **state)
{
    device_name = NULL;
    struct gpu_watch *w = gpu_watch_start(
        &(struct gpu_watch_args){.engine = &engine, .library = library(), .period_ms = 5});
    struct gpu_figures f;
    set(FAKE_NVML_UNCORRECTED, 4);
    gpu_watch_read(w, &f);
    assert_false(f.present); // no device yet
    device_name = "GPU-fake";
    AWAIT(w, f, ecc_uncorrected, 4);
    rest(20);
    gpu_watch_read(w, &f);
    assert_false(f.suspect);
    set(FAKE_NVML_UNCORRECTED, 6);
    AWAIT(w, f, suspect, true);
    assert_string_equal(f.reason, "2 new uncorrected ECC errors");
    gpu_watch_stop(w);
}

static void test_xids(void **state)
{
    struct gpu_watch *w = start();
    struct gpu_figures f;
    set(FAKE_NVML_XID, 31); // a page fault of some program
    AWAIT(w, f, xids, 1);
    assert_int_equal(f.xid, 31);
    assert_false(f.suspect);
    set(FAKE_NVML_XID, 63);
    AWAIT(w, f, xids, 2);
    assert_false(f.suspect);
    set(FAKE_NVML_XID, 79);
    AWAIT(w, f, suspect, true);
    assert_string_equal(f.reason, "XID 79, fell off the bus");
    set(FAKE_NVML_XID, 48); // the first reason stays
    AWAIT(w, f, xids, 4);
    assert_string_equal(f.reason, "XID 79, fell off the bus");
    gpu_watch_stop(w);
}

static void test_lost(void **state)
{
    struct gpu_watch *w = start();
    struct gpu_figures f;
    AWAIT(w, f, present, true);
    set(FAKE_NVML_RESULT, 2); // a figure that is not supported is none
    AWAIT(w, f, present, true);
    assert_false(f.suspect);
    set(FAKE_NVML_RESULT, 15);
    AWAIT(w, f, suspect, true);
    assert_string_equal(f.reason, "the driver has lost it");
    gpu_watch_stop(w);
}

static void test_no_events(void **state)
{
    for (int i = 0; i < FAKE_NVML_VALUES; i++)
        set((enum fake_nvml_value)i, 0);
    set(FAKE_NVML_NO_EVENTS, 3);
    device_name = "GPU-fake";
    struct gpu_watch *w = gpu_watch_start(
        &(struct gpu_watch_args){.engine = &engine, .library = library(), .period_ms = 5});
    struct gpu_figures f;
    AWAIT(w, f, temperature_c, 55);
    set(FAKE_NVML_UNCORRECTED, 1);
    AWAIT(w, f, suspect, true);
    gpu_watch_stop(w);
}

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

// A driver that hangs: reading goes on, and so does the end of the process.
static void test_hang(void **state)
{
    struct gpu_watch *w = start();
    struct gpu_figures f;
    AWAIT(w, f, present, true);
    set(FAKE_NVML_HANG, 1);
    rest(20);
    uint64_t since = now_ms();
    gpu_watch_read(w, &f);
    assert_true(f.present && now_ms() - since < 500);
    gpu_watch_stop(w);
    assert_true(now_ms() - since < 2500);
    set(FAKE_NVML_HANG, 0); // the thread that was left behind ends
    rest(50);
}

static void test_absent(void **state)
{
    struct gpu_figures f;
    device_name = "GPU-fake";
    struct gpu_watch *w = gpu_watch_start(
        &(struct gpu_watch_args){.engine = &engine, .library = "libno-such-nvml.so.1"});
    rest(20);
    gpu_watch_read(w, &f);
    assert_false(f.present);
    gpu_watch_stop(w);
    device_name = "GPU-of-another-host";
    w = gpu_watch_start(&(struct gpu_watch_args){.engine = &engine, .library = library()});
    rest(20);
    gpu_watch_read(w, &f);
    assert_false(f.present);
    gpu_watch_stop(w);
    device_name = NULL; // never opened
    w = gpu_watch_start(&(struct gpu_watch_args){.engine = &engine, .library = library()});
    gpu_watch_stop(w);
    static const struct engine_ops none = {.name = "none"};
    struct engine cpu = {.ops = &none};
    assert_null(gpu_watch_start(&(struct gpu_watch_args){.engine = &cpu}));
    gpu_watch_read(NULL, &f);
    assert_false(f.present);
}

static void test_meanings(void **state)
{
    assert_int_equal(xid_meaning(13)->class, XID_PROGRAM);
    assert_int_equal(xid_meaning(63)->class, XID_NOTICE);
    assert_int_equal(xid_meaning(95)->class, XID_DEVICE);
    assert_int_equal(xid_meaning(99999)->class, XID_DEVICE);
    for (uint32_t i = 0; i < 400; i++)
        assert_true(xid_meaning(i)->text[0] && strlen(xid_meaning(i)->text) < GPU_REASON - 20);
}

int main(void)
{
    log_set_level(LOG_OFF);
    void *h = library() ? dlopen(library(), RTLD_NOW) : NULL;
    if (!h) {
        fputs("FAKE_NVML must name tests/unit/libfake_nvml.so\n", stderr);
        return 1;
    }
    memcpy(&set, &(void *){dlsym(h, "fake_nvml_set")}, sizeof set);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_figures),
        cmocka_unit_test(test_errors_before_the_start_are_history),
        cmocka_unit_test(test_xids),
        cmocka_unit_test(test_lost),
        cmocka_unit_test(test_no_events),
        cmocka_unit_test(test_hang),
        cmocka_unit_test(test_absent),
        cmocka_unit_test(test_meanings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
