//! Ring 2: whole machines with tiny bare-metal guests. What the guest finds wrong it says by a reset.

mod support;

use std::fs;

use rackstick_vmm::{
    config::{Disk, Pmem},
    exit::Exit,
};
use support::{Machine, assembler::Code, kvm};

/// Where this machine's persistent memory and, without any, its BARs start: RAM is far below 4 GiB.
const ABOVE_RAM: u64 = 4 << 30;
/// Where [`Code::map`] shows that.
const WINDOW: u32 = 1 << 30;

#[test]
fn s5_is_a_power_off() {
    if kvm() {
        assert_eq!(Machine::new(Code::new().power_off()).run().exit, Exit::PoweredOff);
    }
}

#[test]
fn the_reset_register_is_a_reset() {
    if kvm() {
        assert_eq!(Machine::new(Code::new().reset()).run().exit, Exit::Reset);
    }
}

#[test]
fn a_jump_to_the_bios_is_a_reset() {
    if kvm() {
        // The code there needs no real mode: jmp 0xFFFF0 would run it as 32-bit code with other operand sizes. So
        // it is compared, byte by byte, with: mov al, 1; mov dx, 0x602; out dx, al; hlt.
        let code = Code::new().expect32(0xF_FFF0, 0x02BA_01B0).expect32(0xF_FFF3, 0xF4EE_0602).power_off();
        assert_eq!(Machine::new(code).run().exit, Exit::PoweredOff);
    }
}

#[test]
fn a_triple_fault_is_the_guests_fault() {
    if kvm() {
        // ud2, with no interrupt table.
        let exit = Machine::new(Code::new().raw(&[0x0F, 0x0B])).run().exit;
        assert!(matches!(&exit, Exit::GuestFault { message } if message.contains("vCPU 0")), "{exit:?}");
    }
}

#[test]
fn the_kernel_is_told_its_command_line_initrd_memory_and_acpi() {
    if kvm() {
        // struct hvm_start_info, fields by offset.
        let code = Code::new()
            .expect32_at_ebx(0, 0x336E_C578)
            .expect32_at_ebx(4, 1)
            .expect32_at_ebx(12, 1)
            .expect32_at_ebx(48, 4)
            .raw(&[0x89, 0xDE]) // mov esi, ebx
            .follow_ebx(24)
            .expect32_at_ebx(0, u32::from_le_bytes(*b"cons"))
            .expect32_at_ebx(4, u32::from_le_bytes(*b"ole\0"))
            .raw(&[0x89, 0xF3]) // mov ebx, esi
            .follow_ebx(32)
            .expect32_at_ebx(0, u32::from_le_bytes(*b"RSD "))
            .expect32_at_ebx(4, u32::from_le_bytes(*b"PTR "))
            .raw(&[0x89, 0xF3])
            .follow_ebx(16)
            .expect32_at_ebx(8, 12)
            .follow_ebx(0)
            .expect32_at_ebx(0, u32::from_le_bytes(*b"init"))
            .expect32_at_ebx(4, u32::from_le_bytes(*b"rd\0\0"))
            .expect32_at_ebx(8, u32::from_le_bytes(*b"more"))
            .raw(&[0x89, 0xF3])
            .follow_ebx(40)
            // The third range is RAM from 1 MiB to 16 MiB.
            .expect32_at_ebx(48, 1 << 20)
            .expect32_at_ebx(56, 15 << 20)
            .expect32_at_ebx(64, 1)
            .power_off();
        let mut machine = Machine::new(code);
        machine.config.cmdline = "console".into();
        machine.config.initrd = vec![machine.file("first", b"initrd"), machine.file("second", b"more")];
        assert_eq!(machine.run().exit, Exit::PoweredOff);
    }
}

