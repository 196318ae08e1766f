/* SPDX-License-Identifier: Apache-2.0 */
/* ring0_start.S - how each CPU comes to C: the first from a multiboot loader, others by a start-up interrupt; and ticks. */

#define MULTIBOOT_MAGIC 0x1badb002
#define MULTIBOOT_FLAGS 2 /* wants to know how much memory there is */
#define CODE 0x08
#define DATA 0x10
#define APIC_EOI 0xfee000b0

	.section .multiboot, "a"
	.align 4
	.long MULTIBOOT_MAGIC, MULTIBOOT_FLAGS, -(MULTIBOOT_MAGIC + MULTIBOOT_FLAGS)

	.text
	.globl start
start:
	lgdt gdt_pointer
	ljmp $CODE, $1f
1:	mov $first_stack, %esp
	mov $first_main, %eax
	jmp enter

/* Copied to a page below 1 MiB, where a CPU begins in real mode, with that page as its code segment. */
	.code16
	.globl other_start, other_start_end
other_start:
	cli
	mov %cs, %ax
	mov %ax, %ds
	lgdtl other_gdt_pointer - other_start
	mov %cr0, %eax
	or $1, %al
	mov %eax, %cr0
	ljmpl $CODE, $other_protected
other_gdt_pointer:
	.word gdt_end - gdt - 1
	.long gdt
other_start_end:

	.code32
other_protected:
	mov $other_stack, %esp
	mov $other_main, %eax
enter:
	mov $DATA, %cx
	mov %cx, %ds
	mov %cx, %es
	mov %cx, %fs
	mov %cx, %gs
	mov %cx, %ss
	lidt idt_pointer
	push %ebx /* what the loader has to say, if it was one */
	call *%eax
1:	cli
	hlt
	jmp 1b

/*
 * Some KVMs that emulate ring 0 do not know iret in protected mode. Interrupts come in machine_wait() alone, which wants
 * them off after that and does without the flags.
 */
	.globl on_tick, on_spurious, on_trap
on_tick:
	movl $0, APIC_EOI
on_spurious:
	lret $4
on_trap:
	call trap

	.data
	.align 8
gdt:	.quad 0
	.quad 0x00cf9b000000ffff
	.quad 0x00cf93000000ffff
gdt_end:
gdt_pointer:
	.word gdt_end - gdt - 1
	.long gdt
idt_pointer:
	.word 256 * 8 - 1
	.long idt

	.bss
	.align 16
	.skip 8192
first_stack:
	.skip 8192
other_stack:

	.section .note.GNU-stack, "", @progbits
