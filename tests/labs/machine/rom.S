// rom.S: what the CPU executes after reset. Reads the memory image from the disk, turns on 64-bit mode and the
// AVX-512 registers, and enters machine.c's `start`.
//
// The last 12 KiB below 4 GiB. No relocations: every address is ROM plus the difference of two labels.
  .set ROM, 0xffffd000
  .set REAL, 0xd000               // the offset of the ROM in its real-mode segment

  .section .rom, "a"
rom:
tables:                           // until `start` makes its own: 4 GiB one to one, in pages of 1 GiB
  .quad ROM + 0x1023              // present, writable, accessed
  .org 0x1000
  .quad 0x000000e3, 0x400000e3, 0x800000e3, 0xc00000e3
  .org 0x2000

  .code16
begin:
  cli
  lgdtl %cs:REAL + gdt_pointer - rom
  movl %cr0, %eax
  orb $1, %al
  movl %eax, %cr0
  ljmpl $8, $ROM + protected - rom

  .code32
protected:
  movl $16, %eax
  movl %eax, %ds
  movl %eax, %es
  movl %eax, %ss
  cld
  movl ROM + load_at - rom, %edi
  xorl %ebx, %ebx
block:                            // 256 sectors from 256 * ebx on, by ATA's READ SECTORS
  movw $0x1f2, %dx
  xorl %eax, %eax
  outb %al, %dx                   // count: 0 means 256
  incl %edx
  outb %al, %dx                   // bits 0-7 of the number of the first
  incl %edx
  movl %ebx, %eax
  outb %al, %dx                   // bits 8-15
  incl %edx
  movb %ah, %al
  outb %al, %dx                   // bits 16-23
  incl %edx
  movb $0xe0, %al
  outb %al, %dx                   // drive 0, addressed by number
  incl %edx
  movb $0x20, %al
  outb %al, %dx
  movl $256, %ebp
sector:
  inb %dx, %al
  andb $0x88, %al
  cmpb $0x08, %al                 // no longer busy, and data ready
  jne sector
  movw $0x1f0, %dx
  movl $128, %ecx
  rep insl
  movw $0x1f7, %dx
  decl %ebp
  jnz sector
  incl %ebx
  cmpl ROM + blocks - rom, %ebx
  jne block

  movl ROM + boot - rom, %edi
  movl ROM + start - rom, %esi
  movl $0x40620, %eax             // PAE, OSFXSR, OSXMMEXCPT, OSXSAVE
  movl %eax, %cr4
  movl $ROM, %eax
  movl %eax, %cr3
  movl $0xc0000080, %ecx          // EFER: SCE, LME
  movl $0x101, %eax
  xorl %edx, %edx
  wrmsr
  movl $0x80010033, %eax          // PG, WP, NE, ET, MP, PE
  movl %eax, %cr0
  ljmpl $24, $ROM + long_mode - rom

  .code64
long_mode:
  movl $0xd, %eax
  xorl %ecx, %ecx
  cpuid
  andl $0x600e7, %eax             // XCR0: x87, SSE, AVX, the three of AVX-512, and the two of AMX if there
  xorl %ecx, %ecx
  xorl %edx, %edx
  xsetbv
  fninit
  jmp *%rsi

  .balign 8
gdt:
  .quad 0
  .quad 0x00cf9b000000ffff        // 8: 32-bit code
  .quad 0x00cf93000000ffff        // 16: data
  .quad 0x00af9b000000ffff        // 24: 64-bit code
gdt_pointer:
  .word gdt_pointer - gdt - 1
  .long ROM + gdt - rom

  .org 0x2fe0                     // filled in by emulate_avx512.py
blocks:  .long 0
load_at: .long 0
start:   .long 0
boot:    .long 0
  .org 0x2ff0                     // the reset vector
  .code16
  jmp begin
  .org 0x3000

  .section .note.GNU-stack, "", @progbits
