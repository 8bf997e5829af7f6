//! Machines as they are described to `tramontane plan`.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use tramontane_coordinator::control::planner::Candidate;
use tramontane_kernels::gpu::GPU_MEMORY_PERCENT;
use tramontane_model::ids::{DeviceIndex, DeviceRef, WorkerId};
use tramontane_model::members::MAX_DEVICES;

use crate::amounts::parse_bytes;

/// Most bytes of the file.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Most devices of all hosts.
const MAX_ALL_DEVICES: usize = 1024;
/// What a device can bind where the file does not say.
const MAX_BINDING_BYTES: u64 = 2 << 30;

/// A described set of machines.
#[derive(Debug)]
pub(super) struct Inventory {
    /// Every device, hosts and devices in the order of the file.
    pub(super) devices: Vec<Candidate>,
    /// What connects them.
    pub(super) links: Links,
}

/// A connection between two devices.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Link {
    pub(super) bytes_per_s: f64,
    /// From handing a message over to its being there.
    pub(super) latency_s: f64,
}

/// All connections.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Links {
    pub(super) within_host: Link,
    pub(super) between_hosts: Link,
    /// Whether the file says nothing of one of them.
    pub(super) assumed: bool,
}

/// What is assumed within a host, and between hosts.
const ASSUMED: [Link; 2] = [
    Link {
        bytes_per_s: 2e9,
        latency_s: 100e-6,
    },
    Link {
        bytes_per_s: 1e9,
        latency_s: 200e-6,
    },
];
/// Longest latency.
const MAX_LATENCY_US: f64 = 1e6;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    hosts: Vec<Host>,
    #[serde(default)]
    links: FileLinks,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileLinks {
    within_host: Option<FileLink>,
    between_hosts: Option<FileLink>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileLink {
    bandwidth: String,
    latency_us: f64,
}

impl FileLink {
    fn read(&self, name: &str) -> Result<Link> {
        let field = format!("links.{name}");
        let bandwidth = parse_bytes(&self.bandwidth);
        let bandwidth = bandwidth.map_err(|error| anyhow::anyhow!("{field}.bandwidth: {error}"))?;
        if !(0.0..=MAX_LATENCY_US).contains(&self.latency_us) {
            bail!(
                "{field}.latency_us is {}, it must be 0 to {MAX_LATENCY_US}",
                self.latency_us
            );
        }
        Ok(Link {
            bytes_per_s: bandwidth as f64,
            latency_s: self.latency_us / 1e6,
        })
    }
}

impl FileLinks {
    fn read(&self) -> Result<Links> {
        let of = |file: &Option<FileLink>, name: &str| file.as_ref().map(|link| link.read(name)).transpose();
        let within = of(&self.within_host, "within_host")?;
        let between = of(&self.between_hosts, "between_hosts")?;
        Ok(Links {
            assumed: within.is_none() || between.is_none(),
            within_host: within.unwrap_or(ASSUMED[0]),
            between_hosts: between.unwrap_or(ASSUMED[1]),
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Host {
    name: String,
    #[serde(default = "one")]
    count: u32,
    devices: Vec<Device>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Device {
    name: String,
    #[serde(default = "one")]
    count: u32,
    memory: String,
    usable: Option<String>,
    max_binding: Option<String>,
}

fn one() -> u32 {
    1
}

impl Inventory {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let named = || format!("--inventory {}", path.display());
        let bytes = std::fs::metadata(path).with_context(named)?.len();
        if bytes > MAX_FILE_BYTES {
            bail!(
                "{}: it has {bytes} bytes, at most {MAX_FILE_BYTES} are read",
                named()
            );
        }
        let text = std::fs::read_to_string(path).with_context(named)?;
        Self::parse(&text).with_context(named)
    }

    fn parse(text: &str) -> Result<Self> {
        let file: File = toml::from_str(text)?;
        let links = file.links.read()?;
        let mut devices: Vec<Candidate> = Vec::new();
        for (at, host) in file.hosts.iter().enumerate() {
            let field = format!("hosts[{at}]");
            for number in 1..=host.count.max(1) {
                let name = match host.count {
                    0 => bail!("{field}.count is 0, it must be 1 or more"),
                    1 => host.name.clone(),
                    _ => format!("{}-{number}", host.name),
                };
                let worker = WorkerId::new(&name).with_context(|| format!("{field}.name"))?;
                if devices.iter().any(|known| known.device.worker == worker) {
                    bail!("{field}.name: there is another host {worker}; names must differ");
                }
                let of_host = host.devices(&field)?;
                for (index, (kind, memory_bytes, max_binding_bytes)) in (0..).zip(of_host) {
                    let device = DeviceRef {
                        worker: worker.clone(),
                        device: DeviceIndex(index),
                    };
                    devices.push(Candidate {
                        device,
                        memory_bytes,
                        max_binding_bytes,
                        kind,
                        is_cpu: false,
                    });
                }
                if devices.len() > MAX_ALL_DEVICES {
                    bail!("{field}: there are more than {MAX_ALL_DEVICES} devices up to here");
                }
            }
        }
        if devices.is_empty() {
            bail!("hosts is empty: there must be one at least, with a device");
        }
        Ok(Self { devices, links })
    }
}

impl Host {
    /// Kind, usable bytes and largest binding of each of the host's devices.
    fn devices(&self, host: &str) -> Result<Vec<(String, u64, u64)>> {
        let mut devices = Vec::new();
        for (at, device) in self.devices.iter().enumerate() {
            let field = format!("{host}.devices[{at}]");
            let bytes = |name: &str, text: &str| {
                parse_bytes(text).map_err(|error| anyhow::anyhow!("{field}.{name}: {error}"))
            };
            let memory = bytes("memory", &device.memory)?;
            let usable = match &device.usable {
                Some(usable) => bytes("usable", usable)?,
                None => memory / 100 * GPU_MEMORY_PERCENT,
            };
            if usable > memory {
                bail!("{field}.usable is {usable} bytes, it must be at most its memory, {memory}");
            }
            let binding = match &device.max_binding {
                Some(binding) => bytes("max_binding", binding)?,
                None => MAX_BINDING_BYTES,
            };
            if device.count == 0 || devices.len() + device.count as usize > MAX_DEVICES {
                bail!(
                    "{field}.count is {}, a host must have 1 to {MAX_DEVICES} devices in all",
                    device.count
                );
            }
            for _ in 0..device.count {
                devices.push((device.name.clone(), usable, binding));
            }
        }
        if devices.is_empty() {
            bail!("{host}.devices is empty: there must be one at least");
        }
        Ok(devices)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_devices_are_counted_out() {
        let text = r#"
            [[hosts]]
            name = "a"
            count = 2
            devices = [{ name = "H100", count = 2, memory = "80GiB" }, { name = "L4", memory = "24GiB", usable = "20GiB" }]
            [[hosts]]
            name = "b"
            devices = [{ name = "MI300X", memory = "192GiB", max_binding = "4GiB" }]
        "#;
        let devices = Inventory::parse(text).expect("valid").devices;
        let names: Vec<String> = devices.iter().map(|device| device.device.to_string()).collect();
        assert_eq!(
            names,
            ["a-1/0", "a-1/1", "a-1/2", "a-2/0", "a-2/1", "a-2/2", "b/0"]
        );
        assert_eq!(devices[0].memory_bytes, (80 << 30) / 100 * 90);
        assert_eq!(devices[2].memory_bytes, 20 << 30);
        assert_eq!(
            (devices[0].max_binding_bytes, devices[6].max_binding_bytes),
            (2 << 30, 4 << 30)
        );
        assert_eq!(devices[6].kind, "MI300X");
    }

    #[test]
    fn links_are_read_or_assumed() {
        let hosts = "[[hosts]]\nname = \"a\"\ndevices = [{ name = \"x\", memory = \"8GiB\" }]\n";
        let links = Inventory::parse(hosts).expect("valid").links;
        assert!(links.assumed);
        assert_eq!([links.within_host, links.between_hosts], ASSUMED);
        let text = format!("{hosts}[links]\nbetween_hosts = {{ bandwidth = \"50GB\", latency_us = 15 }}\n");
        let links = Inventory::parse(&text).expect("valid").links;
        assert!(links.assumed);
        assert_eq!(
            (links.between_hosts.bytes_per_s, links.between_hosts.latency_s),
            (50e9, 15e-6)
        );
        for (link, part) in [
            (
                "within_host = { bandwidth = \"fast\", latency_us = 1 }",
                "links.within_host.bandwidth",
            ),
            (
                "between_hosts = { bandwidth = \"1GB\", latency_us = -1 }",
                "links.between_hosts.latency_us is -1",
            ),
            ("across = { bandwidth = \"1GB\", latency_us = 1 }", "across"),
        ] {
            let error = Inventory::parse(&format!("{hosts}[links]\n{link}\n")).expect_err("refused");
            assert!(format!("{error:#}").contains(part), "{link}: {error:#}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let host = |text: &str| format!("[[hosts]]\nname = \"a\"\n{text}");
        for (text, part) in [
            (String::new(), "hosts"),
            ("hosts = []".to_owned(), "hosts is empty"),
            (host("devices = []"), "hosts[0].devices is empty"),
            (host("devices = [{ name = \"x\" }]"), "memory"),
            (
                host("devices = [{ name = \"x\", memory = \"lots\" }]"),
                "hosts[0].devices[0].memory",
            ),
            (
                host("devices = [{ name = \"x\", memory = \"8GiB\", usable = \"9GiB\" }]"),
                "hosts[0].devices[0].usable",
            ),
            (
                host("devices = [{ name = \"x\", memory = \"8GiB\", count = 65 }]"),
                "hosts[0].devices[0].count is 65",
            ),
            (
                host("count = 0\ndevices = [{ name = \"x\", memory = \"8GiB\" }]"),
                "hosts[0].count is 0",
            ),
            (
                host("count = 5000\ndevices = [{ name = \"x\", memory = \"8GiB\" }]"),
                "more than 1024 devices",
            ),
            (
                host("colour = 1\ndevices = [{ name = \"x\", memory = \"8GiB\" }]"),
                "colour",
            ),
            (
                "[[hosts]]\nname = \"A!\"\ndevices = [{ name = \"x\", memory = \"8GiB\" }]".to_owned(),
                "hosts[0].name",
            ),
            (
                host("devices = [{ name = \"x\", memory = \"8GiB\" }]\n").repeat(2),
                "hosts[1].name",
            ),
        ] {
            let error = format!("{:#}", Inventory::parse(&text).expect_err("refused"));
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
