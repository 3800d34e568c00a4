// One alarm clock on a thread of its own: calls back when its time has come.
#pragma once

#include <stdint.h>

struct mock_alarm;

struct mock_alarm *mock_alarm_create(void (*ring)(void *ctx), void *ctx);
void mock_alarm_destroy(struct mock_alarm *a); // joins; NULL is fine
// CLOCK_MONOTONIC in us; replaces the time set before; UINT64_MAX = never.
void mock_alarm_set(struct mock_alarm *a, uint64_t at_us);
uint64_t mock_alarm_now_us(void);
