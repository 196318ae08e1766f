// SPDX-License-Identifier: Apache-2.0
/* ring0_machine.c - the few devices of a PC that the ring-0 guest has: serial port, power management, interrupts. */
#include "guest.h"
#include "ring0.h"

/* ---- ports ---- */

static inline void out8(uint16_t port, uint8_t value)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline void out16(uint16_t port, uint16_t value)
{
	__asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port));
}

static inline void out32(uint16_t port, uint32_t value)
{
	__asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint8_t in8(uint16_t port)
{
	uint8_t value;

	__asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

static inline uint16_t in16(uint16_t port)
{
	uint16_t value;

	__asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

static inline uint32_t in32(uint16_t port)
{
	uint32_t value;

	__asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

/* ---- words on the console ---- */

#define COM1 0x3f8
#define LINE_STATUS (COM1 + 5)
#define CAN_SEND 0x20
#define MAX_COMPLAINTS 100

static atomic_flag console_lock = ATOMIC_FLAG_INIT;
static atomic_uint complaints;

static void put(char c)
{
	while (!(in8(LINE_STATUS) & CAN_SEND))
		;
	out8(COM1, (uint8_t)c);
}

static void put_number(unsigned long value)
{
	char digits[20];
	unsigned int n = 0;

	do
		digits[n++] = (char)('0' + value % 10);
	while (value /= 10);
	while (n)
		put(digits[--n]);
}

/* It knows %s and %lu. */
static void vsay(const char *format, va_list list)
{
	while (atomic_flag_test_and_set(&console_lock))
		__builtin_ia32_pause();
	for (; *format; format++) {
		if (*format != '%') {
			put(*format);
		} else if (*++format == 's') {
			for (const char *text = va_arg(list, const char *); *text; text++)
				put(*text);
		} else {
			format++;
			put_number(va_arg(list, unsigned long));
		}
	}
	put('\n');
	atomic_flag_clear(&console_lock);
}

void say(const char *format, ...)
{
	va_list list;

	va_start(list, format);
	vsay(format, list);
	va_end(list);
}

void complain(const char *format, ...)
{
	va_list list;

	if (complaints++ >= MAX_COMPLAINTS)
		return;
	va_start(list, format);
	vsay(format, list);
	va_end(list);
}

void die(const char *what)
{
	say("FAILED %s", what);
	machine_off();
}

/* ---- power management: a button, a timer, the end ---- */

#define PCI_ADDRESS 0xcf8
#define PCI_DATA 0xcfc
#define PCI_ENABLE 0x80000000u
#define PIIX4_PM (1u << 11 | 3u << 8) /* device 1, function 3 of "pc" */
#define ICH9_LPC (31u << 11) /* device 31 of "q35" */
#define PIIX4_PM_ID 0x71138086u
#define ICH9_LPC_ID 0x29188086u
#define PM_BASE 0x40 /* of both */

#define PM_STATUS 0
#define PM_ENABLE 2
#define PM_CONTROL 4
#define PM_TIMER 8
#define PM_BUTTON 0x100
#define PM_SOFT_OFF 0x2000
#define PM_TIMER_MASK 0xffffffu
#define PM_TIMER_A_MS 3580u /* 3579545 Hz */

static uint16_t pm_base;

static uint32_t pci_read(uint32_t device, uint32_t offset)
{
	out32(PCI_ADDRESS, PCI_ENABLE | device | offset);
	return in32(PCI_DATA);
}

static void find_power_management(void)
{
	uint32_t device;

	if (pci_read(PIIX4_PM, 0) == PIIX4_PM_ID)
		device = PIIX4_PM;
	else if (pci_read(ICH9_LPC, 0) == ICH9_LPC_ID)
		device = ICH9_LPC;
	else
		die("neither pc nor q35");
	pm_base = pci_read(device, PM_BASE) & 0xff80;
	/* QEMU keeps a press only for one who wants to know. */
	out16(pm_base + PM_ENABLE, PM_BUTTON);
}

bool machine_button(void)
{
	return in16(pm_base + PM_STATUS) & PM_BUTTON;
}

void machine_off(void)
{
	out16(pm_base + PM_CONTROL, PM_SOFT_OFF);
	for (;;)
		__asm__ volatile("cli; hlt");
}

void clock_read(struct clock *clock)
{
	uint32_t now = in32(pm_base + PM_TIMER);

	clock->rest += (now - clock->last) & PM_TIMER_MASK;
	clock->last = now;
	clock->ms += clock->rest / PM_TIMER_A_MS;
	clock->rest %= PM_TIMER_A_MS;
}

/* ---- interrupts ---- */

#define CODE 0x10 /* ring0_start.S */
#define GATE 0x8e00
#define TRAPS 32u
#define TICK_VECTOR 0x40u
#define SPURIOUS_VECTOR 0xffu

#define APIC 0xfee00000u
#define APIC_SPURIOUS 0xf0
#define APIC_ENABLE 0x100
#define APIC_COMMAND 0x300
#define APIC_COMMAND_HIGH 0x310
#define APIC_TIMER 0x320
#define APIC_PERIODIC 0x20000
#define APIC_COUNT 0x380
#define APIC_DIVIDE 0x3e0
#define APIC_DIVIDE_BY_1 0xb
#define APIC_A_MS 1000000u /* KVM's counts nanoseconds */
#define APIC_INIT 0x4500
#define APIC_START 0x4600

struct gate {
	uint16_t low;
	uint16_t code;
	uint16_t kind;
	uint16_t high;
	uint64_t highest; /* the program is below 4 GiB */
};

/* ring0_start.S */
extern const char other_start[], other_start_end[];
extern const char on_tick[], on_spurious[], on_trap[];

struct gate idt[256];
/* Where the other CPU starts, in real mode. */
static char *const low_page = (char *)0x8000;

static volatile uint32_t *apic(uint32_t reg)
{
	return (volatile uint32_t *)(uintptr_t)(APIC + reg);
}

static void set_gate(unsigned int vector, const char *handler)
{
	uintptr_t at = (uintptr_t)handler;

	idt[vector] = (struct gate){ at & 0xffff, CODE, GATE, at >> 16 & 0xffff, 0 };
}

void trap(void)
{
	die("an exception");
}

void machine_ticks(void)
{
	*apic(APIC_SPURIOUS) = APIC_ENABLE | SPURIOUS_VECTOR;
	*apic(APIC_DIVIDE) = APIC_DIVIDE_BY_1;
	*apic(APIC_TIMER) = APIC_PERIODIC | TICK_VECTOR;
	*apic(APIC_COUNT) = TICK_MS * APIC_A_MS;
}

void machine_start_other(void)
{
	struct clock clock = { 0 };
	uint32_t begun;

	for (const char *from = other_start; from < other_start_end; from++)
		*(volatile char *)&low_page[from - other_start] = *from;
	*apic(APIC_COMMAND_HIGH) = 1u << 24;
	*apic(APIC_COMMAND) = APIC_INIT;
	clock_read(&clock);
	for (begun = clock.ms; clock.ms - begun < 10;)
		clock_read(&clock);
	*apic(APIC_COMMAND_HIGH) = 1u << 24;
	*apic(APIC_COMMAND) = APIC_START | (uintptr_t)low_page >> 12;
}

void machine_start(void)
{
	out8(COM1 + 1, 0);
	out8(COM1 + 3, 3);
	find_power_management();
	/* The interrupts of old have vectors of their own, which are traps here. */
	out8(0x21, 0xff);
	out8(0xa1, 0xff);
	for (unsigned int vector = 0; vector < TRAPS; vector++)
		set_gate(vector, on_trap);
	set_gate(TICK_VECTOR, on_tick);
	set_gate(SPURIOUS_VECTOR, on_spurious);
}