#[test]
fn a_layer_is_readable_followed_by_zeroes_and_not_writable() {
    if kvm() {
        let size = 3 << 20;
        let mut layer: Vec<u8> = (0..size / 4).flat_map(|index: u32| index.to_le_bytes()).collect();
        let code = Code::new()
            .map(ABOVE_RAM, 0)
            .expect32(WINDOW, 0)
            .expect32(WINDOW + 4096, 1024)
            .expect32(WINDOW + size - 4, size / 4 - 1)
            .expect32(WINDOW + size, 0)
            .expect32(WINDOW + (4 << 20) - 4, 0)
            // Dropped, not done and not fatal.
            .set32(WINDOW + 4096, 7)
            .expect32(WINDOW + 4096, 1024)
            .power_off();
        let mut machine = Machine::new(code);
        let path = machine.file("layer", &layer);
        machine.config.pmem = vec![Pmem { path: path.clone(), label: "layer".into() }];
        let running = machine.start();
        let folder = running.folder.path().to_owned();
        let kept = fs::File::open(folder.join("layer")).unwrap();
        assert_eq!(running.end().exit, Exit::PoweredOff);
        let mut after = Vec::new();
        std::io::Read::read_to_end(&mut &kept, &mut after).unwrap();
        layer.truncate(size as usize);
        assert_eq!(after, layer, "the guest changed its layer");
    }
}

#[test]
fn an_unreadable_block_stops_the_guest_and_is_named() {
    if kvm() {
        let code = Code::new().map(ABOVE_RAM + (2 << 20), 0).read_for_ever(WINDOW + 700 * 4096 + 12);
        let mut machine = Machine::new(code);
        let good = machine.file("good", &vec![1; 1 << 20]);
        let bad = machine.file("bad", &vec![2; 4 << 20]);
        machine.config.pmem =
            vec![Pmem { path: good, label: "base".into() }, Pmem { path: bad.clone(), label: "own".into() }];
        let mut running = machine.start();
        let mapped = bad.to_str().unwrap().to_owned();
        running.wait_for("the layer to be mapped", |_, pid| {
            fs::read_to_string(format!("/proc/{pid}/maps")).is_ok_and(|maps| maps.contains(&mapped))
        });
        // What a bad disk does can't be had from a file of this machine; that a block goes away can.
        fs::OpenOptions::new().write(true).open(&bad).unwrap().set_len(600 * 4096).unwrap();
        // Blocks 600 to 1023 are gone. A KVM that says what the guest read leads to 700, others to the first bad one.
        let exit = running.end().exit;
        assert!(matches!(&exit, Exit::CorruptLayer { label, block: 600 | 700 } if label == "own"), "{exit:?}");
    }
}

#[test]
fn a_guest_may_write_anything_anywhere() {
    if kvm() {
        // All of the ECAM's first nine devices, all BARs where they were, and the I/O APIC.
        let mut code = Code::new().map(ABOVE_RAM, 0);
        for value in [0xFFFF_FFFF, 0xA5A5_A5A5, 0x0606_0606] {
            code = code.fill32(WINDOW, 0x40, value).fill32(WINDOW + 0x8000, 0x6000 / 4, value);
            for device in 0..3 {
                code = code.fill32(0xE000_0000 + device * 0x8000, 64, value);
            }
            code = code.fill32(0xFEC0_0000, 16, value);
            code = code.fill32(WINDOW + 0x2000, 0x400, value);
            for port in [0xCF8, 0xCFC, 0x600, 0x64] {
                code = code.out32(port, value & !0xFF | 2);
            }
        }
        assert_eq!(Machine::new(code.power_off()).run().exit, Exit::PoweredOff);
    }
}

#[test]
fn both_ways_into_configuration_space_show_the_same_device() {
    if kvm() {
        // Slot 1 is the console: virtio's vendor id, 0x1040 + 3.
        let code = Code::new()
            .expect32(0xE000_8000, 0x1043_1AF4)
            .out32(0xCF8, 0x8000_0800)
            .expect_in32(0xCFC, 0x1043_1AF4)
            .power_off();
        assert_eq!(Machine::new(code).run().exit, Exit::PoweredOff);
    }
}

