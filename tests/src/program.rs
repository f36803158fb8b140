//! Small programs for a PC without an operating system: a boot sector that goes through a list of steps, and tells what each
//! gives on the debug port 0xe9.
//!
//! The code is the assembler's, at the end of this file; the steps are data in the sectors behind it. A line of output begins with the
//! step's letter; then come its operands and results, in hexadecimal.

use std::arch::global_asm;

use crate::{Result, check};

/// Bytes of a sector.
const SECTOR: usize = 512;
/// Sectors of code; the first one ends in the mark of a boot sector.
const CODE: usize = 2;
/// Sectors of steps.
const STEPS: usize = 4;

/// A program in the making. The program ends with a reset of the machine.
#[derive(Clone, Debug, Default)]
pub struct Program {
    steps: Vec<u8>,
}

impl Program {
    fn step(mut self, letter: u8, operands: &[u32]) -> Program {
        self.steps.push(letter);
        operands.iter().for_each(|operand| self.steps.extend(operand.to_le_bytes()));
        self
    }

    /// `c LEAF INDEX EAX EBX ECX EDX`: what CPUID tells.
    pub fn cpuid(self, leaf: u32, index: u32) -> Program {
        self.step(b'c', &[leaf, index])
    }

    /// `r MSR HIGH LOW`: reads an MSR.
    pub fn read_msr(self, msr: u32) -> Program {
        self.step(b'r', &[msr])
    }

    /// `w MSR`: writes an MSR.
    pub fn write_msr(self, msr: u32, value: u64) -> Program {
        let mut program = self.step(b'w', &[msr]);
        program.steps.extend(value.to_le_bytes());
        program
    }

    /// `p`: writes 32 bits at a physical address, so many times, at least once.
    pub fn poke(self, address: u32, value: u32, times: u32) -> Program {
        self.step(b'p', &[address, value, 0, times])
    }

    /// `p`: writes the same 32 bits from a physical address on, so many times, at least once.
    pub fn fill(self, address: u32, value: u32, count: u32) -> Program {
        self.step(b'p', &[address, value, 4, count])
    }

    /// `o`: writes 16 bits to a port: what a VGA takes as index and value.
    pub fn out16(self, port: u16, value: u16) -> Program {
        self.step(b'o', &[port.into(), value.into()])
    }

    /// `l`: writes 32 bits to a port.
    pub fn out32(self, port: u16, value: u32) -> Program {
        self.step(b'l', &[port.into(), value])
    }

    /// `v`: interrupt 0x10, the screen's firmware, with AX, BX, CX and DX.
    pub fn video(self, registers: [u16; 4]) -> Program {
        self.step(b'v', &registers.map(u32::from))
    }

    /// `k ADDRESS VALUE`: reads 32 bits at a physical address.
    pub fn peek(self, address: u32) -> Program {
        self.step(b'k', &[address])
    }

    /// `y`: waits until the clock has shown so many new seconds.
    pub fn wait(self, seconds: u32) -> Program {
        self.step(b'y', &[seconds])
    }

    /// `t TICKS`: takes no interrupts for `deaf` seconds and all for `listening` ones; the firmware's count of the interval
    /// timer's ticks in both times together, 18.2 a second.
    pub fn timer_ticks(self, deaf: u32, listening: u32) -> Program {
        self.step(b't', &[deaf, listening])
    }

    /// `i TICKS`: the same with periodic interrupts of the clock, 32 a second.
    pub fn clock_ticks(self, deaf: u32, listening: u32) -> Program {
        self.step(b'i', &[deaf, listening])
    }

    /// `s`: the program stops here; the machine goes on, and takes interrupts.
    pub fn stop(self) -> Program {
        self.step(b's', &[])
    }

    /// The first sectors of a disk that starts it.
    pub fn sectors(&self) -> Result<Vec<u8>> {
        // SAFETY: both are labels of the code below, the second behind the first in one section.
        let code = unsafe {
            let (start, end) = (&raw const xvmm_program_start, &raw const xvmm_program_end);
            std::slice::from_raw_parts(start, end.offset_from_unsigned(start))
        };
        let mut disk = code.to_vec();
        check!(disk.len() <= CODE * SECTOR, "the code has {} bytes, too many for its sectors", disk.len());
        disk.resize(CODE * SECTOR, 0);
        disk.extend(&self.steps);
        disk.push(b'e');
        let room = (CODE + STEPS) * SECTOR;
        check!(disk.len() <= room, "a program of {} bytes does not fit into its sectors", disk.len());
        disk.resize(room, 0);
        Ok(disk)
    }
}

