# A boot sector that writes down what a PC's firmware left in memory, on the disk that it is on, and then resets the PC.
# From sector 64 on, pieces of 32 KiB: the processor (CPUID 1, EDX), the identity of PCI function 1.3 and a signature;
# 0x90000 to 0x9ffff; 0xe0000 to 0xfffff; the last 256 KiB of 64 MiB of RAM.
.code16
.globl _start
_start:
	cli
	xorw %ax, %ax
	movw %ax, %ds
	movw %ax, %ss
	movw $0x7c00, %sp
	ljmp $0, $1f
1:	sti
	cld
	movw $0x1000, %ax
	movw %ax, %es
	movl $1, %eax
	cpuid
	movl %edx, %es:0
	movw $0xcf8, %dx
	movl $0x80000b00, %eax
	outl %eax, %dx
	movw $0xcfc, %dx
	inl %dx, %eax
	movl %eax, %es:4
	movl $0x656e6f64, %es:8
	call write
	movw $segments, %si
2:	lodsw
	testw %ax, %ax
	jz 3f
	pushw %si
	pushw %ds
	movw %ax, %ds
	xorw %si, %si
	xorw %di, %di
	movw $0x4000, %cx
	rep movsw
	popw %ds
	call write
	popw %si
	jmp 2b
3:	movw $8, %bp
4:	movw $descriptors, %si
	xorw %ax, %ax
	movw %ax, %es
	movw $0x4000, %cx
	movb $0x87, %ah
	int $0x15
	jc reset
	call write
	addw $0x8000, descriptors + 0x12
	adcb $0, descriptors + 0x14
	decw %bp
	jnz 4b
reset:
	movb $6, %al
	movw $0xcf9, %dx
	outb %al, %dx
5:	hlt
	jmp 5b

# Writes the 32 KiB at 0x10000 as the next piece.
write:
	movw $packet, %si
	movb $0x80, %dl
	movw $0x4300, %ax
	int $0x13
	jc reset
	addw $64, packet + 8
	movw $0x1000, %ax
	movw %ax, %es
	ret

segments:
	.word 0x9000, 0x9800, 0xe000, 0xe800, 0xf000, 0xf800, 0
packet:
	.byte 16, 0
	.word 64, 0, 0x1000
	.quad 64
.balign 8
# For INT 15h, AH 87h: from 0x3fc0000 to 0x10000.
descriptors:
	.skip 16
	.word 0xffff
	.byte 0, 0, 0xfc, 0x93, 0, 3
	.word 0xffff
	.byte 0, 0, 1, 0x93, 0, 0
	.skip 16
.org 510
	.byte 0x55, 0xaa
