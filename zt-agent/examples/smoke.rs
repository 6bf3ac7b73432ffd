use zt_agent::kernel::{load::*, pins::Pins};
fn main() {
    let pins = Pins::new("/run/zt-dev/bpf/zt");
    let _ = pins.remove();
    pins.prepare().unwrap();
    let sizes = MapSizes {
        policy: 131072,
        range: 16384,
        address: 65536,
        cidr: 16384,
        workload: 16384,
        flow: 65536,
        ring_bytes: 8 << 20,
    };
    match load(&pins, &sizes, 0) {
        Ok(l) => {
            for (n, c) in l.verified_instructions() {
                println!("{n} {c}");
            }
        }
        Err(e) => println!("{e}"),
    }
}