/// Lines of a program's output: the letter, and the numbers behind it.
pub fn lines(log: &str) -> Vec<(char, Vec<u32>)> {
    let line = |line: &str| {
        let mut words = line.split_once(" guest: ")?.1.split_whitespace();
        let letter = words.next()?.chars().next()?;
        Some((letter, words.filter_map(|word| u32::from_str_radix(word, 16).ok()).collect()))
    };
    log.lines().filter_map(line).collect()
}

unsafe extern "C" {
    static xvmm_program_start: u8;
    static xvmm_program_end: u8;
}

// Real mode, at 0x7c00; fs reaches all 4 GiB. The firmware reads the second sector and the steps behind the first one.
global_asm!(
    r#"
    .pushsection .rodata.xvmm_program, "a", @progbits
    .code16
    .globl xvmm_program_start
xvmm_program_start:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw $0x7c00, %sp
    cld
    movw $0x0205, %ax       # reads five sectors
    movw $0x7e00, %bx
    movw $2, %cx            # from the second one on
    movb $0, %dh
    int $0x13
    cli
    lgdtw (.Lgdt_pointer - xvmm_program_start + 0x7c00)
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    movw $8, %bx
    movw %bx, %fs
    andb $0xfe, %al
    movl %eax, %cr0
    movw $0x8000, %si

.Lnext:
    lodsb
    movb %al, %bl
    outb %al, $0xe9
    movb $0x20, %al
    outb %al, $0xe9
    cmpb $0x63, %bl         # c
    je .Lcpuid
    cmpb $0x72, %bl         # r
    je .Lrdmsr
    cmpb $0x77, %bl         # w
    je .Lwrmsr
    cmpb $0x70, %bl         # p
    je .Lpoke
    cmpb $0x6b, %bl         # k
    je .Lpeek
    cmpb $0x6f, %bl         # o
    je .Lout
    cmpb $0x6c, %bl         # l
    je .Lout32
    cmpb $0x76, %bl         # v
    je .Lvideo
    cmpb $0x79, %bl         # y
    je .Lwait
    cmpb $0x74, %bl         # t
    je .Ltimer
    cmpb $0x69, %bl         # i
    je .Lclock
    movb $10, %al
    outb %al, $0xe9
    cmpb $0x73, %bl         # s
    je .Lhalt
    movw $0xcf9, %dx
    movb $2, %al
    outb %al, %dx
    movb $6, %al
    outb %al, %dx
.Lhalt:
    sti
    hlt
    jmp .Lhalt

    .org 510
    .byte 0x55, 0xaa

.Lcpuid:
    call .Loperand
    movl %eax, %edi
    call .Loperand
    movl %eax, %ecx
    movl %edi, %eax
    cpuid
    call .Lhex
    movl %ebx, %eax
    call .Lhex
    movl %ecx, %eax
    call .Lhex
    movl %edx, %eax
    jmp .Lresult

.Lrdmsr:
    call .Loperand
    movl %eax, %ecx
    rdmsr
    xchgl %eax, %edx
    call .Lhex
    movl %edx, %eax
    jmp .Lresult

.Lwrmsr:
    call .Loperand
    movl %eax, %ecx
    lodsl
    movl %eax, %ebx
    lodsl
    movl %eax, %edx
    movl %ebx, %eax
    wrmsr
    jmp .Lline

.Lpoke:
    lodsl
    movl %eax, %edi
    lodsl
    movl %eax, %edx
    lodsl
    movl %eax, %ebx
    lodsl
    movl %eax, %ecx
1:  movl %edx, %fs:(%edi)
    addl %ebx, %edi
    decl %ecx
    jnz 1b
    jmp .Lline

.Lout:
    lodsl
    movw %ax, %dx
    lodsl
    outw %ax, %dx
    jmp .Lline

.Lout32:
    lodsl
    movw %ax, %dx
    lodsl
    outl %eax, %dx
    jmp .Lline

.Lvideo:
    lodsl
    pushw %ax
    lodsl
    movw %ax, %bx
    lodsl
    movw %ax, %cx
    lodsl
    movw %ax, %dx
    popw %ax
    pushw %si
    int $0x10
    popw %si
    jmp .Lline

.Lpeek:
    call .Loperand
    movl %eax, %edi
    movl %fs:(%edi), %eax
    jmp .Lresult

.Lwait:
    lodsl
    call .Lseconds
    jmp .Lline

.Ltimer:
    movw $0x46c, %bx
    call .Lticks
    jmp .Lresult

    # Interrupt 0x70 counts in 0x600; the clock's own enable bit, and both controllers' masks, let it come.
.Lclock:
    movw $(.Lhandler - xvmm_program_start + 0x7c00), (0x70 * 4)
    movw $0, (0x70 * 4 + 2)
    movw $0x600, %bx
    movl $0, (%bx)
    movw $0x2b0a, %ax       # register A: 32 a second
    call .Lcmos
    movw $0x420b, %ax       # register B: periodic interrupts
    call .Lcmos
    inb $0x21, %al
    andb $0xfb, %al
    outb %al, $0x21
    inb $0xa1, %al
    andb $0xfe, %al
    outb %al, $0xa1
    call .Lticks
    jmp .Lresult

.Lcmos:
    outb %al, $0x70
    movb %ah, %al
    outb %al, $0x71
    ret

.Lhandler:
    pushw %ax
    incl %cs:(0x600)
    movb $0x0c, %al
    outb %al, $0x70
    inb $0x71, %al
    movb $0x20, %al
    outb %al, $0xa0
    outb %al, $0x20
    popw %ax
    iretw

    # The change of the counter at bx: deaf, then listening.
.Lticks:
    movl $1, %eax
    call .Lseconds
    movl (%bx), %ebp
    lodsl
    call .Lseconds
    sti
    lodsl
    call .Lseconds
    cli
    movl (%bx), %eax
    subl %ebp, %eax
    ret

    # Waits for eax new seconds of the clock.
.Lseconds:
    movl %eax, %ecx
2:  call .Lsecond
    movb %al, %ah
3:  call .Lsecond
    cmpb %al, %ah
    je 3b
    decl %ecx
    jnz 2b
    ret

    # The handler chooses another register of the clock: not in between.
.Lsecond:
    pushfw
    cli
    movb $0, %al
    outb %al, $0x70
    inb $0x71, %al
    popfw
    ret

.Loperand:
    lodsl
.Lhex:
    pushal
    movw $8, %cx
4:  roll $4, %eax
    pushw %ax
    andb $15, %al
    cmpb $10, %al
    jb 5f
    addb $0x27, %al
5:  addb $0x30, %al
    outb %al, $0xe9
    popw %ax
    loop 4b
    movb $0x20, %al
    outb %al, $0xe9
    popal
    ret

.Lresult:
    call .Lhex
.Lline:
    movb $10, %al
    outb %al, $0xe9
    jmp .Lnext

.Lgdt:
    .quad 0
    .quad 0x00cf92000000ffff
.Lgdt_pointer:
    .word 15
    .long .Lgdt - xvmm_program_start + 0x7c00
    .globl xvmm_program_end
xvmm_program_end:
    .code64
    .popsection
    "#,
    options(att_syntax)
);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_disk_has_code_mark_and_steps() {
        let disk = Program::default().cpuid(0x4000_0000, 1).stop().sectors().unwrap();
        assert_eq!((disk.len(), &disk[510..SECTOR]), (6 * SECTOR, [0x55, 0xaa].as_slice()));
        assert_eq!(disk[CODE * SECTOR..][..12], *b"c\0\0\0\x40\x01\0\0\0se\0");
        // cli; xor ax, ax.
        assert_eq!(disk[..3], [0xfa, 0x31, 0xc0]);
    }

    #[test]
    fn what_does_not_fit_into_the_sectors_is_told() {
        let program = (0..300).fold(Program::default(), |program, leaf| program.cpuid(leaf, 0));
        assert!(program.sectors().is_err());
    }

    #[test]
    fn lines_of_the_log_are_read() {
        let log =
            "DEBUG xvmm: firmware: c 1\nDEBUG xvmm: guest: c 00000001 000006fb \nDEBUG xvmm: guest: s\n";
        assert_eq!(lines(log), [('c', vec![1, 0x6fb]), ('s', vec![])]);
    }
}
