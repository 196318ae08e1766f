/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ring0_start.S - how each CPU comes to C in long mode, the first from a multiboot loader, the other by a start-up
 * interrupt; how one goes on in ring 3; and what interrupts it.
 *
 * Some KVMs emulate ring 0, and not all that a CPU can: not iret, not a far return to another ring.
 */

#define MULTIBOOT_MAGIC 0x1badb002
#define MULTIBOOT_FLAGS 2 /* wants to know how much memory there is */

/* sysexit goes to what is 4 and 5 entries behind CODE. */
#define CODE_32 0x08
#define CODE 0x10
#define DATA 0x18

#define TABLE 4096
#define ENTRIES 512
#define GIBS 4
#define PRESENT_FOR_ALL 0x07
#define LARGE_FOR_ALL 0xe7
#define LARGE 0x200000

#define CR0_PROTECTED 0x01
#define CR0_PAGED 0x80000000
#define CR4_PAE 0x20
#define MSR_EFER 0xc0000080
#define EFER_LONG 0x100
#define MSR_SYSENTER_CODE 0x174
#define ALL_PORTS 0x3002 /* flags: ring 3 may use them */
#define APIC_EOI 0xfee000b0

	.section .multiboot, "a"
	.align 4
	.long MULTIBOOT_MAGIC, MULTIBOOT_FLAGS, -(MULTIBOOT_MAGIC + MULTIBOOT_FLAGS)

	.text
	.code32
	.globl start
start:
	lgdt gdt_pointer
	ljmp $CODE_32, $1f
1:	mov $first_stack, %esp
	mov $first_main, %esi
	mov %ebx, %edi /* what the loader has to say */
	/* All of 4 GiB is where it is. */
	movl $directories + PRESENT_FOR_ALL, top
	mov $directory + PRESENT_FOR_ALL, %eax
	xor %ecx, %ecx
2:	mov %eax, directories(, %ecx, 8)
	add $TABLE, %eax
	inc %ecx
	cmp $GIBS, %ecx
	jb 2b
	mov $LARGE_FOR_ALL, %eax
	xor %ecx, %ecx
3:	mov %eax, directory(, %ecx, 8)
	add $LARGE, %eax
	inc %ecx
	cmp $GIBS * ENTRIES, %ecx
	jb 3b
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
	or $CR0_PROTECTED, %al
	mov %eax, %cr0
	ljmpl $CODE_32, $other_protected
other_gdt_pointer:
	.word gdt_end - gdt - 1
	.long gdt
other_start_end:

	.code32
other_protected:
	mov $other_stack, %esp
	mov $other_main, %esi
enter:
	mov $DATA, %cx
	mov %cx, %ds
	mov %cx, %es
	mov %cx, %ss
	mov $MSR_EFER, %ecx
	rdmsr
	or $EFER_LONG, %eax
	wrmsr
	mov %cr4, %eax
	or $CR4_PAE, %eax
	mov %eax, %cr4
	mov $top, %eax
	mov %eax, %cr3
	mov %cr0, %eax
	or $CR0_PAGED, %eax
	mov %eax, %cr0
	ljmp $CODE, $4f
	.code64
4:	lidt idt_pointer
	cld
	call *%rsi /* for good */

/* Returns in ring 3. */
	.globl machine_to_ring3
machine_to_ring3:
	mov $MSR_SYSENTER_CODE, %ecx
	mov $CODE, %eax
	xor %edx, %edx
	wrmsr
	pushq $ALL_PORTS
	popfq
	pop %rdx
	mov %rsp, %rcx
	sysexitq

/* Sleeps until the next interrupt; none comes at another time, so that on_tick need not keep anything. */
	.globl machine_wait
machine_wait:
	sti
	hlt /* before it none comes */
1:	jmp 1b

	.globl on_tick, on_spurious, on_trap
on_tick:
	mov $APIC_EOI, %eax
	movl $0, (%rax)
on_spurious:
	/* Off they stay. To whom machine_wait was called by: */
	mov 3 * 8(%rsp), %rsp
	ret
on_trap:
	call trap

	.data
	.align 8
gdt:	.quad 0
	.quad 0x00cf9b000000ffff
	.quad 0x00af9b000000ffff
	.quad 0x00cf93000000ffff
	.quad 0, 0
	.quad 0x00affb000000ffff
	.quad 0x00cff3000000ffff
gdt_end:
gdt_pointer:
	.word gdt_end - gdt - 1
	.long gdt
idt_pointer:
	.word 256 * 16 - 1
	.quad idt

	.bss
	.align TABLE
top:
	.skip TABLE
directories:
	.skip TABLE
directory:
	.skip GIBS * TABLE
	.skip 8192
first_stack:
	.skip 8192
other_stack:

	.section .note.GNU-stack, "", @progbits
