//! Just enough of a 32-bit assembler (Intel SDM 2): stores, compares and jumps by absolute address.

use super::elf::ENTRY;

/// Ports of the machine: sleep control with the value that means S5, and reset.
const SLEEP_PORT: u16 = 0x600;
const S5: u8 = 0x34;
const RESET_PORT: u16 = 0x602;

/// Code in the making. A check that fails resets the machine, so that a test sees `Exit::Reset`.
#[derive(Default)]
pub struct Code {
    bytes: Vec<u8>,
}

impl Code {
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes as they are.
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend(bytes);
        self
    }

    fn op(self, opcode: &[u8], address: u32) -> Self {
        self.raw(opcode).raw(&address.to_le_bytes())
    }

    /// Stores a byte.
    pub fn set8(self, address: u32, value: u8) -> Self {
        self.op(&[0xC6, 0x05], address).raw(&[value])
    }

    /// Stores two bytes.
    pub fn set16(self, address: u32, value: u16) -> Self {
        self.op(&[0x66, 0xC7, 0x05], address).raw(&value.to_le_bytes())
    }

    /// Stores four bytes.
    pub fn set32(self, address: u32, value: u32) -> Self {
        self.op(&[0xC7, 0x05], address).raw(&value.to_le_bytes())
    }

    /// Stores any number of bytes.
    pub fn set(self, address: u32, bytes: &[u8]) -> Self {
        bytes.iter().zip(address..).fold(self, |code, (byte, at)| code.set8(at, *byte))
    }

    /// Resets the machine unless the four bytes at `address` are `value`.
    pub fn expect32(self, address: u32, value: u32) -> Self {
        // cmp dword [address], value; je behind the reset.
        self.op(&[0x81, 0x3D], address).raw(&value.to_le_bytes()).skip_if_equal().reset()
    }

    /// Resets the machine unless the four bytes at what `ebx` points to plus `offset` are `value`.
    pub fn expect32_at_ebx(self, offset: u32, value: u32) -> Self {
        self.op(&[0x81, 0xBB], offset).raw(&value.to_le_bytes()).skip_if_equal().reset()
    }

    /// Follows the pointer at `ebx` plus `offset`: `ebx` becomes what it points to.
    pub fn follow_ebx(self, offset: u32) -> Self {
        self.op(&[0x8B, 0x9B], offset)
    }

    fn skip_if_equal(self) -> Self {
        let reset = Code::new().reset().bytes.len() as u8;
        self.raw(&[0x74, reset])
    }

    /// Waits until the two bytes at `address` are `value`.
    pub fn wait16(self, address: u32, value: u16) -> Self {
        // again: cmp word [address], value; jne again.
        let start = self.bytes.len();
        let code = self.op(&[0x66, 0x81, 0x3D], address).raw(&value.to_le_bytes());
        let back = start.wrapping_sub(code.bytes.len() + 2) as u8;
        code.raw(&[0x75, back])
    }

    /// Waits until one of the bits of `mask` is set in the four bytes at `address`.
    pub fn wait_bits(self, address: u32, mask: u32) -> Self {
        // again: test dword [address], mask; jz again.
        let start = self.bytes.len();
        let code = self.op(&[0xF7, 0x05], address).raw(&mask.to_le_bytes());
        let back = start.wrapping_sub(code.bytes.len() + 2) as u8;
        code.raw(&[0x74, back])
    }

    /// Reads the four bytes at `address` for ever.
    pub fn read_for_ever(self, address: u32) -> Self {
        // again: mov eax, [address]; jmp again.
        self.op(&[0xA1], address).raw(&[0xEB, 0xF9])
    }

    /// Fills `count` double words from `address` with `value`.
    pub fn fill32(self, address: u32, count: u32, value: u32) -> Self {
        // mov edi, address; mov ecx, count; mov eax, value; again: mov [edi], eax; mov edx, [edi]; add edi, 4; loop.
        self.op(&[0xBF], address)
            .op(&[0xB9], count)
            .op(&[0xB8], value)
            .raw(&[0x89, 0x07, 0x8B, 0x17, 0x83, 0xC7, 0x04, 0xE2, 0xF7])
    }

    /// Writes four bytes to a port.
    pub fn out32(self, port: u16, value: u32) -> Self {
        self.op(&[0xB8], value).raw(&[0x66, 0xBA]).raw(&port.to_le_bytes()).raw(&[0xEF])
    }

    /// Reads four bytes from a port and resets the machine unless they are `value`.
    pub fn expect_in32(self, port: u16, value: u32) -> Self {
        // mov dx, port; in eax, dx; cmp eax, value.
        let code = self.raw(&[0x66, 0xBA]).raw(&port.to_le_bytes()).raw(&[0xED]);
        code.op(&[0x3D], value).skip_if_equal().reset()
    }

    fn out8(self, port: u16, value: u8) -> Self {
        self.raw(&[0xB0, value, 0x66, 0xBA]).raw(&port.to_le_bytes()).raw(&[0xEE])
    }

    /// Switches the machine off.
    pub fn power_off(self) -> Self {
        self.out8(SLEEP_PORT, S5).raw(&[0xF4])
    }

    /// Resets the machine.
    pub fn reset(self) -> Self {
        self.out8(RESET_PORT, 1).raw(&[0xF4])
    }

    /// Turns on paging in IA-32e mode, going on in compatibility mode (Intel SDM 3, 4.5 and 9.8.5): the first GiB
    /// stays where it is, the GiB at 1 GiB shows physical memory from `first`, the one at 2 GiB that from `second`,
    /// and the last GiB, with the interrupt controllers, stays. The tables lie at 8 MiB.
    pub fn map(self, first: u64, second: u64) -> Self {
        const PML4: u32 = 0x80_0000;
        const PDPT: u32 = PML4 + 0x1000;
        let mut code = self.set32(PML4, PDPT | 3);
        for (index, target) in [0, first, second, 3 << 30].into_iter().enumerate() {
            let directory = PDPT + 0x1000 * (1 + index as u32);
            code = code.set32(PDPT + 8 * index as u32, directory | 3);
            // mov edi, directory; mov ecx, 512; mov eax, low; mov edx, high;
            code = code.op(&[0xBF], directory).op(&[0xB9], 512);
            code = code.op(&[0xB8], target as u32 | 0x83).op(&[0xBA], (target >> 32) as u32);
            // again: mov [edi], eax; mov [edi+4], edx; add eax, 2 MiB; adc edx, 0; add edi, 8; loop again.
            code = code.raw(&[0x89, 0x07, 0x89, 0x57, 0x04, 0x05, 0, 0, 0x20, 0]);
            code = code.raw(&[0x83, 0xD2, 0, 0x83, 0xC7, 8, 0xE2, 0xEE]);
        }
        // mov eax, cr4; or eax, PAE; mov cr4, eax; mov eax, PML4; mov cr3, eax.
        code = code.raw(&[0x0F, 0x20, 0xE0, 0x83, 0xC8, 0x20, 0x0F, 0x22, 0xE0]);
        code = code.op(&[0xB8], PML4).raw(&[0x0F, 0x22, 0xD8]);
        // mov ecx, EFER; mov eax, LME; xor edx, edx; wrmsr; mov eax, cr0; or eax, PG; mov cr0, eax.
        code = code.op(&[0xB9], 0xC000_0080).op(&[0xB8], 0x100).raw(&[0x31, 0xD2, 0x0F, 0x30]);
        code.raw(&[0x0F, 0x20, 0xC0, 0x0D, 0, 0, 0, 0x80, 0x0F, 0x22, 0xC0])
    }

    /// The code's bytes, to be loaded at [`ENTRY`].
    pub fn assemble(self) -> Vec<u8> {
        assert!(ENTRY as usize + self.bytes.len() < 0x80_0000, "code would reach the page tables");
        self.bytes
    }
}
