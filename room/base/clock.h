/* The three clocks. Thread: any. Pure modules get times as arguments and never include this. */
#ifndef ROOMD_BASE_CLOCK_H
#define ROOMD_BASE_CLOCK_H

#include <stdint.h>

uint64_t clock_unix_ms(void); /* wall clock: jumps when somebody sets it; for people and tickets only */
uint64_t clock_mono_ms(void); /* CLOCK_MONOTONIC: deadlines */
uint64_t clock_mono_us(void);
uint64_t clock_boot_ms(void); /* CLOCK_BOOTTIME: also counts while the machine slept */

#endif