/// Sets up the console's transmit queue by hand (virtio 1.2, 3.1.1 and 4.1.4.3) and prints `text`.
fn print(code: Code, text: &str) -> Code {
    const DESCRIPTORS: u32 = 0x20_0000;
    const AVAILABLE: u32 = 0x20_1000;
    const USED: u32 = 0x20_2000;
    const TEXT: u32 = 0x20_3000;
    let register = |offset| WINDOW + offset;
    code.set8(register(0x14), 0)
        .set8(register(0x14), 3)
        .set32(register(0x08), 1)
        .set32(register(0x0C), 1)
        .set8(register(0x14), 0xB)
        .set16(register(0x16), 1)
        .set16(register(0x18), 4)
        .set32(register(0x20), DESCRIPTORS)
        .set32(register(0x28), AVAILABLE)
        .set32(register(0x30), USED)
        .set16(register(0x1C), 1)
        .set8(register(0x14), 0xF)
        .set(TEXT, text.as_bytes())
        .set32(DESCRIPTORS, TEXT)
        .set32(DESCRIPTORS + 8, text.len() as u32)
        .set16(AVAILABLE + 2, 1)
        .set16(register(0x3004), 1)
        .wait16(USED + 2, 1)
}

#[test]
fn a_driver_written_from_the_specification_prints() {
    if kvm() {
        let ended = Machine::new(print(Code::new().map(ABOVE_RAM, 0), "hello, world\n").power_off()).run();
        assert_eq!((ended.exit, ended.console.as_str()), (Exit::PoweredOff, "hello, world\n"));
    }
}

#[test]
fn sigterm_presses_the_power_button() {
    if kvm() {
        const VECTOR: u32 = 0x41;
        const POWER_BUTTON_PIN: u32 = 5;
        // Local APIC on; pin 5 unmasked, edge, vector 0x41, to APIC 0; then wait for the interrupt to be requested.
        let code = print(Code::new().map(ABOVE_RAM, 0), "ready")
            .set32(0xFEE0_00F0, 0x1FF)
            .set32(0xFEC0_0000, 0x10 + 2 * POWER_BUTTON_PIN + 1)
            .set32(0xFEC0_0010, 0)
            .set32(0xFEC0_0000, 0x10 + 2 * POWER_BUTTON_PIN)
            .set32(0xFEC0_0010, VECTOR)
            .wait_bits(0xFEE0_0200 + VECTOR / 32 * 0x10, 1 << (VECTOR % 32))
            .power_off();
        let mut running = Machine::new(code).start();
        running.wait_for("the guest", |folder, _| fs::read(folder.join("console")).is_ok_and(|text| text == b"ready"));
        let pid = rustix::process::Pid::from_child(&running.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert_eq!(running.end().exit, Exit::PoweredOff);
    }
}

#[test]
fn every_thread_of_a_running_machine_is_confined() {
    if kvm() {
        let mut machine = Machine::new(print(Code::new().map(ABOVE_RAM, 0), "ready").raw(&[0xEB, 0xFE]));
        let disk = machine.file("disk", &[0; 4096]);
        machine.config.disks = vec![Disk { path: disk, serial: "a".into(), readonly: false }];
        let mut running = machine.start();
        running.wait_for("the guest", |folder, _| fs::read(folder.join("console")).is_ok_and(|text| text == b"ready"));
        let tasks = fs::read_dir(format!("/proc/{}/task", running.child.id())).unwrap();
        let states: Vec<_> = tasks
            .map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap())
            // Newer kernels show a worker of KVM's own as a thread of the process.
            .filter(|state| !state.starts_with("Name:\tkvm-nx"))
            .collect();
        running.child.kill().unwrap();
        running.child.wait().unwrap();
        assert_eq!(states.len(), 3, "main thread, disk, vCPU");
        assert!(states.iter().all(|state| state.contains("Seccomp:\t2") && state.contains("NoNewPrivs:\t1")));
    }
}

#[test]
fn the_second_vcpu_starts_when_it_is_told_to() {
    if kvm() {
        const FLAG: u32 = 0x7000;
        // Real mode, at 0x8000: mov word [0x7000], 0x5AA5; hlt.
        let second = [0xC7, 0x06, 0x00, 0x70, 0xA5, 0x5A, 0xF4];
        // INIT, then SIPI with vector 8, to all but the sender (Intel SDM 3, 9.4.4).
        let code = Code::new()
            .set(0x8000, &second)
            .set32(0xFEE0_00F0, 0x1FF)
            .set32(0xFEE0_0300, 0x000C_4500)
            .set32(0xFEE0_0300, 0x000C_4608)
            .wait16(FLAG, 0x5AA5)
            .power_off();
        let mut machine = Machine::new(code);
        machine.config.vcpus = 2;
        assert_eq!(machine.run().exit, Exit::PoweredOff);
    }
}
